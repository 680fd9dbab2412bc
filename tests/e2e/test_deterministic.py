"""The same bits, whatever else is in flight."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import grpc
import numpy as np
from harken.oip import inference_pb2
from harken.v1 import debug_pb2, debug_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from harken_client import Client
from support.calls import ids, stub
from support.inference import asks, infer, raw
from support.server import RunningServer, running_server

ALONE = pb.EncodeOptions(deterministic=True)
ROWS = [np.random.default_rng(length).integers(1000, 30000, length).tolist() for length in (3, 17, 64, 150)]


@contextmanager
def random_load(server: RunningServer, callers: int = 6) -> Iterator[None]:
    """Calls of all sorts, beside and among each other, until the block ends; fails if one of them does."""
    over = Event()

    def call(seed: int) -> None:
        rng, encoder = np.random.default_rng(seed), stub(server.target)
        while not over.is_set():
            rows = [rng.integers(1000, 30000, rng.integers(1, 160)).tolist() for _ in range(rng.integers(1, 8))]
            encoder.Encode(pb.EncodeRequest(inputs=ids(*rows, *ROWS[:2])), timeout=60)

    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call, seed) for seed in range(callers)]
        try:
            yield
        finally:
            over.set()
        for each in calls:
            each.result()


def bits(server: RunningServer, options: pb.EncodeOptions) -> list[bytes]:
    results = stub(server.target).Encode(pb.EncodeRequest(inputs=ids(*ROWS), options=options), timeout=60).results
    assert not any(result.HasField("error") for result in results)
    return [result.embedding.data for result in results]


def test_bits_are_equal_over_many_runs_beside_random_load(minilm_models: Path) -> None:
    with running_server(minilm_models, "--lanes", "2", "--warmup-s", "1", "--result-cache-bytes", "1000000") as server:
        quiet = bits(server, ALONE)
        with random_load(server):
            beside = {tuple(bits(server, ALONE)) for _ in range(30)}
            usual = {tuple(bits(server, pb.EncodeOptions())) for _ in range(5)}
        assert beside == {tuple(quiet)}
        for got in usual:
            for one, other in zip(got, quiet, strict=True):
                np.testing.assert_allclose(np.frombuffer(one, "<f4"), np.frombuffer(other, "<f4"), atol=1e-5, rtol=0)


def test_each_runs_alone_on_a_narrow_lane_is_not_shared_and_not_kept(tiny_models: Path) -> None:
    with running_server(tiny_models, "--lanes", "2", "--result-cache-bytes", "1000000") as server:
        request = pb.EncodeRequest(inputs=ids(*[[5, 6, 7]] * 6), options=ALONE)
        for _ in range(2):
            results = stub(server.target).Encode(request, timeout=60).results
            assert len({result.embedding.data for result in results}) == 1
        assert server.total("harken_shared_total") == server.total("harken_cache_hits_total") == 0
        assert server.total("harken_batches_total") == server.total("harken_batch_sequences_sum") == 12
        with grpc.insecure_channel(server.target) as channel:
            explained = debug_pb2_grpc.DebugStub(channel).ExplainBatches(debug_pb2.ExplainBatchesRequest(last=12))
        assert {batch.sequences for batch in explained.batches} == {1}
        assert "wide" not in {batch.lane for batch in explained.batches}


def test_every_edge_that_takes_it_gives_the_same_bits(minilm_server: RunningServer) -> None:
    expected = np.stack([np.frombuffer(one, "<f4") for one in bits(minilm_server, ALONE)])
    with Client(minilm_server.target) as client:
        np.testing.assert_array_equal(client.encode(ROWS, deterministic=True), expected)
        streamed = {result.index: result.vector for result in client.encode_stream(ROWS, deterministic=True)}
    np.testing.assert_array_equal(np.stack([streamed[index] for index in range(len(ROWS))]), expected)
    for row, vector in zip(ROWS, expected, strict=True):
        request = asks(
            raw("input_ids", np.array([row], np.int64)),
            model_name="all-MiniLM-L6-v2",
            outputs=["sentence_embedding"],
            parameters={"deterministic": inference_pb2.InferParameter(bool_param=True)},
        )
        np.testing.assert_array_equal(infer(minilm_server, request)["sentence_embedding"][0], vector)
