"""tritonclient's gRPC client, unmodified."""

from typing import Any

import numpy as np
import pytest
from support.contract import ROWS, close, equal, load, run_client
from support.server import RunningServer

MODEL = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def found(minilm_server: RunningServer) -> Any:
    return run_client("triton", "triton_grpc.py", minilm_server.target)


def test_infer_gives_what_the_own_client_gets(found: Any, expected: Any) -> None:
    close(found["infer"]["ids"], expected["rows"])
    close(found["infer"]["text"], expected["texts"])
    assert found["infer"]["token_shape"] == [4, 302, 384]


def test_alone_it_is_the_same_to_the_bit(found: Any, expected: Any) -> None:
    equal(found["infer"]["alone"], expected["rows"])


def test_outputs_version_priority_timeout_and_id_are_obeyed(found: Any, expected: Any) -> None:
    close(found["infer"]["chosen"], expected["rows"])
    assert found["infer"]["chosen_outputs"] == ["sentence_embedding"]
    assert found["infer"]["chosen_id"] == "seven"
    assert found["infer"]["half"] == "float16"


def test_async_and_asyncio_get_the_same(found: Any, expected: Any) -> None:
    close(found["async"], sorted(expected["rows"], key=lambda vector: vector.tolist()))
    close(found["aio"], expected["rows"])


def test_a_stream_answers_in_order_and_outlives_an_error(found: Any, expected: Any) -> None:
    stream = found["stream"]
    close(stream["vectors"], [*expected["rows"], expected["rows"][0]])
    assert stream["ids"] == [*map(str, range(len(ROWS))), "last"]
    assert len(stream["errors"]) == 1
    assert "raw_input_contents[0][0]: is empty" in stream["errors"][0]
    assert stream["final"] is True


def test_errors_are_its_own_exceptions(found: Any) -> None:
    errors = found["errors"]
    assert errors["model"].startswith("StatusCode.NOT_FOUND model: 'none' is not served here")
    assert errors["vocabulary"].startswith("StatusCode.INVALID_ARGUMENT raw_input_contents[0][0][1]: is 99999")
    assert errors["output"].startswith("StatusCode.INVALID_ARGUMENT outputs[0].name: 'logits' is none of")
    assert errors["classes"].startswith("StatusCode.INVALID_ARGUMENT outputs[0].parameters: 'classification'")
    assert errors["sequence"].startswith("StatusCode.INVALID_ARGUMENT parameters: 'sequence_")
    assert errors["late"].split()[0] in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")


def test_it_reads_what_server_and_model_say_of_themselves(found: Any) -> None:
    described = found["described"]
    assert [described[name] for name in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert described["server"]["name"] == "harken"
    assert [one["name"] for one in described["model"]["inputs"]] == ["input_ids", "attention_mask", "text"]
    assert described["config"]["config"]["max_batch_size"] == 1024
    assert described["index"]["models"] == [{"name": MODEL, "version": "1", "state": "READY"}]


def test_statistics_equal_the_counters(found: Any, minilm_server: RunningServer) -> None:
    again = run_client("triton", "triton_grpc.py", minilm_server.target)
    (statistics,) = again["described"]["statistics"]["model_stats"]
    assert int(statistics["inference_count"]) == minilm_server.total("harken_finished_total", outcome="answered")
    assert int(statistics["execution_count"]) == minilm_server.total("harken_batches_total")
    success = statistics["inference_stats"]["success"]
    assert int(success["count"]) == minilm_server.total("harken_request_duration_seconds_count")
    (before,) = found["described"]["statistics"]["model_stats"]
    assert int(statistics["inference_count"]) > int(before["inference_count"])


def test_under_load_answers_stay_within_the_bound(minilm_server: RunningServer, expected: Any) -> None:
    with load(minilm_server):
        found = run_client("triton", "triton_grpc.py", minilm_server.target)
    close(found["infer"]["ids"], expected["rows"])
    close(found["infer"]["alone"], expected["rows"])
    close(found["aio"], expected["rows"])
    close(found["stream"]["vectors"], [*expected["rows"], expected["rows"][0]])
    assert np.array(found["infer"]["text"]).shape == (3, 384)
