"""Bytes that break RFC 6455, or only bend it: frames, sequences of frames, and handshakes.

Each case is a name and what is sent after the handshake (or instead of it). What the server does with it is
judged by the tests: it may close the connection, it may not fall.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from contextlib import suppress
from random import Random

from tests.servers import PATIENCE

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = base64.b64encode(b"0123456789abcdef").decode()


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    size: int | None = None,
) -> bytes:
    """Encode one frame of a client; `size` is what it says of its length, if that is not the truth."""
    length = len(payload) if size is None else size
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    flag = 0x80 if masked else 0
    if length < 126:
        head += bytes([flag | length])
    elif length < 65_536:
        head += bytes([flag | 126]) + struct.pack("!H", length)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


CONNECT = b'{"id":1,"connect":{}}'

#: What is sent on an open connection.
FRAMES: dict[str, bytes] = {
    **{f"reserved opcode {opcode}": frame(opcode, b"x") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"reserved bits {rsv}": frame(TEXT, b"{}", rsv=rsv) for rsv in range(1, 8)},
    **{f"reserved bits {rsv} of a control frame": frame(PING, b"", rsv=rsv) for rsv in (1, 2, 4)},
    "unmasked text": frame(TEXT, CONNECT, masked=False),
    "unmasked ping": frame(PING, masked=False),
    "unmasked close": frame(CLOSE, masked=False),
    "fragmented ping": frame(PING, b"x", fin=False) + frame(CONTINUATION, b"y"),
    "fragmented close": frame(CLOSE, b"\x03\xe8", fin=False) + frame(CONTINUATION),
    "ping of 126 bytes": frame(PING, b"x" * 126),
    "pong of 65,536 bytes": frame(PONG, b"x" * 65_536),
    "close of 126 bytes": frame(CLOSE, b"\x03\xe8" + b"x" * 124),
    "close of one byte": frame(CLOSE, b"\x03"),
    "close with a reason that is no UTF-8": frame(CLOSE, b"\x03\xe8\xff\xfe"),
    **{
        f"close with {code}": frame(CLOSE, struct.pack("!H", code))
        for code in (0, 999, 1000, 1004, 1005, 1006, 1012, 1015, 1016, 2999, 3000, 3999, 4999, 5000, 65535)
    },
    "data after a close": frame(CLOSE, b"\x03\xe8") + frame(TEXT, CONNECT) * 3,
    "two closes": frame(CLOSE, b"\x03\xe8") * 2,
    "text that is no UTF-8": frame(TEXT, b"\xff\xfe\xfd"),
    "text with half a character": frame(TEXT, b'{"id":1}\xe2\x82'),
    "a character over two fragments": frame(TEXT, b"\xe2", fin=False) + frame(CONTINUATION, b"\x82\xac"),
    "half a character and then nothing": frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUATION),
    "overlong UTF-8": frame(TEXT, b"\xc0\x80"),
    "a surrogate in UTF-8": frame(TEXT, b"\xed\xa0\x80"),
    "beyond Unicode": frame(TEXT, b"\xf4\x90\x80\x80"),
    "a fragment of nothing": frame(CONTINUATION, b"x"),
    "a last fragment of nothing": frame(CONTINUATION, b"x", fin=False),
    "interleaved messages": frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
    "a ping between fragments": frame(TEXT, b'{"id":1,', fin=False)
    + frame(PING)
    + frame(CONTINUATION, b'"connect":{}}'),
    "a close between fragments": frame(TEXT, b"{", fin=False) + frame(CLOSE, b"\x03\xe8"),
    "a thousand empty fragments": frame(TEXT, fin=False)
    + frame(CONTINUATION, fin=False) * 1_000
    + frame(CONTINUATION),
    "a fragment for each byte": frame(TEXT, b"{", fin=False)
    + b"".join(frame(CONTINUATION, bytes([byte]), fin=False) for byte in CONNECT[1:-1])
    + frame(CONTINUATION, b"}"),
    "empty text": frame(TEXT),
    "empty binary": frame(BINARY),
    "binary that is the protocol": frame(BINARY, CONNECT),
    "binary that is nothing": frame(BINARY, bytes(range(256))),
    "only line ends": frame(TEXT, b"\n" * 1_000),
    "ten thousand pongs in a message": frame(TEXT, b"{}\n" * 10_000),
    "a length of 2**63": frame(BINARY, b"x" * 16, size=2**63),
    "a length of 2**62": frame(TEXT, b"x" * 16, size=2**62),
    "more than a message may have": frame(TEXT, b"x", size=64 * 2**20),
    "one command of 300 KB": frame(TEXT, b'{"id":1,"connect":{"data":"' + b"x" * 300_000 + b'"}}'),
    "a message cut in the middle": frame(TEXT, CONNECT, size=1_000),
    "a header cut in the middle": frame(TEXT, CONNECT)[:3],
    "a length in too many bytes": b"\x81\xfe\x00\x05" + b"\0\0\0\0hello",
    "a length in far too many bytes": b"\x81\xff" + struct.pack("!Q", 5) + b"\0\0\0\0hello",
    "deep nesting": frame(TEXT, b'{"id":1,"connect":{"data":' + b"[" * 50_000 + b"]" * 50_000 + b"}}"),
    "two hundred pings": frame(PING, b"x") * 200,
    "unasked pongs": frame(PONG, b"x") * 500,
    "HTTP on the socket": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(4_096),
    "ones": b"\xff" * 4_096,
}

_OPENING = (
    f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
)


def opening(path: str = "/connection/websocket", *, host: str = "127.0.0.1", more: str = "") -> bytes:
    """A handshake."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{_OPENING}{more}\r\n".encode("latin-1")


#: What is sent instead of a sound handshake.
HANDSHAKES: dict[str, bytes] = {
    "nothing": b"",
    "half a line": b"GET /connec",
    "half a handshake": opening()[:-30],
    "no key": opening().replace(f"Sec-WebSocket-Key: {KEY}\r\n".encode(), b""),
    "a short key": opening().replace(KEY.encode(), b"YQ=="),
    "a key that is no base64": opening().replace(KEY.encode(), b"!!!"),
    "two keys": opening(more=f"Sec-WebSocket-Key: {KEY}\r\n"),
    "version 8": opening().replace(b"Version: 13", b"Version: 8"),
    "version x": opening().replace(b"Version: 13", b"Version: x"),
    "two versions": opening(more="Sec-WebSocket-Version: 8\r\n"),
    "no upgrade": opening().replace(b"Upgrade: websocket\r\n", b""),
    "upgrade to something": opening().replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    "no host": opening().replace(b"Host: 127.0.0.1\r\n", b""),
    "a strange host": opening(host="\x01\xff"),
    "POST": opening().replace(b"GET", b"POST"),
    "HTTP/1.0": opening().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/9.9": opening().replace(b"HTTP/1.1", b"HTTP/9.9"),
    "an address that is no UTF-8": opening("/ws/agents/\xff\xfe/"),
    "an escaped address that is no UTF-8": opening("/ws/agents/%ff%fe/"),
    "an escape that is none": opening("/ws/agents/%zz/"),
    "a NUL in the address": opening("/ws/progress/a%00b/"),
    "a query that is no UTF-8": opening("/ws/progress/t/?offset=%ff&epoch=%fe"),
    "an offset that is none": opening("/ws/progress/t/?offset=-1"),
    "an endless address": opening("/" + "a" * 100_000),
    "an endless header": opening(more=f"X-Long: {'a' * 200_000}\r\n"),
    "ten thousand headers": opening(more="".join(f"X-{n}: {n}\r\n" for n in range(10_000))),
    "a header without a colon": opening(more="nonsense\r\n"),
    "a header that is no UTF-8": opening(more="X-Odd: \xff\xfe\r\nAuthorization: Bearer \xff\r\n"),
    "a token that is none": opening(more="Authorization: Bearer a.b.c\r\n"),
    "a broken cookie": opening(more="Cookie: sessionid=\xff; =;;;\r\n"),
    "a strange origin": opening(more="Origin: \xff://[::1\r\n"),
    "strange extensions": opening(
        more="Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99, x;;=\r\n"
    ),
    "many subprotocols": opening(
        more=f"Sec-WebSocket-Protocol: {', '.join(f'p{n}' for n in range(500))}\r\n"
    ),
    "a body on top": opening(more="Content-Length: 5\r\n") + b"hello",
    "a negative body": opening(more="Content-Length: -5\r\n"),
    "chunks": opening(more="Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n",
    "noise": bytes(range(256)) * 20,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}


def random_frames(chance: Random) -> bytes:
    """A few frames with anything in them, some cut short."""
    said = b""
    for _ in range(chance.randint(1, 6)):
        payload = chance.choice([CONNECT, b"{}", b"", b"\xff", chance.randbytes(chance.randint(0, 300))])
        piece = frame(
            chance.choice([TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, chance.randint(0, 15)]),
            payload,
            fin=chance.random() < 0.8,
            rsv=0 if chance.random() < 0.9 else chance.randint(1, 7),
            masked=chance.random() < 0.95,
        )
        said += piece if chance.random() < 0.9 else piece[: chance.randint(0, len(piece))]
    return said


def speak(port: int, said: bytes, *, first: bytes = b"", until: bytes = b"", patience: float = 0.4) -> bytes:
    """Send bytes on a new connection, after the handshake `first` if there is one; return what comes back.

    Reads until the server closes, or `until` was heard, or nothing came for so many seconds: some cases leave
    it waiting for more.
    """
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection, suppress(OSError):
        if first:
            connection.sendall(first)
            while b"\r\n\r\n" not in heard and (piece := connection.recv(65_536)):
                heard += piece
        connection.sendall(said)
        connection.settimeout(PATIENCE if until else patience)
        while not (until and until in heard) and (piece := connection.recv(65_536)):
            heard += piece
    return heard
