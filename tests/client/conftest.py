"""A fake server on a port of its own for each test that asks for one."""

from collections.abc import Iterator

import pytest
from client.fake_server import FakeEncoder, serving


@pytest.fixture
def fake() -> FakeEncoder:
    """The fake's script and its memory; change it before the first call."""
    return FakeEncoder()


@pytest.fixture
def target(fake: FakeEncoder) -> Iterator[str]:
    """host:port of a real gRPC server that answers with `fake`."""
    with serving(fake) as address:
        yield address
