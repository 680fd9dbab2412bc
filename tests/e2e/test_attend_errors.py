"""What Attend refuses, over gRPC and HTTP: by field, value and limit, and with the right status."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb
from harken_client import Client, FailedPrecondition
from support.attending import attend, attend_refused, posted
from support.bundles import export_bundle
from support.server import RunningServer, running_server

TINY_MAPS = 4 * 2 * 2 * 100 * 100
"""Bytes of all maps of 100 tokens of the tiny model."""


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny; `plain`, which has no attention graph; `first`, whose pooling is said to be cls."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_models / "tiny", models / "tiny")
    shutil.copytree(tiny_models / "tiny", models / "first")
    manifest = json.loads((models / "first" / "1" / "bundle.json").read_text())
    (models / "first" / "1" / "bundle.json").write_text(json.dumps({**manifest, "name": "first", "pooling": "cls"}))
    export_bundle("random", "--models", str(models), "--name", "plain", "--no-attention")
    return models


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    # Room for 100 tokens, hardly more.
    with running_server(models, "--attend-memory-bytes", str(4 * TINY_MAPS)) as running:
        yield running


def test_a_model_without_the_graph_says_how_to_export_it(server: RunningServer) -> None:
    wrong = attend_refused(server, [1, 2], model="plain", maps=True)
    assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "NO_ATTENTION")
    assert "export it again with harken-export --if-missing" in wrong.message
    assert "plain/1" in wrong.message
    replied = posted(server, {"model": "plain", "input": [1, 2]})
    assert (replied.status, replied.json["error"]["code"]) == (409, "no_attention")
    with Client(server.target) as client:
        with pytest.raises(FailedPrecondition, match="harken-export"):
            client.attend([1, 2], model="plain")
        assert {info.name: info.attends for info in client.models()} == {"first": True, "plain": False, "tiny": True}


def test_another_pooling_has_no_similarity_by_tokens_but_has_maps(server: RunningServer) -> None:
    wrong = attend_refused(server, [1, 2], model="first", other=pb.Input(token_ids=pb.TokenIds(ids=[3])))
    assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "NOT_MEAN_POOLED")
    assert "cls" in wrong.message
    assert len(attend(server, [1, 2], model="first", maps=True)) == 1 + 4


def test_more_memory_than_the_budget_is_refused_with_both_and_how_it_comes_about(server: RunningServer) -> None:
    assert len(attend(server, [5] * 100, model="tiny", entropy=True)) == 1
    wrong = attend_refused(server, [5] * 128, model="tiny", entropy=True)
    assert (wrong.code, wrong.reason, wrong.fields) == (
        "INVALID_ARGUMENT", "OVER_ATTEND_BUDGET", ("input.token_ids",),
    )  # fmt: skip
    assert wrong.retry_after_s is None
    assert wrong.pushback_ms == "-1"
    maps_bytes = 4 * 2 * 2 * 128 * 128
    assert f"{4 * TINY_MAPS}: twice 2 layers x 2 heads x 128 x 128 tokens x 4 = {maps_bytes} bytes" in wrong.message
    predicted = int(wrong.message.split("its 128 tokens need ")[1].split(" bytes")[0])
    assert 2 * maps_bytes < predicted < 6 * maps_bytes
    replied = posted(server, {"model": "tiny", "input": [5] * 128, "entropy": True})
    assert (replied.status, replied.json["error"]["param"]) == (400, "input")
    assert str(predicted) in replied.json["error"]["message"]


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"layers": [0, 2]}, "layers[1]", "is 2, outside 0 to 1"),
        ({"heads": [7]}, "heads[0]", "is 7, outside 0 to 1"),
        ({"layers": [1, 1]}, "layers[1]", "is 1, which is not given once"),
        ({"heads": [0, 1, 0]}, "heads", "has 3 elements, over the limit of 2"),
    ],
)
def test_layers_and_heads_that_are_not_there_are_refused_with_the_range(
    server: RunningServer, more: dict[str, Any], field: str, said: str
) -> None:
    wrong = attend_refused(server, [1, 2], model="tiny", maps=True, **more)
    assert (wrong.code, wrong.fields) == ("INVALID_ARGUMENT", (field,))
    assert said in wrong.message
    replied = posted(server, {"model": "tiny", "input": [1, 2], "maps": True, **more})
    assert (replied.status, replied.json["error"]["param"]) == (400, field)
    assert said in replied.json["error"]["message"]


@pytest.mark.parametrize(
    ("given", "more", "reason"),
    [
        ([], {}, "NO_TOKENS"),
        ([1000], {}, "TOKEN_OUT_OF_RANGE"),
        ([1] * 129, {}, "SEQUENCE_TOO_LONG"),
        ("text", {}, "TEXT_NOT_ACCEPTED"),
        ([1], {"truncation": 9}, "UNKNOWN_VALUE"),
        ([1], {"other": pb.Input()}, "NO_CONTENT"),
    ],
)
def test_inputs_are_checked_as_those_of_encode(
    server: RunningServer, given: str | list[int], more: dict[str, Any], reason: str
) -> None:
    wrong = attend_refused(server, given, model="tiny", maps=True, **more)
    assert (wrong.code, wrong.reason) == ("INVALID_ARGUMENT", reason)


def test_a_model_that_is_not_served_and_no_input_at_all(server: RunningServer) -> None:
    assert attend_refused(server, [1], model="nobody").code == "NOT_FOUND"
    replied = posted(server, {"model": "tiny"})
    assert (replied.status, replied.json["error"]["param"]) == (400, "input")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"map": True}, "map"),
        ({"maps": "yes"}, "maps"),
        ({"layers": 1}, "layers"),
        ({"layers": [1.5]}, "layers"),
        ({"layers": [True]}, "layers"),
        ({"layers": [-1]}, "layers[0]"),
        ({"layers": [1 << 70]}, "layers"),
        ({"top_k": -1}, "top_k"),
        ({"version": 1.5}, "version"),
        ({"model": 3}, "model"),
        ({"encoding_format": "binary"}, "encoding_format"),
        ({"truncate": "middle"}, "truncate"),
        ({"truncate": [1]}, "truncate"),
        ({"other": {"text": "a"}}, "other"),
    ],
)
def test_a_body_is_checked_field_by_field(server: RunningServer, body: dict[str, Any], param: str) -> None:
    replied = posted(server, {"model": "tiny", "input": [1, 2], **body})
    assert (replied.status, replied.json["error"]["param"]) == (400, param)
    if param == "layers":
        assert "is not a list of whole numbers" in replied.json["error"]["message"]
    assert replied.headers["x-should-retry"] == "false"


def test_over_http_an_answer_over_the_limit_is_refused_by_name_before_it_is_computed(models: Path) -> None:
    with running_server(models, "--max-message-bytes", str(200_000)) as server:
        body = {"model": "tiny", "input": [5] * 100, "maps": True}
        replied = posted(server, body)
        assert (replied.status, replied.json["error"]["param"]) == (400, "maps")
        assert (
            f"{16 * TINY_MAPS // 4} bytes, over the limit of 200000; ask for fewer layers and heads"
            in replied.json["error"]["message"]
        )
        assert server.total("harken_accepted_total", model="tiny+attention") == 0
        one = posted(server, {**body, "layers": [1], "heads": [0]})
        assert np.array(one.json["maps"]).shape == (1, 1, 100, 100)
        # gRPC has no such limit.
        assert len(attend(server, [5] * 100, model="tiny", maps=True)) == 1 + 4


@pytest.mark.parametrize(
    ("more", "param", "less"),
    [
        ({"top_k": 100}, "top_k", "ask for a smaller top_k, or fewer layers"),
        ({"top_k": 100, "maps": True}, "maps", "ask for fewer layers and heads"),
        ({"mean": True, "received": True}, "mean", "ask for fewer layers"),
        ({"rollout": True, "other": [5] * 20}, "other", "send shorter texts"),
        ({"other": [5] * 100}, "other", "send shorter texts"),
        ({"received": True}, "received", "ask for fewer layers and heads"),
    ],
)
def test_over_http_what_is_too_large_is_named_and_what_makes_it_smaller(
    models: Path, more: dict[str, Any], param: str, less: str
) -> None:
    body = {"model": "tiny", "input": [5] * 100, **more}
    with running_server(models, "--max-message-bytes", "4096") as server:
        replied = posted(server, body)
    assert (replied.status, replied.json["error"]["param"], replied.json["error"]["code"]) == (
        400, param, "answer_too_large",
    )  # fmt: skip
    assert replied.json["error"]["message"].endswith(f"over the limit of 4096; {less}")


def test_it_can_be_turned_off(models: Path) -> None:
    with running_server(models, "--no-attend") as server:
        wrong = attend_refused(server, [1, 2], model="tiny", maps=True)
        assert (wrong.code, wrong.reason) == ("UNIMPLEMENTED", "TURNED_OFF")
        assert "attend" in wrong.message
        assert posted(server, {"model": "tiny", "input": [1, 2]}).status == 501
