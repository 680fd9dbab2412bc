"""The openai package, unmodified."""

from typing import Any

import numpy as np
from support.contract import close, equal, load, run_client
from support.server import RunningServer


def test_it_is_served_as_by_openai(minilm_server: RunningServer, expected: Any) -> None:
    found = run_client("openai", "openai_http.py", f"http://127.0.0.1:{minilm_server.http_port}")
    close(found["texts"], expected["texts"])
    close(found["float"], expected["texts"])
    close(found["rows"], expected["rows"])
    close(found["async"], expected["rows"])
    equal(found["alone"], expected["rows"])
    assert found["usage"] > len(expected["texts"])
    assert found["models"] == [found["model"]] == ["all-MiniLM-L6-v2"]
    assert (found["other_model"]["kind"], found["other_model"]["code"]) == ("NotFoundError", "model_not_found")
    short = [vector[:64] / np.linalg.norm(vector[:64]) for vector in expected["texts"]]
    close(found["short"], short)
    assert (found["no_model"]["kind"], found["no_model"]["code"]) == ("NotFoundError", "model_not_found")
    assert (found["empty"]["kind"], found["empty"]["param"]) == ("BadRequestError", "input[1]")
    assert found["empty"]["request_id"]


def test_under_load_answers_stay_within_the_bound(minilm_server: RunningServer, expected: Any) -> None:
    with load(minilm_server):
        found = run_client("openai", "openai_http.py", f"http://127.0.0.1:{minilm_server.http_port}")
    close(found["rows"], expected["rows"])
    close(found["async"], expected["rows"])
