"""Memory on a real server: a burst gives back what it took."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harken.v1 import encoder_pb2 as pb
from support.calls import ids, stub
from support.server import RunningServer, running_server


def rss(server: RunningServer) -> float:
    return server.total("harken_memory_bytes", kind="rss")


def rows(lengths: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(1000, 30000, length).tolist() for length in lengths]


def test_a_burst_of_long_sequences_gives_back_what_it_took(minilm_models: Path) -> None:
    with running_server(minilm_models) as server:
        encoder = stub(server.target)
        encoder.Encode(pb.EncodeRequest(inputs=ids(*rows([20] * 8))))
        before = rss(server)
        # Two of them are a batch, and each lane runs one: so the peak is some 100 MiB higher.
        encoder.Encode(pb.EncodeRequest(inputs=ids(*rows([512] * 32))))
        assert server.total("harken_memory_bytes", kind="rss_peak") > 1.15 * before
        server.wait_until("memory to go back", lambda: rss(server) < 1.15 * before)
