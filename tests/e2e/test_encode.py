"""Encode on the real model, over a real socket."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb
from support.bundles import export_bundle
from support.calls import different, ids, refused, stub, text, vector
from support.server import RunningServer, running_server

SENTENCES = [
    "A short one.",
    "The cat sits on the mat.",
    "Padding is paid for: " + "attention compares every token with every other one. " * 8,
    "x",
    "Große Straßen, naïve cafés, 東京 and Москва.",
    "word " * 300,
]


def test_a_result_is_the_same_alone_and_in_any_company(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    alone = [vector(encoder.Encode(pb.EncodeRequest(inputs=text(one))).results[0]) for one in SENTENCES]
    together = encoder.Encode(pb.EncodeRequest(inputs=text(*SENTENCES * 3))).results
    for index, result in enumerate(together):
        np.testing.assert_allclose(vector(result), alone[index % len(SENTENCES)], atol=1e-5, rtol=0)
    with ThreadPoolExecutor(16) as pool:
        calls = [SENTENCES[index % len(SENTENCES)] for index in range(96)]
        answers = pool.map(lambda one: vector(encoder.Encode(pb.EncodeRequest(inputs=text(one))).results[0]), calls)
        for index, answer in enumerate(answers):
            np.testing.assert_allclose(answer, alone[index % len(SENTENCES)], atol=1e-5, rtol=0)


def test_vectors_have_length_one_and_mean_what_the_sentences_mean(minilm_server: RunningServer) -> None:
    inputs = text("A man is eating food.", "Someone has a meal.", "The stock market fell sharply.")
    food, meal, market = (
        vector(result) for result in stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=inputs)).results
    )
    assert food.shape == (384,)
    assert np.linalg.norm(food) == pytest.approx(1.0, abs=1e-5)
    assert food @ meal > 0.5
    assert food @ market < 0.2


def test_text_and_its_token_ids_give_the_same_vector(minilm_server: RunningServer) -> None:
    # [CLS] hello world [SEP] in BERT's vocabulary.
    response = stub(minilm_server.target).Encode(
        pb.EncodeRequest(inputs=text("Hello, world") + ids([101, 7592, 1010, 2088, 102]))
    )
    assert [result.tokens for result in response.results] == [5, 5]
    np.testing.assert_allclose(vector(response.results[0]), vector(response.results[1]), atol=1e-5, rtol=0)


def test_token_vectors_pool_to_the_sentence_vector(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    inputs = text(*SENTENCES)
    tokens = encoder.Encode(pb.EncodeRequest(inputs=inputs, options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS))).results
    sentences = encoder.Encode(pb.EncodeRequest(inputs=inputs)).results
    for by_token, pooled in zip(tokens, sentences, strict=True):
        rows = vector(by_token)
        assert rows.shape == (by_token.tokens, 384)
        mean = rows.mean(axis=0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), vector(pooled), atol=1e-5, rtol=0)


def test_pooled_and_token_answers_ride_in_one_batch(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    with ThreadPoolExecutor(12) as pool:
        kinds = [pb.OUTPUT_TOKENS if index % 3 == 0 else pb.OUTPUT_SENTENCE for index in range(48)]
        requests = [
            pb.EncodeRequest(inputs=text("the same words in each"), options=pb.EncodeOptions(output=kind))
            for kind in kinds
        ]
        shapes = [vector(response.results[0]).shape for response in pool.map(encoder.Encode, requests)]
    assert shapes == [(7, 384) if kind == pb.OUTPUT_TOKENS else (384,) for kind in kinds]


def test_truncation_is_only_done_when_asked_for_and_always_reported(minilm_server: RunningServer) -> None:
    options = pb.EncodeOptions(truncation=pb.TRUNCATION_RIGHT)
    inputs = text("word " * 900, "word " * 510, "word " * 511, "word " * 50_000) + ids([101] * 513)
    results = stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=inputs, options=options)).results
    assert [(result.tokens, result.truncated) for result in results] == [
        (512, True), (512, False), (512, True), (512, True), (512, True),
    ]  # fmt: skip
    np.testing.assert_allclose(vector(results[0]), vector(results[1]), atol=1e-5, rtol=0)
    np.testing.assert_allclose(vector(results[0]), vector(results[3]), atol=1e-5, rtol=0)


def test_timings_add_up_exactly(minilm_server: RunningServer) -> None:
    response = stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text(*SENTENCES)))
    for result in response.results:
        stages = result.timings
        assert 0 < stages.compute_ns < stages.total_ns <= response.total_ns
        assert stages.total_ns == (
            stages.tokenize_ns + stages.queue_ns + stages.collate_ns + stages.compute_ns + stages.scatter_ns
        )


def test_the_answering_model_is_named_and_described(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    response = encoder.Encode(pb.EncodeRequest(inputs=text("hello")))
    assert (response.model, response.version) == ("all-MiniLM-L6-v2", 1)
    (listed,) = encoder.ListModels(pb.ListModelsRequest()).models
    assert listed == encoder.GetModel(pb.GetModelRequest(model="all-MiniLM-L6-v2", version=1)).model
    assert listed == encoder.GetModel(pb.GetModelRequest()).model
    assert (listed.layers, listed.heads, listed.hidden_size, listed.max_length, listed.vocab_size) == (
        6, 12, 384, 512, 30522,
    )  # fmt: skip
    assert (listed.accepts_text, listed.is_default, listed.precision, listed.device) == (True, True, "fp32", "cpu")
    assert listed.weights_license == "Apache-2.0"
    assert len(listed.bundle_sha256) == 64


def test_a_call_of_a_thousand_does_not_starve_the_others(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    before = minilm_server.total("harken_finished_total", outcome="answered")
    bulk = encoder.Encode.future(pb.EncodeRequest(inputs=ids(*different(1000, 200))), timeout=120)
    minilm_server.wait_until("the bulk", lambda: minilm_server.total("harken_backlog_sequences") > 900)
    for _ in range(5):
        encoder.Encode(pb.EncodeRequest(inputs=ids([101] * 20)), timeout=60)
    # Five calls came after the thousand and are answered, one after the other, long before them.
    assert not bulk.done()
    assert minilm_server.total("harken_finished_total", outcome="answered") - before < 500
    bulk.cancel()
    minilm_server.wait_until("an empty backlog", lambda: minilm_server.total("harken_backlog_sequences") == 0)


def test_several_models_and_versions_are_served_side_by_side(tmp_path: Path) -> None:
    for name, version, hidden in (("a", 1, 16), ("a", 3, 24), ("b", 2, 32)):
        export_bundle(
            "random", "--models", str(tmp_path), "--name", name, "--version", str(version),
            "--layers", "1", "--heads", "2", "--hidden", str(hidden), "--vocab", "50", "--max-length", "16",
        )  # fmt: skip
    with running_server(tmp_path) as server:
        encoder = stub(server.target)
        listed = encoder.ListModels(pb.ListModelsRequest()).models
        assert [(model.name, model.version, model.is_default) for model in listed] == [
            ("a", 1, False), ("a", 3, True), ("b", 2, True),
        ]  # fmt: skip
        for name, version, hidden in (("a", 0, 24), ("a", 1, 16), ("a", 3, 24), ("b", 0, 32)):
            response = encoder.Encode(pb.EncodeRequest(model=name, version=version, inputs=ids([1, 2, 3])))
            assert vector(response.results[0]).shape == (hidden,)
            assert version in (response.version, 0)


def test_a_request_id_is_given_back_or_made_with_answers_and_with_errors(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    good, bad = pb.EncodeRequest(inputs=text("a")), pb.EncodeRequest()

    def both(metadata: tuple[tuple[str, str], ...]) -> set[str]:
        _, call = encoder.Encode.with_call(good, metadata=metadata)
        with pytest.raises(grpc.RpcError) as error:
            encoder.Encode(bad, metadata=metadata)
        (info,) = [detail for detail in refused(error.value).details if hasattr(detail, "request_id")]
        ended: Any = error.value
        found = [dict(one.trailing_metadata())["x-request-id"] for one in (call, ended)]
        assert found[1] == info.request_id
        return set(found)

    assert both((("x-request-id", "mine-7"),)) == {"mine-7"}
    assert len(both(())) == 2
    assert "x" * 200 not in both((("x-request-id", "x" * 200),))
    stream = encoder.EncodeStream(iter([pb.EncodeStreamRequest()]), metadata=(("x-request-id", "mine-8"),))
    assert len(list(stream)) == 1
    assert dict(stream.trailing_metadata())["x-request-id"] == "mine-8"
