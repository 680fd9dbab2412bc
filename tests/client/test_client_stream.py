"""Bulk encoding over EncodeStream, against a fake server over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from client.fake_server import BAD, BUSY, DRAINING, FakeEncoder, Refusal, free_port, serving, until, vector
from harken.v1 import encoder_pb2 as pb
from harken_client import (
    AsyncClient,
    DeadlineExceeded,
    HarkenError,
    InternalError,
    InvalidInput,
    Overloaded,
    StreamResult,
    Unavailable,
)


def texts(count: int) -> list[str]:
    return [f"text {i}" for i in range(count)]


async def collect(stream: AsyncIterator[StreamResult]) -> list[StreamResult]:
    return [result async for result in stream]


def assert_answers(results: list[StreamResult], expected: list[str]) -> None:
    assert [result.index for result in results] == list(range(len(expected)))
    assert [result.error for result in results] == [None] * len(expected)
    np.testing.assert_array_equal(
        np.stack([result.vector for result in results]), np.stack([vector(text) for text in expected])
    )


async def test_ten_thousand_inputs_come_back_in_order_with_a_bounded_number_under_way(
    fake: FakeEncoder, target: str
) -> None:
    given = returned = most = 0

    async def source() -> AsyncIterator[str]:
        nonlocal given, most
        for text in texts(10_000):
            given += 1
            most = max(most, given - returned)
            yield text

    results = []
    async with AsyncClient(target) as client:
        async for result in client.encode_stream(source()):
            returned += 1
            results.append(result)
    assert_answers(results, texts(10_000))
    assert most <= 256 + 2  # the window, the one that waits at its door and the one in the caller's hands
    assert fake.streams == 1


async def test_a_slow_caller_slows_the_source(target: str) -> None:
    given = 0

    def source() -> Iterator[str]:
        nonlocal given
        for text in texts(10_000):
            given += 1
            yield text

    async with AsyncClient(target) as client:
        results = client.encode_stream(source(), window=32)
        await anext(results)
        await asyncio.sleep(0.3)
        assert given <= 32 + 64 + 4  # the window and the reading ahead
        await results.aclose()


async def test_unordered_results_are_the_same_set(target: str) -> None:
    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream(texts(1000), ordered=False)]
    assert [result.index for result in results] != list(range(1000))
    assert_answers(sorted(results, key=lambda result: result.index), texts(1000))


async def test_ids_travel_with_their_inputs(target: str) -> None:
    inputs: list[tuple[str, str | list[int]]] = [("first", "a b"), ("second", [1, 2]), ("c", "d")]
    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream(inputs)]
    assert [(result.index, result.id) for result in results] == [(0, "first"), (1, "second"), (2, "c")]
    np.testing.assert_array_equal(results[1].vector, vector((1, 2)))


async def test_a_pair_of_token_ids_is_an_input_and_no_identified_one(target: str) -> None:
    async with AsyncClient(target) as client:
        (result,) = [result async for result in client.encode_stream([(101, 102)])]
    np.testing.assert_array_equal(result.vector, vector((101, 102)))


async def test_no_inputs_give_no_results(target: str) -> None:
    async with AsyncClient(target) as client:
        assert [result async for result in client.encode_stream([])] == []


async def test_options_open_the_stream(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target) as client:
        stream = client.encode_stream(["a"], model="tiny", output="tokens", truncate=True, priority="bulk")
        (result,) = [result async for result in stream]
    assert result.vector.shape == (3, 8)
    options = pb.EncodeOptions(output=pb.OUTPUT_TOKENS, truncation=pb.TRUNCATION_RIGHT, priority=pb.PRIORITY_BULK)
    assert fake.opened == [pb.StreamOpen(model="tiny", version=0, options=options)]


async def test_bad_inputs_are_results_and_stop_nothing(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts = {"bad": BAD}
    inputs = ["a", "bad", None, b"bytes", [2**70], "c" * 9000, "z"]
    async with AsyncClient(target, max_message_bytes=10_000) as client:
        stream = client.encode_stream(inputs)  # type: ignore[arg-type]  # what is tested
        results = [result async for result in stream]
    assert [
        (result.index, type(result.error), result.error and (result.error.index, result.error.reason))
        for result in results
    ] == [
        (0, type(None), None),
        (1, InvalidInput, (1, "BAD_INPUT")),
        (2, InvalidInput, (2, "INPUT_UNREADABLE")),
        (3, InvalidInput, (3, "INPUT_UNREADABLE")),
        (4, InvalidInput, (4, "INPUT_UNREADABLE")),
        (5, InvalidInput, (5, "INPUT_TOO_LARGE")),
        (6, type(None), None),
    ]
    with pytest.raises(InvalidInput, match="bad input"):
        _ = results[1].vector


@pytest.mark.parametrize("ending", [DRAINING, None])
async def test_a_stream_that_a_draining_server_ends_is_resumed_without_loss_or_duplicate(
    ending: Refusal | None, fake: FakeEncoder, target: str
) -> None:
    fake.refuse_streams_after = [(300, ending), (0, ending), (700, ending)]
    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream(texts(2000))]
    assert_answers(results, texts(2000))
    assert fake.answered.keys() == set(texts(2000))
    assert fake.streams == 4


async def test_a_server_that_leaves_input_by_input_is_left_for_a_new_stream(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts_once = {f"text {i}": DRAINING for i in range(100, 200)}
    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream(texts(1000))]
    assert_answers(results, texts(1000))
    assert fake.answered == dict.fromkeys(texts(1000), 1)
    assert fake.streams > 1


async def test_an_input_refused_for_now_is_sent_again_on_the_same_stream(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts_once = {f"text {i}": BUSY for i in range(0, 1000, 7)}
    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream(texts(1000))]
    assert_answers(results, texts(1000))
    assert fake.streams == 1


async def test_an_input_refused_again_and_again_fails_alone(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts = {"text 3": BUSY}
    async with AsyncClient(target, timeout_s=0.5) as client:
        results = [result async for result in client.encode_stream(texts(500))]
    failed = [result for result in results if result.error is not None]
    assert [(result.index, type(result.error)) for result in failed] == [(3, Overloaded)]
    assert len(results) == 500


async def test_a_server_that_asks_for_patience_is_asked_until_it_serves(fake: FakeEncoder, target: str) -> None:
    fake.refuse_streams_after = [(0, DRAINING)] * 10
    async with AsyncClient(target) as client:
        assert_answers(await collect(client.encode_stream(texts(10))), texts(10))
    assert fake.streams == 11


@pytest.mark.parametrize("refusal", [BUSY, DRAINING])
async def test_an_input_refused_for_now_is_sent_until_it_is_answered(
    refusal: Refusal, fake: FakeEncoder, target: str
) -> None:
    fake.refuse_texts = {"text 3": refusal}

    async def recover() -> None:
        await until(lambda: fake.refused["text 3"] >= 10)
        fake.refuse_texts = {}

    async with AsyncClient(target) as client:
        recovery = asyncio.create_task(recover())
        assert_answers(await collect(client.encode_stream(texts(10))), texts(10))
        await recovery


async def test_ends_without_any_answer_are_bounded_by_the_timeout(fake: FakeEncoder, target: str) -> None:
    fake.refuse_streams_after = [(0, DRAINING)] * 10_000
    async with AsyncClient(target, max_attempts=2) as client:
        with pytest.raises(HarkenError) as caught:
            await asyncio.wait_for(collect(client.encode_stream(texts(10), timeout_s=0.5)), 10)
    assert isinstance(caught.value, Unavailable)
    assert fake.streams > 2


async def test_one_attempt_means_one_stream_and_one_try_of_each_input(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts = {"text 3": BUSY}
    fake.refuse_streams_after = [(10, None), (0, DRAINING)]
    async with AsyncClient(target, max_attempts=1) as client:
        results = [result async for result in client.encode_stream(texts(10))]
        with pytest.raises(Unavailable):
            await collect(client.encode_stream(texts(10)))
    assert [result.index for result in results if result.error is not None] == [3]
    assert fake.refused == {"text 3": 1}
    assert fake.streams == 2


async def test_a_stream_that_fails_for_good_raises_after_what_was_answered(fake: FakeEncoder, target: str) -> None:
    fake.refuse_streams_after = [(5, Refusal(grpc.StatusCode.INTERNAL, "broken"))]
    five_came = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        for text in texts(5):
            yield text
        await five_came.wait()
        yield "text 5"

    async with AsyncClient(target) as client:
        stream = client.encode_stream(source())
        assert_answers([await anext(stream) for _ in range(5)], texts(5))
        five_came.set()
        with pytest.raises(InternalError, match="broken"):
            await anext(stream)
    assert fake.streams == 1


async def test_a_run_outlives_its_server_when_another_takes_its_place(fake: FakeEncoder) -> None:
    fake.refuse_streams_after = [(100, replace(DRAINING, retry_after_s=1.0))]
    successor = FakeEncoder()
    async with AsyncClient(f"127.0.0.1:{(port := free_port())}") as client:
        with serving(fake, port):
            running = asyncio.create_task(collect(client.encode_stream(texts(1000))))
            await until(lambda: fake.answered.total() == 100)
            await asyncio.sleep(0.1)  # the stream has ended, and the client waits as it was told
        with serving(successor, port):
            assert_answers(await running, texts(1000))
    assert (fake.answered.total(), successor.answered.total()) == (100, 900)


async def test_a_stream_to_nobody_ends_after_so_many_attempts() -> None:
    async with AsyncClient(f"127.0.0.1:{free_port()}", max_attempts=3) as client:
        with pytest.raises(Unavailable, match="Failed to connect"):
            await collect(client.encode_stream(texts(3), timeout_s=600))


async def test_a_server_that_starts_late_is_reached(fake: FakeEncoder) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", max_attempts=5) as client:
        running = asyncio.create_task(collect(client.encode_stream(texts(10))))
        await asyncio.sleep(0.1)
        with serving(fake, port):
            assert_answers(await running, texts(10))


async def test_what_a_cut_connection_leaves_unanswered_is_sent_again(fake: FakeEncoder) -> None:
    fake.pace_s = 0.001
    successor = FakeEncoder()
    async with AsyncClient(f"127.0.0.1:{(port := free_port())}") as client:
        with serving(fake, port):
            running = asyncio.create_task(collect(client.encode_stream(texts(1000))))
            await until(lambda: fake.answered.total() >= 100)
        with serving(successor, port):
            assert_answers(await running, texts(1000))
    # Of what both have answered, the first one's answers were lost with its connection.
    assert fake.answered.keys() | successor.answered.keys() == set(texts(1000))
    assert max(successor.answered.values()) == 1


async def test_the_wait_for_a_server_that_is_gone_is_bounded_by_the_timeout(fake: FakeEncoder) -> None:
    fake.pace_s = 0.001
    client = AsyncClient(f"127.0.0.1:{(port := free_port())}")
    with serving(fake, port):
        running = asyncio.create_task(collect(client.encode_stream(texts(1000), timeout_s=1)))
        await until(lambda: fake.answered.total() >= 100)
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await asyncio.wait_for(running, 30)
    await client.close()


async def test_silence_is_bounded_by_the_timeout(fake: FakeEncoder, target: str) -> None:
    fake.stall_streams = True
    async with AsyncClient(target) as client:
        with pytest.raises(DeadlineExceeded, match="no answer for"):
            async for _ in client.encode_stream(texts(3), timeout_s=0.3):
                pass


async def test_a_source_that_waits_is_not_silence(target: str) -> None:
    async def source() -> AsyncIterator[str]:
        yield "text 0"
        await asyncio.sleep(0.5)
        yield "text 1"

    async with AsyncClient(target) as client:
        results = [result async for result in client.encode_stream(source(), timeout_s=0.2)]
    assert_answers(results, texts(2))


async def test_an_exception_of_the_source_reaches_the_caller(target: str) -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise LookupError("no more texts")

    async with AsyncClient(target) as client:
        with pytest.raises(LookupError, match="no more texts"):
            async for _ in client.encode_stream(source()):
                pass


async def test_a_caller_that_leaves_early_leaves_nothing_behind(target: str) -> None:
    async with AsyncClient(target) as client:
        stream = client.encode_stream(texts(10_000))
        await anext(stream)
        await stream.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert [task.get_coro() for task in others if "harken_client" in repr(task)] == []
        np.testing.assert_array_equal(await client.encode(["still works"]), [vector("still works")])


async def test_a_single_text_and_a_window_beyond_the_servers_are_refused(target: str) -> None:
    async with AsyncClient(target) as client:
        with pytest.raises(TypeError, match=r"encode_stream\(\[text\]\)"):
            await anext(client.encode_stream("text"))
        with pytest.raises(ValueError, match="between 1 and 256, not 257"):
            await anext(client.encode_stream(["text"], window=257))
