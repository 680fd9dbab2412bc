"""One query against many candidates."""

from typing import Any

import grpc
import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb
from harken_client import Client, InvalidInput
from support.calls import refused, stub, text
from support.server import RunningServer

QUERY = "How do I reset my password?"
CANDIDATES = ["The weather is fine.", "I forgot my login", "Bread is baked in an oven.", "I forgot my login"]


def test_the_best_come_first_and_scores_are_cosines(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        matches = client.similarity(QUERY, CANDIDATES)
        vectors = np.array(client.encode([QUERY, *CANDIDATES]))
        assert [match.index for match in matches][:2] == [1, 3]
        expected = vectors[1:] @ vectors[0]
        for match in matches:
            assert match.score == pytest.approx(float(expected[match.index]), abs=1e-5)
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
        assert client.similarity(QUERY, CANDIDATES, top_k=1) == matches[:1]
        assert client.similarity(QUERY, CANDIDATES, top_k=99) == matches
        ids = [101, 7592, 102]
        assert client.similarity(ids, [ids])[0].score == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8, 13, 31, 64])
def test_of_equals_the_earlier_candidate_is_the_better_one(minilm_server: RunningServer, count: int) -> None:
    with Client(minilm_server.target) as client:
        for query in (QUERY, "weather in Paris", "A man is eating food."):
            matches = client.similarity(query, ["A man is eating food."] * count)
            assert [match.index for match in matches] == list(range(count))
            assert len({match.score for match in matches}) == 1


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.SimilarityRequest(), ("query", "candidates")),
        (pb.SimilarityRequest(query=pb.Input(text="a")), ("candidates",)),
        (pb.SimilarityRequest(query=pb.Input(text=""), candidates=text("a", "")), ("query.text", "candidates[1].text")),
        (
            pb.SimilarityRequest(
                query=pb.Input(text="a"), candidates=text("a"), options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS)
            ),
            ("options.output",),
        ),
        (
            pb.SimilarityRequest(
                query=pb.Input(text="a"), candidates=text("a"), options=pb.EncodeOptions(data_type=pb.DATA_TYPE_INT8)
            ),
            ("options.data_type",),
        ),
        (pb.SimilarityRequest(query=pb.Input(text="a"), candidates=text(*["a"] * 1024)), ("candidates",)),
    ],
)
def test_bad_input_is_named(minilm_server: RunningServer, request_: pb.SimilarityRequest, fields: Any) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub(minilm_server.target).Similarity(request_)
    wrong = refused(error.value)
    assert (wrong.code, wrong.fields) == ("INVALID_ARGUMENT", fields)


def test_the_client_checks_what_it_can(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        with pytest.raises(TypeError):
            client.similarity("a", "b")
        with pytest.raises(ValueError, match="top_k"):
            client.similarity("a", ["b"], top_k=0)
        with pytest.raises(InvalidInput, match="candidates"):
            client.similarity("a", [])
