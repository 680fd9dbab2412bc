"""Retries, deadlines, models, health and closing, against a fake server over real gRPC."""

import asyncio
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from client.fake_server import BUSY, DRAINING, FakeEncoder, Refusal, free_port, serving, vector
from grpc_health.v1 import health_pb2
from harken_client import (
    AsyncClient,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    ModelInfo,
    ModelNotFound,
    Overloaded,
    Unavailable,
)


@pytest.mark.parametrize("refusal", [BUSY, DRAINING])
async def test_a_refusal_with_retry_info_is_repeated_after_its_delay(
    refusal: Refusal, fake: FakeEncoder, target: str
) -> None:
    fake.refuse_calls = [refusal, refusal, refusal]
    began_s = time.monotonic()
    async with AsyncClient(target) as client:
        rows = await client.encode(["a"])
    np.testing.assert_array_equal(rows, [vector("a")])
    assert len(fake.calls) == 4
    assert time.monotonic() - began_s >= 3 * 0.01


async def test_a_server_that_asks_for_patience_is_asked_until_it_serves(fake: FakeEncoder, target: str) -> None:
    fake.refuse_calls = [DRAINING] * 10
    async with AsyncClient(target) as client:
        np.testing.assert_array_equal(await client.encode(["a"]), [vector("a")])
    assert len(fake.calls) == 11


async def test_the_deadline_bounds_the_servers_refusals(fake: FakeEncoder, target: str) -> None:
    fake.refuse_calls = [BUSY] * 10_000
    began_s = time.monotonic()
    async with AsyncClient(target, max_attempts=2) as client:
        # The last attempt may be on its way when the time is over.
        with pytest.raises((Overloaded, DeadlineExceeded)):
            await client.encode(["a"], timeout_s=0.5)
    assert time.monotonic() - began_s < 5
    assert len(fake.calls) > 4


async def test_a_refusal_that_asks_for_no_pause_is_not_repeated_without_one(fake: FakeEncoder, target: str) -> None:
    fake.refuse_calls = [replace(BUSY, retry_after_s=0.0)] * 10_000
    async with AsyncClient(target) as client:
        with pytest.raises((Overloaded, DeadlineExceeded)):
            await client.encode(["a"], timeout_s=0.3)
    assert 4 < len(fake.calls) <= 30


async def test_the_time_left_for_the_models_size_may_be_none(target: str) -> None:
    async with AsyncClient(target) as client:
        with pytest.raises(DeadlineExceeded):
            await client.encode(["a", "b"], output="tokens", timeout_s=1e-9)


async def test_one_attempt_means_one_call(fake: FakeEncoder, target: str) -> None:
    fake.refuse_calls = [BUSY] * 9
    async with AsyncClient(target, max_attempts=1) as client:
        with pytest.raises(Overloaded) as caught:
            await client.encode(["a"])
    assert len(fake.calls) == 1
    assert caught.value.retry_after_s == 0.01
    assert str(caught.value) == "RESOURCE_EXHAUSTED (BACKLOG_FULL): backlog full"


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=-1), Overloaded),
        (Refusal(grpc.StatusCode.UNAVAILABLE, pushback_ms=-1), Unavailable),
        (Refusal(grpc.StatusCode.INVALID_ARGUMENT, pushback_ms=-1), InvalidInput),
        (Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, pushback_ms=-1), DeadlineExceeded),
        (Refusal(grpc.StatusCode.INTERNAL), InternalError),
        (Refusal(grpc.StatusCode.ABORTED), InternalError),
    ],
)
async def test_what_will_never_succeed_is_asked_once(
    refusal: Refusal, kind: type[Exception], fake: FakeEncoder, target: str
) -> None:
    fake.refuse_calls = [refusal]
    async with AsyncClient(target) as client:
        with pytest.raises(kind) as caught:
            await client.encode(["a"])
    assert len(fake.calls) == 1
    assert caught.value.code is refusal.code  # type: ignore[attr-defined]  # every kind is a HarkenError


async def test_a_delay_past_the_deadline_is_not_waited_for(fake: FakeEncoder, target: str) -> None:
    fake.refuse_calls = [Refusal(grpc.StatusCode.UNAVAILABLE, retry_after_s=60, pushback_ms=-1)]
    began_s = time.monotonic()
    async with AsyncClient(target) as client:
        with pytest.raises(Unavailable) as caught:
            await client.encode(["a"], timeout_s=20)
    assert caught.value.retry_after_s == 60
    assert time.monotonic() - began_s < 20
    assert len(fake.calls) == 1


async def test_the_deadline_ends_a_slow_call(fake: FakeEncoder, target: str) -> None:
    fake.delay_s = 30
    async with AsyncClient(target, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            await client.encode(["a"])
    assert len(fake.calls) == 1


async def test_a_server_that_starts_late_is_reached(fake: FakeEncoder) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", max_attempts=5) as client:
        pending = asyncio.create_task(client.encode(["a"]))
        await asyncio.sleep(0.3)
        assert not pending.done()
        with serving(fake, port):
            np.testing.assert_array_equal(await pending, [vector("a")])
    assert len(fake.calls) == 1


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with AsyncClient(f"127.0.0.1:{free_port()}", max_attempts=2) as client:
        with pytest.raises(Unavailable) as caught:
            await client.encode(["a"])
    assert caught.value.retry_after_s is None


async def test_models_are_described(target: str) -> None:
    tiny = ModelInfo(
        name="tiny",
        version=3,
        is_default=True,
        hidden_size=8,
        max_length=16,
        vocab_size=500,
        layers=2,
        heads=2,
        accepts_text=True,
        precision="fp32",
        device="cpu",
        bundle_sha256="ab" * 32,
        weights_source="random",
        weights_license="Apache-2.0",
    )
    async with AsyncClient(target) as client:
        assert await client.models() == [tiny]
        assert await client.model() == tiny
        with pytest.raises(ModelNotFound, match="no model huge"):
            await client.model("huge")
        with pytest.raises(ModelNotFound, match="no model huge"):
            await client.encode(["a"], model="huge")


async def test_health_is_told_without_the_health_package(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target) as client:
        assert await client.health() == "SERVING"
        with pytest.raises(ModelNotFound):
            await client.health("no.such.Service")


async def test_wait_ready_returns_when_the_server_has_come_up(fake: FakeEncoder) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        waiting = asyncio.create_task(client.wait_ready(30))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        with serving(fake, port):
            await waiting


async def test_wait_ready_says_what_it_last_saw(fake: FakeEncoder) -> None:
    fake.serving_status = health_pb2.HealthCheckResponse.NOT_SERVING
    with serving(fake) as target:
        async with AsyncClient(target) as client:
            assert await client.health() == "NOT_SERVING"
            with pytest.raises(DeadlineExceeded, match="last status: NOT_SERVING"):
                await client.wait_ready(0.3)


async def test_a_closed_client_says_so(target: str) -> None:
    client = AsyncClient(target)
    await client.encode(["a"])
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.encode(["a"])
    with pytest.raises(RuntimeError, match="closed"):
        async for _ in client.encode_stream(["a"]):
            pass
