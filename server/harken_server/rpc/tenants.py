"""Who asks: the tenant that a call names, where whoever sets it is trusted."""

import re
from collections.abc import Mapping
from typing import Final

import structlog

from harken_server.errors import BadValue, InvalidRequest
from harken_server.scheduling.waiting import ANYBODY, Tenant

log = structlog.get_logger()

TENANT: Final = "harken-tenant"
"""The metadata, or the header, that names it."""

MOST_TENANTS: Final = 64
"""Who have shares of their own; whoever comes later shares with those who give no name."""

_NAME: Final = re.compile(r"[!-~]{1,64}")


class Tenants:
    """Every tenant that has come since the server started. Belongs to the event loop's thread."""

    def __init__(self, trusted: bool, weights: Mapping[str, float]) -> None:
        """`weights`: by name; every other tenant has 1. Names are not even read unless they are `trusted`."""
        self._trusted: Final = trusted
        self._known: Final = {name: Tenant(name, weight, queue=name) for name, weight in weights.items()}

    def find(self, name: str) -> Tenant:
        """The tenant of this name. Raises InvalidRequest if it is no name."""
        if not self._trusted or not name:
            return ANYBODY
        tenant = self._known.get(name)
        if tenant is not None:
            return tenant
        if not _NAME.fullmatch(name):
            raise InvalidRequest((BadValue(TENANT, name, "1 to 64 printable ASCII characters, no spaces"),))
        if len(self._known) >= MOST_TENANTS:
            return Tenant(name)
        if len(self._known) == MOST_TENANTS - 1:
            log.warning("later tenants have no shares of their own", most=MOST_TENANTS)
        self._known[name] = Tenant(name, queue=name)
        return self._known[name]
