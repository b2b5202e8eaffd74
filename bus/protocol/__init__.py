"""What a frame, a command, a topic and a position mean. A library without I/O.

It imports no framework, opens no socket and reads no clock: bytes and times come in as arguments, bytes and
decisions go out. `frames` is the codec, `session` the state of one client; `topics`, `positions` and
`limits` hold the rules, `errors` the codes. Everything above it (consumers, hub, log) does what is decided
here.
"""
