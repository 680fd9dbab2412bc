"""tritonclient changes which models are served, unmodified."""

from pathlib import Path

from support.contract import run_client
from support.server import running_server


def test_it_unloads_and_loads_a_model_over_both_edges(tiny_models: Path) -> None:
    with running_server(tiny_models, "--model-control") as server:
        found = run_client("triton", "triton_control.py", server.target, f"127.0.0.1:{server.http_port}")
    assert found == {"grpc": [True, False, True, True], "http": [True, False, True, True]}
