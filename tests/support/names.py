"""A name server on loopback, whose answers change as pods come and go."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnslib import QTYPE, RR, A
from dnslib.server import BaseResolver, DNSLogger, DNSServer


class Names(BaseResolver):  # type: ignore[misc]  # dnslib ships no types
    """One name, and the addresses that stand behind it now."""

    name = "harken-headless.test"

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.asked = 0
        self.port = 0

    def target(self, port: int) -> str:
        """As a gRPC channel takes it: this name server's authority, the name, and the port of the servers."""
        return f"dns://127.0.0.1:{self.port}/{self.name}:{port}"

    def resolve(self, request: Any, handler: object) -> Any:
        """See BaseResolver. It has no addresses of IPv6."""
        reply = request.reply()
        if request.q.qname == self.name and request.q.qtype == QTYPE.A:
            self.asked += 1
            for address in list(self.addresses):
                reply.add_answer(RR(self.name, QTYPE.A, rdata=A(address), ttl=1))
        return reply


@contextmanager
def names(*addresses: str) -> Iterator[Names]:
    """A name server that knows these."""
    known = Names(list(addresses))
    server = DNSServer(known, address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply"))
    known.port = server.server.server_address[1]
    server.start_thread()
    try:
        yield known
    finally:
        server.stop()
        server.server.server_close()
