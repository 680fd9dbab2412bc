"""tritonclient's HTTP client, unmodified."""

from typing import Any

from support.contract import close, equal, load, run_client
from support.server import RunningServer


def test_it_is_served_as_by_triton(minilm_server: RunningServer, expected: Any) -> None:
    found = run_client("triton", "triton_http.py", f"127.0.0.1:{minilm_server.http_port}")
    for form in ("binary", "json", "all", "async"):
        close(found[form], expected["rows"])
    close(found["text"], expected["texts"])
    equal(found["alone"], expected["rows"])
    assert [found[name] for name in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert found["server"]["name"] == "harken"
    assert "binary_tensor_data" in found["server"]["extensions"]
    assert found["model"]["platform"] == "onnx_onnxv1"
    assert found["config"]["max_batch_size"] == 1024
    assert found["index"][0]["state"] == "READY"
    (statistics,) = found["statistics"]["model_stats"]
    assert statistics["inference_count"] <= minilm_server.total("harken_finished_total", outcome="answered")
    assert found["no_model"].startswith("404 model: 'none' is not served here")
    assert found["no_output"].startswith("400 outputs[0].name: 'logits' is none of")
    assert "content-encoding: is 'gzip'" in found["compressed"]


def test_under_load_answers_stay_within_the_bound(minilm_server: RunningServer, expected: Any) -> None:
    with load(minilm_server):
        found = run_client("triton", "triton_http.py", f"127.0.0.1:{minilm_server.http_port}")
    close(found["binary"], expected["rows"])
    close(found["alone"], expected["rows"])
