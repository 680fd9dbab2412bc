"""When certificates end, and whether gRPC's library can use their keys.

`ssl` tells it only of a peer that it has verified, so DER is read here: X.690 8.1 for its lengths, RFC 5280 4.1 for
where the fields stand. OpenSSL has taken the same bytes before, so that nothing here decides whom to trust.
"""

import re
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END")
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_VALIDITY: Final = 3
"""After the serial number, the algorithm of the signature, and the issuer."""
_KEY: Final = 5
"""After the subject."""

_EC: Final = bytes.fromhex("2a8648ce3d0201")
_CURVES: Final = (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b81040022"), bytes.fromhex("2b81040023"))
"""P-256, P-384, P-521 (RFC 5480 2.1.1.1)."""
_UNKNOWN: Final = (bytes.fromhex("2b6571"), bytes.fromhex("2a8648ce380401"))
"""Ed448 (RFC 8410 3) and DSA (RFC 3279 2.3.2)."""


def first_end_s(pem: bytes) -> float | None:
    """The earliest end of all certificates in a PEM file, in seconds since 1970. None if it has none to read."""
    ends_s = [_end_s(block) for block in _PEM.findall(pem)]
    return min((end_s for end_s in ends_s if end_s is not None), default=None)


def own_end_s(pem: bytes) -> float | None:
    """As `first_end_s`, of the first certificate alone: a server's own, before those between it and its CA."""
    return next((_end_s(block) for block in _PEM.findall(pem)), None)


def grpc_can_use(pem: bytes) -> bool:
    """Whether the key of the first certificate is of a kind that BoringSSL, which is gRPC's, knows: fewer than OpenSSL.

    One that cannot be read passes.
    """
    try:
        (_, algorithm), _ = _elements(_fields(b64decode(_PEM.findall(pem)[0]))[_KEY])
        (_, kind), *parameters = _elements(algorithm)
    except (ValueError, IndexError, StopIteration):
        return True
    return parameters[0][1] in _CURVES if kind == _EC and parameters else kind not in _UNKNOWN


def _end_s(block: bytes) -> float | None:
    try:
        return _end(b64decode(block)).timestamp()
    except (ValueError, IndexError, StopIteration):
        return None


def _fields(der: bytes) -> list[bytes]:
    """Of a certificate, without its version. Raises IndexError or StopIteration if there are none."""
    _, certificate = next(_elements(der))
    _, to_be_signed = next(_elements(certificate))
    return [content for tag, content in _elements(to_be_signed) if tag != _VERSION]


def _end(der: bytes) -> datetime:
    """`notAfter`. Raises ValueError, IndexError or StopIteration if that is not where it should be."""
    (_, _), (tag, end) = _elements(_fields(der)[_VALIDITY])
    text = end.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280 4.1.2.5.1: two digits from 50 on are of the century before; strptime draws the line at 69.
        text = f"{'19' if text[:2] >= '50' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element in turn."""
    position = 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[position : position + size], "big")
            position += size
        yield tag, der[position : position + length]
        position += length
