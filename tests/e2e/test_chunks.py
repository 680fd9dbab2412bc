"""Texts longer than the model in chunks, and where tokens stand: on a real server, against its own plain answers."""

from pathlib import Path

import grpc
import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb
from support.calls import ids, refused, stub, text, vector
from support.server import RunningServer, running_server
from tokenizers import Tokenizer

WORDS = "the caf\u00e9 by the river was full of people, and nobody \U0001f600 would leave before midnight "
LONG = WORDS * 90


@pytest.fixture(scope="module")
def tokenizer(minilm_models: Path) -> Tokenizer:
    plain = Tokenizer.from_file(str(minilm_models / "all-MiniLM-L6-v2" / "1" / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    return plain


def chunked(overlap: int, vectors: "pb.ChunkVectors.ValueType" = pb.CHUNK_VECTORS_MEAN) -> pb.EncodeOptions:
    return pb.EncodeOptions(chunking=pb.Chunking(overlap_tokens=overlap, vectors=vectors))


@pytest.mark.parametrize("overlap", [0, 64, 300])
def test_all_chunks_are_what_each_of_them_gives_alone_and_say_where_they_stand(
    minilm_server: RunningServer, tokenizer: Tokenizer, overlap: int
) -> None:
    encoder = stub(minilm_server.target)
    options = chunked(overlap, pb.CHUNK_VECTORS_ALL)
    (result,) = encoder.Encode(pb.EncodeRequest(inputs=text(LONG), options=options)).results
    whole = tokenizer.encode(LONG)
    starts = range(0, len(whole.ids) - 2 - overlap, 510 - overlap)
    spans = [(start, min(start + 510, len(whole.ids) - 2)) for start in starts]
    assert len(spans) > 2
    assert [(chunk.start, chunk.end, chunk.tokens) for chunk in result.chunks] == [
        (whole.offsets[1 + first][0], whole.offsets[last][1], last - first + 2) for first, last in spans
    ]
    alone = encoder.Encode(
        pb.EncodeRequest(inputs=ids(*[[101, *whole.ids[1 + first : 1 + last], 102] for first, last in spans]))
    )
    np.testing.assert_allclose(vector(result), [vector(one) for one in alone.results], atol=1e-5)
    assert (result.tokens, result.truncated) == (sum(chunk.tokens for chunk in result.chunks), False)
    timings = result.timings
    parts = (timings.tokenize_ns, timings.queue_ns, timings.collate_ns, timings.compute_ns, timings.scatter_ns)
    assert sum(parts) == timings.total_ns


@pytest.mark.parametrize("normalize", [None, False])
@pytest.mark.parametrize("dimensions", [0, 64])
def test_the_mean_is_that_of_the_chunks_weighted_by_their_own_tokens(
    minilm_server: RunningServer, normalize: bool | None, dimensions: int
) -> None:
    encoder = stub(minilm_server.target)
    vectors, results = {}, {}
    for kind in (pb.CHUNK_VECTORS_ALL, pb.CHUNK_VECTORS_MEAN):
        options = chunked(50, kind)
        options.dimensions = dimensions
        if normalize is not None:
            options.normalize = normalize
        (results[kind],) = encoder.Encode(pb.EncodeRequest(inputs=text(LONG), options=options)).results
        vectors[kind] = vector(results[kind])
    weights = np.array([chunk.tokens - 2 for chunk in results[pb.CHUNK_VECTORS_MEAN].chunks])
    assert len(set(weights.tolist())) > 1
    expected = np.average(vectors[pb.CHUNK_VECTORS_ALL], axis=0, weights=weights)
    if normalize is None:
        expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(vectors[pb.CHUNK_VECTORS_MEAN], expected, atol=1e-5)


def test_what_fits_is_one_chunk_and_token_ids_are_as_ever(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    inputs = [*text("a short text"), *ids([101, 2460, 102])]
    plain = encoder.Encode(pb.EncodeRequest(inputs=inputs)).results
    mean = encoder.Encode(pb.EncodeRequest(inputs=inputs, options=chunked(10))).results
    every = encoder.Encode(pb.EncodeRequest(inputs=inputs, options=chunked(10, pb.CHUNK_VECTORS_ALL))).results
    for one, other in zip(plain, mean, strict=True):
        np.testing.assert_allclose(vector(one), vector(other), atol=1e-5)
    assert [list(result.embedding.shape) for result in every] == [[1, 384], [384]]
    assert [(chunk.start, chunk.end, chunk.tokens) for chunk in mean[0].chunks] == [(0, 12, 5)]
    assert not mean[1].chunks


def test_a_stream_has_chunks_too(minilm_server: RunningServer) -> None:
    opening = pb.StreamOpen(options=chunked(5, pb.CHUNK_VECTORS_ALL))
    messages = [pb.EncodeStreamRequest(open=opening)]
    messages += [pb.EncodeStreamRequest(input=pb.StreamInput(input=one)) for one in text(LONG, "short")]
    answers = {answer.index: answer.result for answer in stub(minilm_server.target).EncodeStream(iter(messages))}
    assert [len(answers[index].chunks) for index in range(2)] == [len(vector(answers[0])), 1]


def test_token_offsets_are_those_of_the_tokenizer(minilm_server: RunningServer, tokenizer: Tokenizer) -> None:
    encoder = stub(minilm_server.target)
    texts = ["Na\u00efve \U0001f600 caf\u00e9s", "unaffable", LONG]
    options = pb.EncodeOptions(token_offsets=True, output=pb.OUTPUT_TOKENS, truncation=pb.TRUNCATION_LEFT)
    results = encoder.Encode(pb.EncodeRequest(inputs=[*text(*texts), *ids([101, 102])], options=options)).results
    for given, result in zip(texts, results, strict=False):
        offsets = list(zip(result.offsets.starts, result.offsets.ends, strict=True))
        assert len(offsets) == len(vector(result)) == result.tokens
        assert (offsets[0], offsets[-1]) == ((0, 0), (0, 0))
        assert offsets[1:-1] == tokenizer.encode(given).offsets[1:-1][-510:]
    assert not results[3].HasField("offsets")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (chunked(510), "options.chunking.overlap_tokens: is 510, which is not from 0 to 509: less than a chunk"),
        (
            pb.EncodeOptions(chunking=pb.Chunking(vectors=7)),  # type: ignore[arg-type]  # what is tested
            "options.chunking.vectors: is 7, which is none of CHUNK_VECTORS_UNSPECIFIED, CHUNK_VECTORS_MEAN, "
            "CHUNK_VECTORS_ALL",
        ),
        (
            pb.EncodeOptions(chunking=pb.Chunking(), truncation=pb.TRUNCATION_LEFT),
            "options.chunking: cannot be given together with options.truncation TRUNCATION_LEFT",
        ),
        (
            pb.EncodeOptions(chunking=pb.Chunking(), output=pb.OUTPUT_TOKENS),
            "options.chunking: cannot be given together with options.output OUTPUT_TOKENS",
        ),
        (
            pb.EncodeOptions(chunking=pb.Chunking(), token_offsets=True),
            "options.token_offsets: cannot be given together with options.chunking",
        ),
        (
            chunked(509),
            "inputs[1].text: with its chunks the call has at least 2042 sequences, over the limit of 1024; send fewer "
            "texts, or let chunks overlap less",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    minilm_server: RunningServer, options: pb.EncodeOptions, told: str
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text(LONG, LONG), options=options))
    assert refused(error.value).code == "INVALID_ARGUMENT"
    assert refused(error.value).message.endswith(told)


def test_ids_that_are_too_long_are_refused_although_texts_would_be_cut(minilm_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=ids([7] * 513), options=chunked(0)))
    assert refused(error.value).reason == "SEQUENCE_TOO_LONG"
    assert refused(error.value).message.endswith("over the model's limit of 512; only texts are cut into chunks")


def test_an_answer_of_too_many_chunks_is_refused_before_it_is_computed(minilm_models: Path) -> None:
    with running_server(minilm_models, "--max-message-bytes", "20000") as server:
        options = chunked(490, pb.CHUNK_VECTORS_ALL)
        with pytest.raises(grpc.RpcError) as error:
            stub(server.target).Encode(pb.EncodeRequest(inputs=text(LONG), options=options))
        assert refused(error.value).reason == "ANSWER_TOO_LARGE"
        assert server.total("harken_accepted_total") == 0
