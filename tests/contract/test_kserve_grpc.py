"""KServe's InferenceGRPCClient, unmodified."""

from typing import Any

from support.contract import close, equal, load, run_client
from support.server import RunningServer


def test_it_is_served_as_by_kserve(minilm_server: RunningServer, expected: Any) -> None:
    found = run_client("kserve", "kserve_grpc.py", minilm_server.target)
    assert [found[name] for name in ("live", "ready", "model_ready")] == [True, True, True]
    close(found["raw"], expected["rows"])
    close(found["typed"], expected["rows"])
    close(found["text"], expected["texts"])
    equal(found["alone"], expected["rows"])


def test_under_load_answers_stay_within_the_bound(minilm_server: RunningServer, expected: Any) -> None:
    with load(minilm_server):
        found = run_client("kserve", "kserve_grpc.py", minilm_server.target)
    close(found["raw"], expected["rows"])
    close(found["alone"], expected["rows"])
