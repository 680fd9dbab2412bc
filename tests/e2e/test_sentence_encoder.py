"""What users of sentence-transformers call: the same vectors as harken's own client gives, and refusals by name."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harken_client import Client, InvalidInput
from harken_client.sentence_encoder import SentenceEncoder
from support.server import RunningServer

TEXTS = ["A man is eating food.", "x", "Someone has a meal, and somebody else looks on."]
PROMPTS = {"query": "query: ", "passage": "passage: "}


@pytest.fixture(scope="module")
def client(minilm_server: RunningServer) -> Iterator[Client]:
    with Client(minilm_server.target) as client:
        yield client


@pytest.fixture(scope="module")
def encoder(client: Client) -> SentenceEncoder:
    return SentenceEncoder(client)


def equal(got: Any, expected: Any) -> None:
    """The same shape, type and bits."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(got, expected)


def test_one_sentence_is_what_the_client_gets_to_the_bit(client: Client, encoder: SentenceEncoder) -> None:
    for text in TEXTS:
        (whole,) = client.encode([text])
        equal(encoder.encode(text), whole)
        equal(encoder.encode([text]), whole[np.newaxis])
        equal(encoder.encode(text, normalize_embeddings=True), client.encode([text], normalize=True)[0])
        short = encoder.encode(text, truncate_dim=64, normalize_embeddings=True)
        equal(short, client.encode([text], dimensions=64)[0])
        equal(encoder.encode(text, precision="ubinary"), client.encode([text], element_type="binary")[0])
        tokens = encoder.encode(text, output_value="token_embeddings")
        equal(tokens, client.encode([text], output="tokens")[0])


def test_many_come_in_their_order(client: Client, encoder: SentenceEncoder) -> None:
    texts = [f"{text} {number}" for number in range(100) for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(iter(texts)), client.encode(texts), rtol=0, atol=1e-5)
    tokens = encoder.encode(TEXTS, output_value="token_embeddings")
    assert [one.shape for one in tokens] == [(8, 384), (3, 384), (13, 384)]


def test_a_vector_that_is_cut_keeps_its_elements_as_they_are(client: Client, encoder: SentenceEncoder) -> None:
    for text in TEXTS:
        equal(encoder.encode(text, truncate_dim=64), client.encode([text])[0][:64])


def test_binary_counts_the_bytes_of_ubinary_from_minus_128(encoder: SentenceEncoder) -> None:
    unsigned = encoder.encode(TEXTS, precision="ubinary", truncate_dim=128)
    signed = encoder.encode(TEXTS, precision="binary", truncate_dim=128)
    assert (signed.shape, signed.dtype) == ((3, 16), np.int8)
    np.testing.assert_array_equal(signed.astype(int), unsigned.astype(int) - 128)


def test_no_sentences_have_the_shape_and_type_of_many(encoder: SentenceEncoder) -> None:
    equal(encoder.encode([]), np.empty((0, 384), np.float32))
    equal(encoder.encode([], truncate_dim=8), np.empty((0, 8), np.float32))
    equal(encoder.encode([], precision="binary"), np.empty((0, 48), np.int8))
    assert encoder.encode([], output_value="token_embeddings") == []


def test_a_prompt_stands_before_the_sentence(client: Client, encoder: SentenceEncoder) -> None:
    prompted = SentenceEncoder(client, prompts=PROMPTS)
    default = SentenceEncoder(client, prompts=PROMPTS, default_prompt_name="query")
    plain, query, passage = (encoder.encode(before + TEXTS[0]) for before in ("", "query: ", "passage: "))
    equal(prompted.encode(TEXTS[0]), plain)
    equal(prompted.encode(TEXTS[0], prompt="query: "), query)
    equal(prompted.encode(TEXTS[0], "passage"), passage)
    equal(prompted.encode_query(TEXTS[0]), query)
    equal(prompted.encode_document(TEXTS[0]), passage)
    equal(prompted.encode_query(TEXTS[0], prompt_name="passage"), passage)
    equal(encoder.encode_query(TEXTS[0]), plain)
    equal(default.encode(TEXTS[0]), query)
    equal(default.encode(TEXTS[0], prompt=""), plain)
    assert not np.array_equal(plain, query)


def test_what_is_too_long_loses_its_end(client: Client, encoder: SentenceEncoder) -> None:
    assert encoder.max_seq_length == 512
    equal(encoder.encode("word " * 900), client.encode(["word " * 510])[0])


def test_dimensions_and_cosines(encoder: SentenceEncoder) -> None:
    assert encoder.get_embedding_dimension() == encoder.get_sentence_embedding_dimension() == 384
    vectors = encoder.encode(TEXTS)
    cosines = encoder.similarity(vectors, 3 * vectors[:2])
    assert cosines.shape == (3, 2)
    assert cosines.dtype == np.float32
    np.testing.assert_allclose(cosines, vectors @ vectors[:2].T, atol=1e-6)
    assert encoder.similarity(vectors[0], vectors).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert_to_tensor": True}, "encode gives numpy arrays and no tensors: take torch.from_numpy"),
        ({"convert_to_numpy": False}, "encode gives numpy arrays and no tensors: take torch.from_numpy"),
        ({"precision": "int8"}, "precision is 'float32', 'binary' or 'ubinary', not 'int8': there, int8"),
        ({"output_value": None}, "output_value is 'sentence_embedding' or 'token_embeddings', not None"),
        ({"output_value": "token_embeddings", "truncate_dim": 8}, "token_embeddings are as the model gives them"),
        ({"truncate_dim": 385}, "truncate_dim is from 1 to the model's 384, not 385"),
        ({"truncate_dim": -1}, "truncate_dim is from 1 to the model's 384, not -1"),
        ({"prompt_name": "query"}, "prompt_name 'query' is none of no prompts"),
        ({"prompt_name": "query", "prompt": "a"}, "prompt and prompt_name exclude one another"),
        ({"device": "cuda"}, "encode takes no device: the server chose it at its start"),
        ({"task": "query"}, "encode takes no task: the model takes nothing of that name"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(encoder: SentenceEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refusal:
        encoder.encode(TEXTS, **options)
    assert str(refusal.value).startswith(message)


def test_a_sentence_that_is_none_is_named_with_its_place(encoder: SentenceEncoder) -> None:
    with pytest.raises(TypeError, match=r"sentences\[1\] is a str, not \[101, 102\]"):
        encoder.encode(["fine", [101, 102]])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(InvalidInput, match=r"inputs\[1\]"):
        encoder.encode(["fine", ""])
