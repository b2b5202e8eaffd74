"""Where clients come in live: sockets and streams.

sockets       what all have in common; consumers (path A), plain (path B), events and streams (path C)
pipeline      publishes under way, answered in order
wording, remote, starts  the words of path A, the RPC methods, where a reader asks to begin
routing       which address leads where
"""
