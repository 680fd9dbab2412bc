"""EncodeStream: answers as they are ready, back-pressure, and bad inputs that end nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from support.calls import Refused, ids, refused, refused_result, stub, text, vector
from support.server import RunningServer, running_server

STREAM = "/harken.v1.Encoder/EncodeStream"


def open_stream(channel: grpc.aio.Channel, timeout_s: float | None = None) -> Any:
    """A stream of raw bytes; gRPC's types know nothing of those."""
    method: Any = channel.stream_stream(STREAM)
    return method(timeout=timeout_s)


def given(id_: str, one: pb.Input) -> pb.EncodeStreamRequest:
    return pb.EncodeStreamRequest(input=pb.StreamInput(id=id_, input=one))


async def answers_of(server: RunningServer, *messages: pb.EncodeStreamRequest | bytes) -> list[pb.EncodeStreamResponse]:
    async with grpc.aio.insecure_channel(server.target) as channel:
        call = open_stream(channel, timeout_s=60)
        for message in messages:
            await call.write(message if isinstance(message, bytes) else message.SerializeToString())
        await call.done_writing()
        answers = [pb.EncodeStreamResponse.FromString(raw) async for raw in call]
        assert await call.code() is grpc.StatusCode.OK
        return answers


async def answered_and_refused(call: Any) -> tuple[int, Refused]:
    """How many vectors come before the stream ends as it should not if it were complete."""
    answered = 0
    try:
        while (raw := await call.read()) is not grpc.aio.EOF:
            answer = pb.EncodeStreamResponse.FromString(raw)
            assert answer.result.HasField("embedding"), answer.result.error
            answered += 1
    except grpc.aio.AioRpcError as error:
        return answered, refused(error)
    pytest.fail("the stream ended as if it were complete")


async def test_every_input_is_answered_once_by_id_and_equals_encode(minilm_server: RunningServer) -> None:
    inputs = [f"number {index} " * (index % 40 + 1) for index in range(300)]
    answers = await answers_of(minilm_server, *(given(f"id-{index}", *text(one)) for index, one in enumerate(inputs)))
    assert sorted(answer.index for answer in answers) == list(range(300))
    assert all(answer.id == f"id-{answer.index}" for answer in answers)
    assert [answer.index for answer in answers] != list(range(300))
    encoded = stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text(*inputs))).results
    for answer in answers:
        np.testing.assert_allclose(vector(answer.result), vector(encoded[answer.index]), atol=1e-5, rtol=0)
        timings = answer.result.timings
        assert timings.total_ns == (
            timings.tokenize_ns + timings.queue_ns + timings.collate_ns + timings.compute_ns + timings.scatter_ns
        )


async def test_a_bad_input_is_answered_by_itself_and_ends_nothing(minilm_server: RunningServer) -> None:
    bad_text = given("bad-text", *text("abcd")).SerializeToString().replace(b"abcd", b"ab\xff\xfe")
    answers = await answers_of(
        minilm_server,
        b"\xff\xff",
        bad_text,
        given("empty", *text("")),
        given("long", *text("word " * 900)),
        given("ids", *ids([1, 40_000])),
        pb.EncodeStreamRequest(open=pb.StreamOpen()),
        pb.EncodeStreamRequest(),
        given("x" * 257, *text("fine")),
        given("good", *text("fine")),
    )
    by_index = sorted(answers, key=lambda answer: answer.index)
    assert [answer.id for answer in by_index] == ["", "bad-text", "empty", "long", "ids", "", "", "", "good"]
    assert [refused_result(answer.result).reason for answer in by_index[:-1]] == [
        "NOT_PROTOBUF", "NOT_UTF8", "NO_TOKENS", "SEQUENCE_TOO_LONG", "TOKEN_OUT_OF_RANGE", "OUT_OF_PLACE",
        "NO_CONTENT", "TOO_MANY_BYTES",
    ]  # fmt: skip
    assert refused_result(by_index[1].result).fields == ("input.input.text",)
    assert vector(by_index[-1].result).shape == (384,)


async def test_open_holds_for_the_whole_stream(minilm_server: RunningServer) -> None:
    options = pb.EncodeOptions(output=pb.OUTPUT_TOKENS, truncation=pb.TRUNCATION_RIGHT)
    opening = pb.EncodeStreamRequest(open=pb.StreamOpen(model="all-MiniLM-L6-v2", version=1, options=options))
    answers = await answers_of(minilm_server, opening, given("a", *text("word " * 900)), given("b", *text("word")))
    by_id = {answer.id: answer for answer in answers}
    assert vector(by_id["a"].result).shape == (512, 384)
    assert by_id["a"].result.truncated
    assert vector(by_id["b"].result).shape == (3, 384)
    assert [by_id["a"].index, by_id["b"].index] == [0, 1]


@pytest.mark.parametrize(
    ("opening", "code", "reason"),
    [
        (pb.StreamOpen(model="absent"), "NOT_FOUND", "MODEL_NOT_FOUND"),
        (pb.StreamOpen(options=pb.EncodeOptions(dimensions=385)), "INVALID_ARGUMENT", "BAD_VALUE"),
        (
            pb.StreamOpen(options=pb.EncodeOptions(chunking=pb.Chunking(overlap_tokens=510))),
            "INVALID_ARGUMENT",
            "BAD_VALUE",
        ),
    ],
)
async def test_an_open_that_cannot_hold_ends_the_stream(
    minilm_server: RunningServer, opening: pb.StreamOpen, code: str, reason: str
) -> None:
    async with grpc.aio.insecure_channel(minilm_server.target) as channel:
        call = open_stream(channel, timeout_s=10)
        await call.write(pb.EncodeStreamRequest(open=opening).SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        answer = refused(error.value)
        assert (answer.code, answer.reason) == (code, reason)


async def test_a_client_that_never_reads_is_no_longer_read_and_costs_the_others_nothing(tiny_models: Path) -> None:
    """100,000 inputs, of which the server reads as many as the windows of HTTP/2 take answers for, and no more."""
    with running_server(tiny_models, "--max-stream-unanswered", "64") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel, timeout_s=60)
            opening = pb.StreamOpen(options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS))
            await call.write(pb.EncodeStreamRequest(open=opening).SerializeToString())
            message = given("i", *ids([5] * 100)).SerializeToString()

            async def write() -> None:
                for _ in range(100_000):
                    await call.write(message)

            writing = asyncio.create_task(write())
            accepted = -1.0
            while (now := await asyncio.to_thread(server.total, "harken_accepted_total")) != accepted:
                accepted = now
                await asyncio.sleep(1.0)
            held_bytes = server.total("harken_memory_bytes", kind="rss")
            encoder = encoder_pb2_grpc.EncoderStub(channel)
            for _ in range(200):
                (result,) = (await encoder.Encode(pb.EncodeRequest(inputs=ids([1, 2, 3])), timeout=10)).results
                assert result.tokens == 3
            await asyncio.sleep(2.0)
            assert server.total("harken_accepted_total") == accepted + 200
            assert accepted < 5_000
            assert server.total("harken_memory_bytes", kind="rss") < 1.05 * held_bytes
            writing.cancel()
            call.cancel()
        server.wait_until(
            "the stream's end",
            lambda: server.total("harken_requests_total", method="EncodeStream", code="CANCELLED") == 1,
        )
        assert server.total("harken_accepted_total") == server.total("harken_finished_total")


async def test_at_most_the_stated_number_of_inputs_is_unanswered(minilm_models: Path) -> None:
    """A stream of long inputs, each far slower to compute than to send: those beyond the bound are not read."""
    with running_server(minilm_models, "--max-stream-unanswered", "10", "--warmup-s", "1") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel, timeout_s=60)
            for index in range(200):
                await call.write(given(str(index), *ids([101] * 512)).SerializeToString())
            for _ in range(20):
                waiting = server.metrics()
                accepted = sum(v for k, v in waiting.items() if k.startswith("harken_accepted_total"))
                finished = sum(v for k, v in waiting.items() if k.startswith("harken_finished_total"))
                assert accepted - finished <= 10
                await asyncio.sleep(0.05)
            assert server.total("harken_accepted_total") > 0
            call.cancel()


async def test_a_stream_that_stalls_is_ended_by_the_cap(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-request-s", "1") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel)
            opening = pb.StreamOpen(options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS))
            await call.write(pb.EncodeStreamRequest(open=opening).SerializeToString())
            message = given("i", *ids([5] * 128)).SerializeToString()

            async def write() -> None:
                while True:
                    await call.write(message)

            writing = asyncio.create_task(write())
            await asyncio.to_thread(
                server.wait_until,
                "the cap",
                lambda: server.total("harken_requests_total", method="EncodeStream", code="DEADLINE_EXCEEDED") == 1,
            )
            assert server.total("harken_accepted_total") == server.total("harken_finished_total")
            writing.cancel()
            call.cancel()


async def test_an_idle_stream_outlives_the_cap_and_each_input_has_its_own(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-request-s", "0.5") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel)
            for index in range(3):
                await call.write(given(str(index), *ids([5])).SerializeToString())
                answer = pb.EncodeStreamResponse.FromString(await call.read())
                assert (answer.id, answer.result.HasField("embedding")) == (str(index), True)
                await asyncio.sleep(0.4)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF


async def test_a_client_that_goes_away_while_its_answers_cannot_leave_has_cancelled(minilm_models: Path) -> None:
    with running_server(minilm_models) as server:
        wide = pb.StreamOpen(options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS))
        for clients in range(5):
            async with grpc.aio.insecure_channel(server.target) as channel:
                call = open_stream(channel, timeout_s=60)
                await call.write(pb.EncodeStreamRequest(open=wide).SerializeToString())
                for index in range(12):
                    await call.write(given(str(index), *ids([101] * 500)).SerializeToString())
                # Of the 12 answers, 768 kB each, the first fills what a client that does not read lets through.
                await asyncio.sleep(0.4 + 0.2 * clients)
                call.cancel()
        await asyncio.to_thread(server.wait_until, "ends", lambda: server.total("harken_requests_total") == 5)
        assert server.total("harken_requests_total", code="CANCELLED") == 5


async def test_a_stream_in_a_drain_answers_what_was_read_and_ends_as_unavailable(minilm_models: Path) -> None:
    with running_server(minilm_models, "--warmup-s", "1") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel, timeout_s=60)
            for index in range(400):
                await call.write(given(str(index), *ids([101] * 100)).SerializeToString())
            await asyncio.to_thread(server.wait_until, "work", lambda: server.total("harken_accepted_total") > 0)
            server.terminate()
            answered, draining = await answered_and_refused(call)
            assert (draining.code, draining.reason) == ("UNAVAILABLE", "SERVER_DRAINING")
            assert draining.retry_after_s is not None
            assert answered > 0
        assert server.wait_exit() == 0


async def test_a_stream_as_old_as_a_connection_may_be_answers_what_was_read_and_ends_as_unavailable(
    minilm_models: Path,
) -> None:
    with running_server(minilm_models, "--max-connection-age-s", "2", "--warmup-s", "1") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel, timeout_s=60)
            for index in range(250):
                await call.write(given(str(index), *ids([101] * 100)).SerializeToString())
            answered, old = await answered_and_refused(call)
            assert (old.code, old.reason, old.retry_after_s, old.pushback_ms) == (
                "UNAVAILABLE", "STREAM_TOO_OLD", 0.0, "1",
            )  # fmt: skip
            assert old.message == (
                "the stream is 2 s old, the server's max_connection_age_s; send the rest on a new one"
            )
            assert answered == server.total("harken_accepted_total")
            assert server.total("harken_rejected_total") == 0


async def test_a_stream_that_was_complete_before_a_drain_ends_well(minilm_models: Path) -> None:
    with running_server(minilm_models, "--warmup-s", "1") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = open_stream(channel, timeout_s=60)
            for index in range(60):
                await call.write(given(str(index), *ids([101] * 100)).SerializeToString())
            await call.done_writing()
            await asyncio.to_thread(server.wait_until, "all", lambda: server.total("harken_accepted_total") == 60)
            server.terminate()
            assert len([raw async for raw in call]) == 60
            assert await call.code() is grpc.StatusCode.OK
        assert server.wait_exit() == 0


async def _many(count: int) -> AsyncIterator[pb.EncodeStreamRequest]:
    for index in range(count):
        yield given(str(index), *ids([5] * (index % 100 + 1)))


async def test_two_streams_and_single_calls_share_the_server(tiny_server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(tiny_server.target) as channel:
        encoder = encoder_pb2_grpc.EncoderStub(channel)

        async def drain() -> list[str]:
            return [answer.id async for answer in encoder.EncodeStream(_many(2000), timeout=120)]

        async def single() -> int:
            started_s = time.monotonic()
            count = 0
            while time.monotonic() - started_s < 0.5:
                (result,) = (await encoder.Encode(pb.EncodeRequest(inputs=ids([7, 8])), timeout=30)).results
                count += result.tokens == 2
            return count

        first, second, singles = await asyncio.gather(drain(), drain(), single())
    assert sorted(first) == sorted(second) == sorted(str(index) for index in range(2000))
    assert singles > 0
