"""When certificates end: the one field of theirs that a metric tells.

`ssl` tells it only of a peer that it has verified, so DER is read here: X.690 8.1 for its lengths, RFC 5280 4.1 for
where the field stands. OpenSSL has taken the same bytes before, so that nothing here decides whom to trust.
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


def first_end_s(pem: bytes) -> float | None:
    """The earliest end of all certificates in a PEM file, in seconds since 1970. None if it has none to read."""
    ends_s = []
    for block in _PEM.findall(pem):
        try:
            ends_s.append(_end(b64decode(block)).timestamp())
        except (ValueError, IndexError, StopIteration):
            continue
    return min(ends_s, default=None)


def _end(der: bytes) -> datetime:
    """`notAfter`. Raises ValueError, IndexError or StopIteration if that is not where it should be."""
    _, certificate = next(_elements(der))
    _, to_be_signed = next(_elements(certificate))
    fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
    (_, _), (tag, end) = _elements(fields[_VALIDITY])
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
