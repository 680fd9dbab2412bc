"""Several servers behind one name, and what outlives a connection: one that grows old, drains, or is cut."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from harken_client import AsyncClient
from support.server import RunningServer, running_server

GOING = [signal.SIGTERM, signal.SIGKILL]


def behind_one_name(*servers: RunningServer) -> str:
    return f"ipv4:{','.join(server.target for server in servers)}"


def sequence(index: int) -> list[int]:
    return [1 + index % 900] * (1 + index % 60)


async def sequences(most: int, enough: Callable[[], bool]) -> AsyncIterator[list[int]]:
    """Inputs until `enough`, asked now and then, or `most`."""
    for index in range(most):
        if index % 100 == 99 and await asyncio.to_thread(enough):
            return
        yield sequence(index)


async def answered_in_order(client: AsyncClient, inputs: AsyncIterator[list[int]]) -> int:
    """How many inputs the stream had. Each is answered once, in order, with its own vector."""
    vectors: list[np.ndarray] = []
    async for result in client.encode_stream(inputs):
        assert result.error is None
        assert result.index == len(vectors)
        vectors.append(result.vector)
    some = range(0, len(vectors), max(1, len(vectors) // 50))
    expected = await client.encode([sequence(index) for index in some])
    np.testing.assert_allclose(np.stack([vectors[index] for index in some]), expected, atol=1e-5, rtol=0)
    return len(vectors)


async def test_a_stream_outlives_the_age_of_its_connections(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-connection-age-s", "1") as server:

        def ended() -> float:
            return server.total("harken_requests_total", method="EncodeStream", code="UNAVAILABLE")

        async with AsyncClient(server.target) as client:
            count = await answered_in_order(client, sequences(1_000_000, lambda: ended() >= 4))
        assert ended() >= 4
        # Each input was computed once, but for those that stood in the window when a stream ended.
        assert server.total("harken_accepted_total") == server.total("harken_finished_total")
        assert server.total("harken_accepted_total") <= count + 50 + ended() * 256
        assert server.total("harken_rejected_total") == 0


async def test_no_call_fails_when_connections_grow_old(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-connection-age-s", "0.3") as server:
        async with AsyncClient(server.target) as client:
            ends_s = asyncio.get_running_loop().time() + 2

            async def caller(index: int) -> None:
                while asyncio.get_running_loop().time() < ends_s:
                    assert (await client.encode([sequence(index)])).shape == (1, 32)

            await asyncio.gather(*(caller(index) for index in range(16)))


@pytest.mark.parametrize("number", GOING)
async def test_calls_are_spread_over_two_servers_and_none_fails_when_one_goes(
    number: signal.Signals, tiny_models: Path
) -> None:
    with running_server(tiny_models) as first, running_server(tiny_models) as second:
        gone = asyncio.Event()

        async def caller(client: AsyncClient, index: int) -> None:
            while not gone.is_set():
                assert (await client.encode([sequence(index)])).shape == (1, 32)

        async with AsyncClient(behind_one_name(first, second)) as client:
            callers = [asyncio.create_task(caller(client, index)) for index in range(16)]
            both = [first, second]
            await asyncio.to_thread(
                first.wait_until,
                "load on both",
                lambda: min(server.total("harken_accepted_total") for server in both) > 100,
            )
            first.process.send_signal(number)
            await asyncio.to_thread(first.wait_exit)
            later = await asyncio.to_thread(second.total, "harken_accepted_total") + 200
            await asyncio.to_thread(
                second.wait_until, "all load on one", lambda: second.total("harken_accepted_total") > later
            )
            gone.set()
            await asyncio.gather(*callers)


@pytest.mark.parametrize("number", GOING)
async def test_a_stream_goes_on_at_the_second_server_when_the_first_goes(
    number: signal.Signals, tiny_models: Path
) -> None:
    with running_server(tiny_models) as first, running_server(tiny_models) as second:
        gone: list[RunningServer] = []

        def enough() -> bool:
            """Once the one that has the stream has answered some, it goes; the other must answer as many."""
            if not gone:
                gone.extend(server for server in (first, second) if server.total("harken_accepted_total") > 500)
                for server in gone:
                    server.process.send_signal(number)
                return False
            other = second if gone == [first] else first
            return other.total("harken_accepted_total") > 1000

        async with AsyncClient(behind_one_name(first, second)) as client:
            await answered_in_order(client, sequences(1_000_000, enough))
        assert len(gone) == 1
        await asyncio.to_thread(gone[0].wait_exit)


async def test_a_stream_waits_for_a_server_that_was_killed_and_comes_back(tiny_models: Path) -> None:
    with ExitStack() as servers:
        first = servers.enter_context(running_server(tiny_models))
        port = str(first.grpc_port)
        successors: list[RunningServer] = []

        def enough() -> bool:
            if not successors and first.total("harken_accepted_total") > 500:
                first.process.kill()
                first.wait_exit()
                successors.append(servers.enter_context(running_server(tiny_models, "--grpc-port", port)))
            return bool(successors) and successors[0].total("harken_accepted_total") > 1000

        async with AsyncClient(first.target) as client:
            await answered_in_order(client, sequences(1_000_000, enough))
        assert successors
