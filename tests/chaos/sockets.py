"""What is no request, over a socket: frames of HTTP/2 that lie, heads of HTTP/1.1 that contradict themselves."""

import struct
from collections.abc import Sequence
from random import Random
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _CONTINUATION = 0, 1, 4, 9
_KINDS: Final = 12
_END_STREAM, _END_HEADERS = 1, 4
_CALL: Final = (
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/harken.v1.Encoder/Encode"), (b":authority", b"a"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers"),
)  # fmt: skip
_MESSAGE: Final = b"\x22\x05\x12\x03\x0a\x01\x05"

_PREFIXED: Final = (
    b"\0" + struct.pack(">I", len(_MESSAGE) + 9), b"\0" + struct.pack(">I", 1), b"\0\xff\xff\xff\xff",
    b"\1" + struct.pack(">I", len(_MESSAGE)), b"\xff" + struct.pack(">I", len(_MESSAGE)), b"\0\0", b"",
    b"\0" + struct.pack(">I", 0),
)  # fmt: skip
"""What stands before a message and is wrong: lengths that lie, flags of compression where nothing is compressed."""

_HEADERS_WRONG: Final = (
    (b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"zip-bomb"), (b"grpc-timeout", b"99999999999999S"),
    (b"grpc-timeout", b"-1x"), (b"content-type", b"text/html"), (b":path", b"no-slash"), (b"UPPER", b"case"),
    (b"x-bin", b"!!!"), (b"x-request-id", b"\xff\x00\n"), (b"connection", b"close"), (b":status", b"200"),
    (b"authorization", b"Bearer \xff"), (b"x", b"y" * 20_000),
)  # fmt: skip

_LENGTHS: Final = (
    b"content-length: -1", b"content-length: 99999999999999999999", b"content-length: 0x10", b"content-length: 1",
    b"content-length: 4\r\ncontent-length: 5", b"content-length: +5", b"content-length: ", b"content-length: 5, 5",
    b"transfer-encoding: chunked\r\ncontent-length: 5", b"transfer-encoding: gzip, chunked", b"transfer-encoding: x",
)  # fmt: skip
_CHUNKS: Final = (
    b"zz\r\n", b"-1\r\nabc\r\n", b"ffffffffffffffffff\r\n", b"5\r\n{\"a\n", b"2\r\n{}0\r\n\r\n",
    b"2;" + b"x" * 9000 + b"\r\n{}",
    b"0\r\nbad trailer\r\n\r\n", b"2\r\n{}\r\n", b"1\r\n\0\r\n0\r\n\r\n",
)  # fmt: skip
_OTHERS: Final = (
    b"content-encoding: gzip", b"content-encoding: \xff", b"inference-header-content-length: -1",
    b"inference-header-content-length: 99999999999", b"inference-header-content-length: \xb2",
    b"inference-header-content-length: 1", b"x-request-id: \xff\xfe", b"expect: 100-continue", b"no colon",
    b" folded: a", b"a: b\0c", b"upgrade: h2c\r\nconnection: upgrade", b"authorization: \xe9", b"x: " + b"y" * 70_000,
)  # fmt: skip
_LINES: Final = (
    b"POST /v1/embeddings HTTP/1.1", b"POST /embed HTTP/1.1", b"POST /v2/models/tiny/infer HTTP/1.1",
    b"POST /v2/models/%ff%00%2e/versions/9/infer HTTP/1.1", b"GET /v2/models/\xe9\xff HTTP/1.1", b"GET /v2 HTTP/9.9",
    b"PUT /embed HTTP/1.1", b"GET http://[::1/ HTTP/1.1", b"BREW /embed HTTP/1.1", b"GET  /v2", b"\x16\x03\x01\x02",
)  # fmt: skip


def frames(draw: Random) -> bytes:
    """What a client of gRPC says first, and then what none says."""
    begin = PREFACE + _frame(_SETTINGS, 0, 0, b"")
    match draw.randrange(6):
        case 0:
            return draw.choice([b"", PREFACE[: draw.randrange(24)], begin]) + draw.randbytes(draw.randrange(1, 300))
        case 1:
            noise = [
                _frame(
                    draw.randrange(_KINDS), draw.randrange(256), draw.choice([0, 1, 3, (1 << 31) - 1]),
                    draw.randbytes(draw.choice([0, 4, 5, 6, 8, 40])),
                )
                for _ in range(draw.randrange(1, 12))
            ]  # fmt: skip
            return begin + b"".join(noise)
        case 2:
            # Its length is more, or less, than what follows.
            frame = bytearray(_call(draw))
            frame[draw.randrange(3)] ^= draw.randrange(1, 256)
            return begin + bytes(frame)
        case 3:
            call = _call(draw)
            return begin + call[: draw.randrange(len(call))]
        case 4:
            pairs = [*_CALL, *draw.choices(_HEADERS_WRONG, k=draw.randrange(1, 4))]
            return begin + _call(draw, draw.sample(pairs, len(pairs)))
        case _:
            return begin + _call(draw)


def head(draw: Random) -> bytes:
    """A request line, headers, and what may be a body; whether the server has to wait for more, only it can tell."""
    headers = [b"host: a", b"connection: close"]
    headers += draw.choices(_OTHERS, k=draw.randrange(3))
    if draw.random() < 0.4:
        headers.append(b"transfer-encoding: chunked")
        body = draw.choice(_CHUNKS)
    else:
        headers.append(draw.choice(_LENGTHS))
        body = draw.choice([b"", b'{"input": [5]}', b'{"inputs": "a"}', draw.randbytes(40)])
    draw.shuffle(headers)
    return b"\r\n".join([draw.choice(_LINES), *headers, b"", body])


def _call(draw: Random, pairs: Sequence[tuple[bytes, bytes]] = _CALL) -> bytes:
    """A call whose message comes after a wrong prefix."""
    headers = _headers(pairs)
    frames = _frame(_HEADERS, _END_HEADERS if draw.random() < 0.9 else 0, 1, headers)
    if draw.random() < 0.1:
        frames += _frame(_CONTINUATION, 0, draw.choice([1, 3]), draw.randbytes(9))
    return frames + _frame(_DATA, _END_STREAM, 1, draw.choice(_PREFIXED) + _MESSAGE)


def _headers(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """RFC 7541, 6.2.2: literal fields that are not indexed, names new, no Huffman code."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in pairs)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    prefix = bytearray([127])
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
