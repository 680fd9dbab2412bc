"""Attend on a real server: maps as transformers gives them, what is told of them, and a similarity token by token."""

import asyncio

import numpy as np
import pytest
import torch
from harken.v1 import encoder_pb2 as pb
from harken_client import AsyncClient, Attention, Client
from harken_export import checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attending import EVERYTHING, array, attend, posted
from support.server import RunningServer
from transformers import BertModel

ANIMAL = "The animal didn't cross the street because it was too tired"
TEXTS = [ANIMAL, "A", "Grüße aus Köln, naïve café ☕!", "one two three " * 40]


@pytest.fixture(scope="module")
def client(minilm_server: RunningServer) -> Client:
    return Client(minilm_server.target)


@pytest.fixture(scope="module")
def bert() -> BertModel:
    return BertModel.from_pretrained(checkpoints.minilm_folder(), attn_implementation="eager")


@pytest.mark.parametrize("sentence", TEXTS)
def test_maps_are_those_of_transformers_and_tokens_stand_where_they_say(
    client: Client, bert: BertModel, sentence: str
) -> None:
    attention = client.attend(sentence)
    length = len(attention.ids)
    with torch.no_grad():
        expected = bert(input_ids=torch.from_numpy(attention.ids)[None], output_attentions=True).attentions
    maps = attention.maps
    assert maps is not None
    np.testing.assert_allclose(maps, torch.stack(expected)[:, 0].numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5, rtol=0)
    assert (attention.tokens[0], attention.tokens[-1]) == ("[CLS]", "[SEP]")
    assert attention.offsets is not None
    assert attention.offsets.shape == (length, 2)
    assert attention.offsets[[0, -1]].tolist() == [[0, 0], [0, 0]]
    for token, (start, end) in zip(attention.tokens[1:-1], attention.offsets[1:-1], strict=True):
        piece = sentence[start:end].lower()
        assert token in ("[UNK]", piece, f"##{piece}") or not piece.isascii()


def test_the_parts_of_a_long_text_are_rows_and_none_is_large(minilm_server: RunningServer) -> None:
    first, *parts = attend(minilm_server, [101] * 400, layers=[3, 1], heads=[11, 0], maps=True, rollout=True)
    summary = first.summary
    assert (list(summary.layers), list(summary.heads), summary.parts) == ([1, 3], [0, 11], len(parts))
    assert max(part.ByteSize() for part in parts) <= (256 << 10) + 64
    places = [(part.rows.kind, part.rows.layer, part.rows.head, part.rows.first) for part in parts]
    assert places == sorted(places)
    rows = sum(part.rows.rows.shape[0] for part in parts)
    assert rows == 400 * 5
    assert len(parts) > 5


def test_links_come_in_parts_and_any_client_takes_all_that_there_are(
    minilm_server: RunningServer,
) -> None:
    # attend() is a gRPC client that takes 4 MiB; in one message these would be 8.8 MB.
    first, *parts = attend(minilm_server, [101] * 502, top_k=512)
    assert first.summary.parts == len(parts) > 6
    assert {part.WhichOneof("part") for part in parts} == {"links"}
    assert max(part.ByteSize() for part in (first, *parts)) < 512 << 10
    places = [(part.links.layer, part.links.first) for part in parts]
    assert places == sorted(places)
    assert sum(part.links.weights.shape[0] for part in parts) == 6 * 502
    with Client(minilm_server.target) as client:
        links = client.attend([101] * 502, top_k=512, mean=True)
    assert links.links is not None
    assert links.mean is not None
    np.testing.assert_array_equal(np.sort(links.links.tokens), np.broadcast_to(np.arange(502), (6, 502, 502)))
    np.testing.assert_array_equal(
        np.take_along_axis(links.mean, links.links.tokens.astype(int), -1), links.links.weights
    )


def test_what_is_told_follows_from_the_maps(client: Client) -> None:
    attention = client.attend(ANIMAL, maps=True, mean=True, rollout=True, received=True, entropy=True, top_k=4)
    maps, links = attention.maps, attention.links
    assert maps is not None
    assert links is not None
    assert attention.mean is not None
    assert attention.rollout is not None
    assert attention.received is not None
    assert attention.entropy is not None
    np.testing.assert_allclose(attention.mean, maps.mean(1), atol=1e-6)
    np.testing.assert_allclose(attention.received, maps.mean(2), atol=1e-6)
    np.testing.assert_allclose(attention.entropy, -(maps * np.log(maps)).sum(-1).mean(-1), atol=1e-4)
    rolled = np.eye(len(attention.ids))
    for layer in maps.astype(np.float64).mean(1):
        rolled = (0.5 * layer + 0.5 * np.eye(len(rolled))) @ rolled
    np.testing.assert_allclose(attention.rollout, rolled, atol=1e-5)
    assert links.tokens.shape == links.weights.shape == (6, len(attention.ids), 4)
    np.testing.assert_array_equal(links.tokens[..., 0], attention.mean.argmax(-1))
    chosen = client.attend(ANIMAL, layers=[5], heads=[2, 7], maps=True)
    np.testing.assert_array_equal(chosen.maps, maps[np.ix_([5], [2, 7])])
    assert chosen.rollout is None
    assert chosen.map(5, 7).shape == maps.shape[2:]
    with pytest.raises(ValueError, match="layer 4, head 2 was not asked for"):
        chosen.map(4, 2)


WORDS = ["a", "cat", "sleeps", "on", "the", "warm", "sill", "while", "rain", "falls", "outside", "nobody", "minds"]
Words = st.lists(st.sampled_from(WORDS), min_size=1)


@settings(max_examples=15)
@given(Words, Words)
def test_what_tokens_add_is_the_similarity_that_is_served(client: Client, words: list[str], others: list[str]) -> None:
    one, other = " ".join(words), " ".join(others)
    (match,) = client.similarity(one, [other])
    pair = client.attend(one, other, layers=None, top_k=1).pair
    assert pair is not None
    assert len(pair.tokens) >= len(others) + 2
    assert pair.contributions.sum(dtype=np.float64) == pytest.approx(match.score, abs=1e-5)
    assert pair.similarity == pytest.approx(match.score, abs=1e-5)


def test_a_similarity_alone_computes_no_map(client: Client, minilm_server: RunningServer) -> None:
    name = "harken_accepted_total"
    before = minilm_server.total(name, model="all-MiniLM-L6-v2+attention")
    both = minilm_server.total(name, model="all-MiniLM-L6-v2")
    # Nothing asked for but the second text.
    first, *parts = attend(minilm_server, "A cat sleeps.", other=pb.Input(text="A kitten naps."))
    assert {part.rows.kind for part in parts} == {pb.MAP_KIND_SIMILARITY}
    assert not first.summary.HasField("timings")
    assert [list(text.tokens)[:2] for text in (first.summary.input, first.summary.other)] == [["[CLS]", "a"]] * 2
    assert minilm_server.total(name, model="all-MiniLM-L6-v2+attention") == before
    assert minilm_server.total(name, model="all-MiniLM-L6-v2") == both + 2


def test_texts_that_are_too_long_are_cut_where_that_is_asked(client: Client) -> None:
    attention = client.attend("word " * 600, layers=[0], heads=[0], entropy=True, truncate="right")
    assert (len(attention.ids), attention.truncated) == (512, True)
    assert attention.maps is None


def test_over_http_the_same_comes_as_lists_or_in_base64(client: Client, minilm_server: RunningServer) -> None:
    body = {"input": ANIMAL, "other": "It was tired.", "layers": [4, 2], "heads": [3], **EVERYTHING}
    replied = posted(minilm_server, body)
    assert replied.status == 200
    compared = client.attend(
        ANIMAL, "It was tired.", layers=[2, 4], heads=[3], maps=True, mean=True, rollout=True, received=True,
        entropy=True, top_k=3,
    )  # fmt: skip
    packed = posted(minilm_server, {**body, "encoding_format": "base64"}).json
    assert compared.pair is not None
    assert compared.links is not None
    for told in (replied.json, packed):
        assert (told["layers"], told["heads"], told["model"], told["version"]) == ([2, 4], [3], "all-MiniLM-L6-v2", 1)
        for name in ("maps", "mean", "rollout", "received", "entropy"):
            np.testing.assert_allclose(array(told[name]), getattr(compared, name), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(array(told["contributions"]), compared.pair.contributions, atol=1e-6)
        assert told["similarity"] == pytest.approx(compared.pair.similarity, abs=1e-6)
        assert told["links"]["tokens"] == compared.links.tokens.tolist()
        np.testing.assert_allclose(array(told["links"]["weights"]), compared.links.weights, atol=1e-6)
        assert told["input"]["tokens"] == list(compared.tokens)
        assert told["input"]["ids"] == compared.ids.tolist()
        assert compared.offsets is not None
        assert told["input"]["offsets"] == compared.offsets.tolist()
        assert told["other"]["tokens"] == list(compared.pair.tokens)


async def test_the_asynchronous_client_gives_the_same_and_many_at_once_all_end(minilm_server: RunningServer) -> None:
    async with AsyncClient(minilm_server.target) as client:
        one = await client.attend(ANIMAL)
        many = await asyncio.gather(*[client.attend(ANIMAL) for _ in range(12)])
    assert one.maps is not None
    assert all(isinstance(other, Attention) for other in many)
    for other in many:
        np.testing.assert_array_equal(other.maps, one.maps)
