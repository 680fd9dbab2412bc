"""A model that gives a vector that is not finite, over each edge: it is never sent, and its companions are answered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chaos.poison import Poisoned, poisoned
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from support.calls import Refused, ids, refused, refused_result, stub, vector
from support.inference import asks, oip, raw, refusal_of
from support.server import RunningServer, running_server
from support.web import call

GOOD, OTHER = [5, 6, 7], [8, 9]


@pytest.fixture(scope="module")
def poison(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    return poisoned(tiny_models / "tiny" / "1", tmp_path_factory.mktemp("poisoned"))


@pytest.fixture(scope="module")
def server(poison: Poisoned) -> Iterator[RunningServer]:
    # One lane, so that companions do ride with it.
    with running_server(poison.models, "--lanes", "1", "--no-wide-lane", "--warmup-s", "1") as running:
        yield running


@pytest.fixture
def failing(server: RunningServer) -> Iterator[list[str]]:
    """The ids of the requests of a test that failed: each is counted and logged, and nothing else is."""
    request_ids: list[str] = []
    before = server.total("harken_finished_total", outcome="failed")
    yield request_ids
    assert request_ids
    assert server.total("harken_finished_total", outcome="failed") == before + len(request_ids)
    assert server.total("harken_finished_total") == server.total("harken_accepted_total")
    server.wait_until("the log", lambda: set(request_ids) <= {line.get("request_id") for line in server.log})


def told(refusal: Refused) -> str:
    """The request id that an error tells."""
    assert (refusal.code, refusal.reason, refusal.retry_after_s) == ("INTERNAL", "NOT_FINITE", None)
    (request_id,) = [detail.request_id for detail in refusal.details if hasattr(detail, "request_id")]
    assert refusal.message == f"the model gave a vector that is not finite (request {request_id})"
    return str(request_id)


@pytest.mark.parametrize("output", [pb.OUTPUT_SENTENCE, pb.OUTPUT_TOKENS])
def test_encode(server: RunningServer, poison: Poisoned, failing: list[str], output: Any) -> None:
    encoder, options = stub(server.target), pb.EncodeOptions(output=output)
    good, other = encoder.Encode(pb.EncodeRequest(inputs=ids(GOOD, OTHER), options=options)).results
    request = pb.EncodeRequest(inputs=ids(GOOD, [5, poison.nan], OTHER), options=options)
    results = encoder.Encode(request).results
    failing.append(told(refused_result(results[1])))
    assert not results[1].HasField("embedding")
    for got, expected in ((results[0], good), (results[2], other)):
        np.testing.assert_allclose(vector(got), vector(expected), atol=1e-5, rtol=0)


def test_similarity(server: RunningServer, poison: Poisoned, failing: list[str]) -> None:
    query, candidates = pb.Input(token_ids=pb.TokenIds(ids=GOOD)), ids(OTHER, [poison.nan])
    with pytest.raises(grpc.RpcError) as error:
        stub(server.target).Similarity(pb.SimilarityRequest(query=query, candidates=candidates), timeout=30)
    failing.append(told(refused(error.value)))


def test_encode_stream(server: RunningServer, poison: Poisoned, failing: list[str]) -> None:
    rows = [GOOD, [poison.nan, 5], OTHER]
    messages = [pb.EncodeStreamRequest(input=pb.StreamInput(input=one)) for one in ids(*rows)]
    with grpc.insecure_channel(server.target) as channel:
        responses = list(encoder_pb2_grpc.EncoderStub(channel).EncodeStream(iter(messages), timeout=30))
    results = {response.index: response.result for response in responses}
    failing.append(told(refused_result(results[1])))
    assert np.isfinite([vector(results[0]), vector(results[2])]).all()


def test_open_inference(server: RunningServer, poison: Poisoned, failing: list[str]) -> None:
    """One error for the whole request, its good rows included: so the protocol has it."""
    rows = np.array([GOOD, [5, poison.nan, 6]], np.int64)
    request = asks(raw("input_ids", rows), model_name="tiny", outputs=["sentence_embedding"])
    with oip(server) as service:
        failing.append(told(refusal_of(service.ModelInfer, request)))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": "ROWS"}),
        ("/embed", {"inputs": "ROWS"}),
        (
            "/v2/models/tiny/infer",
            {
                "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": "ROWS"}],
                "outputs": [{"name": "sentence_embedding"}],
            },
        ),
    ],
)
def test_http(server: RunningServer, poison: Poisoned, failing: list[str], path: str, body: dict[str, Any]) -> None:
    rows = [GOOD, [5, poison.nan, 6]]
    filled = {name: rows if value == "ROWS" else value for name, value in body.items()}
    if "inputs" in body and path != "/embed":
        filled["inputs"] = [{**body["inputs"][0], "data": rows}]
    replied = call(server, "POST", path, filled)
    assert replied.status == 500
    assert b"the model gave a vector that is not finite" in replied.body
    assert b"NaN" not in replied.body
    words = replied.body.decode().split("(request ")
    failing.append(words[1].split(")")[0])


def test_a_kept_result_is_never_one_of_these(poison: Poisoned) -> None:
    with running_server(poison.models, "--result-cache-bytes", "100000", "--warmup-s", "1") as cached:
        for _ in range(2):
            (result,) = stub(cached.target).Encode(pb.EncodeRequest(inputs=ids([poison.nan]))).results
            told(refused_result(result))
        assert cached.total("harken_cache_hits_total") == 0
