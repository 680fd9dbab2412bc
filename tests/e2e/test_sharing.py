"""What is computed once for many: equal to what each would have got, and never across tenants."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from harken.oip import inference_pb2, inference_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.calls import ids, stub, vector
from support.server import RunningServer, running_server

CACHED = ("--trust-tenants", "--result-cache-bytes", "1000000")


@pytest.fixture(scope="module")
def cached(tiny_models: Path) -> Iterator[RunningServer]:
    with running_server(tiny_models, *CACHED) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tiny_models: Path) -> Iterator[RunningServer]:
    """Nothing shared, nothing kept: each is computed."""
    with running_server(tiny_models, "--no-share-identical") as running:
        yield running


def named(tenant: str) -> tuple[tuple[str, str]]:
    return (("harken-tenant", tenant),)


async def encode_all(
    server: RunningServer, requests: list[pb.EncodeRequest], tenants: list[str]
) -> list[npt.NDArray[np.float32]]:
    async with grpc.aio.insecure_channel(server.target) as channel:
        encoder: encoder_pb2_grpc.EncoderAsyncStub = encoder_pb2_grpc.EncoderStub(channel)
        responses = await asyncio.gather(
            *[
                encoder.Encode(request, metadata=named(tenant))
                for request, tenant in zip(requests, tenants, strict=True)
            ]
        )
    return [vector(result) for response in responses for result in response.results]


def busy(lengths: list[int]) -> pb.EncodeRequest:
    """Something for the lane to do meanwhile."""
    return pb.EncodeRequest(inputs=ids(*[[3] * length for length in lengths]))


async def test_equals_that_wait_together_are_computed_once(minilm_models: Path) -> None:
    with running_server(minilm_models, "--lanes", "1", "--no-wide-lane", "--trust-tenants") as server:
        same = pb.EncodeRequest(inputs=ids([101, 2054, 2003, 102]))
        requests = [busy([512]), *[same] * 40]
        _, *vectors = await encode_all(server, requests, [""] * 41)
        assert len({one.tobytes() for one in vectors}) == 1
        shared = server.total("harken_shared_total")
        assert shared >= 30
        assert server.total("harken_finished_total", outcome="answered") == 41
        # What was computed is what was not shared.
        assert server.total("harken_batch_sequences_sum") == 41 - shared
        assert server.total("harken_accepted_total") == 41

        # Who asks for other outputs, or for others, has a computation of its own.
        tokens = pb.EncodeRequest(inputs=same.inputs, options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS))
        before = server.total("harken_batch_sequences_sum")
        await encode_all(server, [busy([512]), same, same, tokens, same], ["", "a", "b", "a", "c"])
        assert server.total("harken_batch_sequences_sum") == before + 5
        assert server.total("harken_shared_total") == shared


async def test_who_shares_a_computation_leaves_alone(minilm_models: Path) -> None:
    """The one that was taken for the batch goes away, or its deadline comes: the others are answered all the same."""
    with running_server(minilm_models, "--lanes", "1", "--no-wide-lane") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            encoder: encoder_pb2_grpc.EncoderAsyncStub = encoder_pb2_grpc.EncoderStub(channel)
            request = pb.EncodeRequest(inputs=ids([101, *[2054] * 400, 102]))
            blocking = [encoder.Encode(busy([512])) for _ in range(2)]
            calls = [encoder.Encode(request, timeout=10) for _ in range(6)]
            for number, call in enumerate(calls):
                if number % 2 == 0:
                    await asyncio.sleep(0.04)
                    call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.gather(*blocking)
        assert [isinstance(answer, pb.EncodeResponse) for answer in answers[1::2]] == [True] * 3
        server.wait_until(
            "each one's end",
            lambda: server.total("harken_accepted_total") == server.total("harken_finished_total"),
        )


sequences = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=12)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(sequences, st.booleans(), st.sampled_from([None, True, False]), st.sampled_from([0, 4]))
def test_what_is_kept_or_shared_equals_what_is_computed(
    cached: RunningServer, plain: RunningServer, given_ids: list[list[int]], tokens: bool,
    normalize: bool | None, dimensions: int,
) -> None:  # fmt: skip
    options = pb.EncodeOptions(output=pb.OUTPUT_TOKENS if tokens else pb.OUTPUT_SENTENCE)
    if not tokens:
        options.dimensions = dimensions
        if normalize is not None:
            options.normalize = normalize
    request = pb.EncodeRequest(inputs=ids(*given_ids), options=options)
    found = [vector(result) for result in stub(cached.target).Encode(request).results]
    computed = [vector(result) for result in stub(plain.target).Encode(request).results]
    for one, other in zip(found, computed, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_was_computed_is_found_again_by_the_same_tenant_only(cached: RunningServer) -> None:
    encoder = stub(cached.target)
    request = pb.EncodeRequest(inputs=ids([40, 41, 42]))

    def counts() -> tuple[float, float, float]:
        return tuple(  # type: ignore[return-value]  # three of them
            cached.total(name)
            for name in ("harken_cache_hits_total", "harken_cache_misses_total", "harken_batch_sequences_sum")
        )

    hits, misses, computed = counts()
    first = encoder.Encode(request, metadata=named("a"))
    assert counts() == (hits, misses + 1, computed + 1)
    again = encoder.Encode(request, metadata=named("a"))
    assert counts() == (hits + 1, misses + 1, computed + 1)
    assert again.results[0].embedding == first.results[0].embedding
    timings = again.results[0].timings
    assert (timings.queue_ns >= 0, timings.collate_ns, timings.compute_ns, timings.scatter_ns) == (True, 0, 0, 0)
    for other in ("b", ""):
        encoder.Encode(request, metadata=named(other))
    assert counts() == (hits + 1, misses + 3, computed + 3)
    assert cached.total("harken_finished_total") == cached.total("harken_accepted_total")


def test_the_cache_keeps_to_its_bytes_and_the_oldest_goes_first(tiny_models: Path) -> None:
    with running_server(tiny_models, "--result-cache-bytes", "5000") as server:
        encoder = stub(server.target)
        for number in [*range(40), 39, 0]:
            encoder.Encode(pb.EncodeRequest(inputs=ids([number])))
        assert 2500 < server.total("harken_cache_bytes") <= 5000
        assert (server.total("harken_cache_hits_total"), server.total("harken_cache_misses_total")) == (1, 41)


def test_what_is_refused_was_neither_found_nor_missed(tiny_models: Path) -> None:
    with running_server(tiny_models, "--result-cache-bytes", "5000", "--max-backlog-sequences", "2") as server:
        encoder = stub(server.target)
        encoder.Encode(pb.EncodeRequest(inputs=ids([1])))
        with pytest.raises(grpc.RpcError, match="sequences"):
            encoder.Encode(pb.EncodeRequest(inputs=ids([1], [2], [3], [4])))
        assert (server.total("harken_cache_hits_total"), server.total("harken_cache_misses_total")) == (0, 1)
        encoder.Encode(pb.EncodeRequest(inputs=ids([1], [2], [3])))
        assert (server.total("harken_cache_hits_total"), server.total("harken_cache_misses_total")) == (1, 3)


def test_tritons_statistics_know_the_hits(cached: RunningServer) -> None:
    with grpc.insecure_channel(cached.target) as channel:
        inference = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        (statistics,) = inference.ModelStatistics(inference_pb2.ModelStatisticsRequest(name="tiny")).model_stats
    assert statistics.inference_stats.cache_hit.count == cached.total("harken_cache_hits_total")
    assert statistics.inference_stats.cache_miss.count == cached.total("harken_cache_misses_total")
    assert statistics.inference_count == cached.total("harken_finished_total", outcome="answered")
