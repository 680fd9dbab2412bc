"""Arguments that are wrong are told where they are given, by their names."""

import operator
import re
from typing import Final, SupportsIndex

# Schemes that gRPC resolves; what follows them is gRPC's to judge.
_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")
_HOST: Final = re.compile(r"[^\s:/\[\]]+|\[[0-9A-Fa-f:.%\w]+\]")
_TENANT: Final = re.compile(r"[!-~]{1,64}")

MOST_COUNTED: Final = 2**32 - 1
"""What a message can hold."""


def checked_target(target: str) -> str:
    """Raises ValueError unless it is HOST:PORT, [IPV6]:PORT, or a name of gRPC's with its scheme."""
    if target.startswith(_SCHEMES) and not target.endswith((":", "/")):
        return target
    host, _, port = target.rpartition(":")
    if not _HOST.fullmatch(host) or not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        wanted = "HOST:PORT with a port from 1 to 65535, or a name such as dns:///HOST:PORT"
        raise ValueError(f"target is {wanted}, not {target!r:.200}")
    return target


def checked_tenant(tenant: str) -> str:
    """Raises ValueError unless it is a name that metadata may hold, or empty."""
    if tenant and not _TENANT.fullmatch(tenant):
        raise ValueError(f"tenant is 1 to 64 printable ASCII characters without spaces, not {tenant!r:.100}")
    return tenant


def checked_text(what: str, text: str) -> str:
    """Raises ValueError if it holds a lone surrogate, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(half_a_character(what, error)) from None
    return text


def half_a_character(what: str, error: UnicodeEncodeError) -> str:
    return f"{what} holds half of a character, {error.object[error.start]!r} at {error.start}"


def checked_count(name: str, value: SupportsIndex, least: int = 0, most: int = MOST_COUNTED) -> int:
    """Raises TypeError unless it is an integer, Python's or numpy's; ValueError unless it is from `least` to `most`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is an integer, not {value!r:.60}") from None
    if not least <= count <= most:
        raise ValueError(f"{name} is between {least} and {most}, not {count}")
    return count
