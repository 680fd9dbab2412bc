"""Arguments that cannot be meant are told where they are given, by their names."""

import asyncio
from typing import Any

import numpy as np
import pytest
from client.fake_server import FakeEncoder, free_port, serving, vector
from harken_client import AsyncClient, Chunking, Client, DeadlineExceeded, Unavailable
from harken_client.checks import checked_target


@pytest.mark.parametrize(
    "target",
    ["", "localhost", "localhost:", ":8001", "host:notaport", "host:0", "host:99999", "http://host:8001", "a b:1",
     "dns:///", "::1:8001x", "[::1]"],
)  # fmt: skip
def test_a_target_that_names_no_port_or_no_host_is_refused(target: str) -> None:
    for make in (AsyncClient, Client):
        with pytest.raises(ValueError, match="target is HOST:PORT"):
            make(target)


@pytest.mark.parametrize(
    "target",
    ["localhost:8001", "10.0.0.1:1", "[::1]:65535", "[fe80::1%eth0]:80", "dns:///harken-headless:8001", "unix:/tmp/a",
     "ipv4:10.0.0.1:8001,10.0.0.2:8001", "ipv6:[::1]:8001"],
)  # fmt: skip
def test_what_grpc_resolves_is_left_as_it_is(target: str) -> None:
    assert checked_target(target) == target


@pytest.mark.parametrize(
    ("version", "error"), [(-1, ValueError), (1 << 32, ValueError), (True, TypeError), ("1", TypeError)]
)
async def test_a_number_that_no_message_holds_is_named(version: Any, error: type[Exception], target: str) -> None:
    with pytest.raises(error, match="version is"):
        AsyncClient(target, version=version)
    async with AsyncClient(target) as client:
        with pytest.raises(error, match="version is"):
            await client.encode(["a"], version=version)
        with pytest.raises(error, match="dimensions is"):
            await client.encode(["a"], dimensions=version)
        with pytest.raises(error, match="top_k is"):
            await client.similarity("a", ["b"], top_k=version)
        with pytest.raises(error, match="overlap_tokens is"):
            await client.encode(["a"], chunking=Chunking(version))


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (1 << 40, ValueError), (True, TypeError), ("1", TypeError), (1.5, TypeError)]
)
async def test_a_number_that_bounds_something_is_named(value: Any, error: type[Exception], target: str) -> None:
    for name in ("max_inputs", "max_attempts", "max_message_bytes"):
        with pytest.raises(error, match=f"{name} is"):
            AsyncClient(target, **{name: value})
    async with AsyncClient(target) as client:
        with pytest.raises(error, match="window is"):
            await anext(client.encode_stream(["a"], window=value))
        with pytest.raises(error, match="last is"):
            await client.explain_batches(value)


def test_what_is_wrong_with_a_number_is_told_with_its_limits() -> None:
    with pytest.raises(ValueError, match=r"^version is between 0 and 4294967295, not -1$"):
        AsyncClient(version=-1)
    with pytest.raises(TypeError, match=r"^version is an integer, not True$"):
        AsyncClient(version=True)


async def test_integers_of_numpy_are_integers(fake: FakeEncoder, target: str) -> None:
    numbers: list[Any] = [np.int64(number) for number in (1, 2, 3, 4)]
    one, two, three, four = numbers
    async with AsyncClient(target, version=three, max_inputs=one) as client:
        await client.encode(["a", "b"], dimensions=four, chunking=Chunking(two))
        await client.similarity("a", ["b"], top_k=one)
    assert [call.version for call in fake.calls] == [3, 3]
    assert [call.options.dimensions for call in fake.calls] == [4, 4]
    assert [call.options.chunking.overlap_tokens for call in fake.calls] == [2, 2]
    assert [call.top_k for call in fake.similarities] == [1]


async def test_half_a_character_is_named_with_its_place(target: str) -> None:
    async with AsyncClient(target) as client:
        with pytest.raises(ValueError, match=r"inputs\[1\]: a text holds half of a character, '\\ud800' at 2"):
            await client.encode(["a", "ab\ud800"])
        with pytest.raises(ValueError, match=r"candidates\[0\]: a text holds half"):
            await client.similarity("a", ["\udfff"])
        with pytest.raises(ValueError, match=r"query: a text holds half"):
            await client.similarity("\udfff", ["a"])
        with pytest.raises(TypeError, match=r"query: an input is a str or a sequence"):
            await client.similarity(b"a", ["a"])
        results = [result async for result in client.encode_stream(["a", "\ud800", "b"])]
        assert [result.error is None for result in results] == [True, False, True]


async def test_an_id_with_half_a_character_fails_alone(target: str) -> None:
    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream([("x", "a"), ("y\ud800", "b"), ("z", "c")])]
    assert [result.id for result in results] == ["x", "y\ud800", "z"]
    assert [result.error is None for result in results] == [True, False, True]
    assert str(results[1].error) == (
        "INVALID_ARGUMENT (INPUT_UNREADABLE): an id holds half of a character, '\\ud800' at 1"
    )


async def test_a_model_named_with_half_a_character_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"^model holds half of a character"):
        AsyncClient(target, model="\udcff")
    async with AsyncClient(target) as client:
        with pytest.raises(ValueError, match=r"^model holds half of a character"):
            await client.encode(["a"], model="\udcff")


def test_a_client_of_another_event_loop_says_so(target: str) -> None:
    client = AsyncClient(target)
    assert asyncio.run(client.encode(["a"])).shape == (1, 8)
    with pytest.raises(RuntimeError, match="belongs to the event loop that used it first"):
        asyncio.run(client.encode(["a"]))


@pytest.mark.parametrize("target", ["127.0.0.1:1", "no-such-host.invalid:8001"])
async def test_the_deadline_ends_the_wait_for_a_server(target: str) -> None:
    async with AsyncClient(target, wait_for_ready=True) as client:
        with pytest.raises(DeadlineExceeded):
            await client.encode(["a"], timeout_s=0.5)


async def test_calls_wait_for_a_server_if_they_are_told_to(fake: FakeEncoder) -> None:
    port = free_port()
    target = f"127.0.0.1:{port}"
    async with AsyncClient(target) as impatient, AsyncClient(target, wait_for_ready=True, timeout_s=60) as patient:
        with pytest.raises(Unavailable):
            await impatient.encode(["a"])
        waits = asyncio.create_task(patient.encode(["a"]))
        streams = asyncio.create_task(anext(patient.encode_stream(["b"])))
        await asyncio.sleep(2.5)  # longer than all attempts
        assert not waits.done()
        with serving(fake, port):
            np.testing.assert_array_equal(await waits, [vector("a")])
            np.testing.assert_array_equal((await streams).vector, vector("b"))
