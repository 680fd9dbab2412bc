"""Arguments that are wrong are told where they are given, by their names."""

import re
from typing import Final

# Schemes that gRPC resolves; what follows them is gRPC's to judge.
_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")
_HOST: Final = re.compile(r"[^\s:/\[\]]+|\[[0-9A-Fa-f:.%\w]+\]")
_MOST: Final = 2**32 - 1


def checked_target(target: str) -> str:
    """Raises ValueError unless it is HOST:PORT, [IPV6]:PORT, or a name of gRPC's with its scheme."""
    if target.startswith(_SCHEMES) and not target.endswith((":", "/")):
        return target
    host, _, port = target.rpartition(":")
    if not _HOST.fullmatch(host) or not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        wanted = "HOST:PORT with a port from 1 to 65535, or a name such as dns:///HOST:PORT"
        raise ValueError(f"target is {wanted}, not {target!r:.200}")
    return target


def checked_count(name: str, value: int, least: int = 0) -> int:
    """Raises TypeError or ValueError unless it is an integer from `least` to what a message can hold."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an integer, not {value!r:.60}")
    if not least <= value <= _MOST:
        raise ValueError(f"{name} is a number from {least} to {_MOST}, not {value}")
    return value
