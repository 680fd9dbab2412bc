"""What a sentence vector may be: shorter, not normalised, pooled another way, in fewer bits; and what is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from harken.v1 import encoder_pb2 as pb
from harken_client import Client, InvalidInput
from harken_server.execution.finishing import Finish
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.calls import refused, stub, text
from support.server import RunningServer

TEXTS = ["A man is eating food.", "x", "Someone has a meal, and somebody else looks on."]


@pytest.fixture(scope="module")
def whole(minilm_server: RunningServer) -> npt.NDArray[np.float32]:
    with Client(minilm_server.target) as client:
        return np.array(client.encode(TEXTS), np.float32)


@pytest.fixture(scope="module")
def tokens(minilm_server: RunningServer) -> list[npt.NDArray[np.float32]]:
    with Client(minilm_server.target) as client:
        return client.encode(TEXTS, output="tokens")


def unit(vectors: Any) -> npt.NDArray[np.float32]:
    stacked = np.array(vectors)
    return np.array(stacked / np.linalg.norm(stacked, axis=-1, keepdims=True), np.float32)


def encode(server: RunningServer, **options: Any) -> npt.NDArray[Any]:
    with Client(server.target) as client:
        vectors: npt.NDArray[Any] = client.encode(TEXTS, **options)
        return vectors


@pytest.mark.parametrize("dimensions", [1, 64, 383, 384])
def test_the_first_dimensions_normalised_again(minilm_server: RunningServer, whole: Any, dimensions: int) -> None:
    got = encode(minilm_server, dimensions=dimensions)
    np.testing.assert_allclose(got, unit(whole[:, :dimensions]), atol=1e-5)


def test_not_normalised_it_is_the_mean_of_the_tokens(minilm_server: RunningServer, whole: Any, tokens: Any) -> None:
    got = encode(minilm_server, normalize=False)
    np.testing.assert_allclose(got, [vectors.mean(axis=0) for vectors in tokens], atol=1e-5)
    np.testing.assert_allclose(unit(got), whole, atol=1e-5)
    np.testing.assert_array_equal(encode(minilm_server, normalize=True), whole)
    short = encode(minilm_server, normalize=False, dimensions=10)
    np.testing.assert_allclose(short, got[:, :10], atol=1e-5)


def test_other_poolings(minilm_server: RunningServer, whole: Any, tokens: Any) -> None:
    np.testing.assert_array_equal(encode(minilm_server, pooling="mean"), whole)
    first, greatest = unit([one[0] for one in tokens]), unit([one.max(axis=0) for one in tokens])
    np.testing.assert_allclose(encode(minilm_server, pooling="cls"), first, atol=1e-5)
    np.testing.assert_allclose(encode(minilm_server, pooling="max"), greatest, atol=1e-5)
    plain = encode(minilm_server, pooling="max", normalize=False)
    np.testing.assert_allclose(plain, [one.max(axis=0) for one in tokens], atol=1e-5)


def test_fewer_bits(minilm_server: RunningServer, whole: Any) -> None:
    half = encode(minilm_server, element_type="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, whole.astype(np.float16))
    eighth = encode(minilm_server, element_type="int8")
    assert eighth.dtype == np.int8
    assert np.abs(eighth).max(axis=1).tolist() == [127] * 3
    cosines = (unit(eighth.astype(np.float32)) * whole).sum(axis=1)
    assert cosines.min() > 0.9999
    bits = encode(minilm_server, element_type="binary")
    assert bits.dtype == np.uint8
    assert bits.shape == (3, 48)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), whole > 0)
    assert encode(minilm_server, element_type="binary", dimensions=64).shape == (3, 8)


def test_int8_says_its_scale(minilm_server: RunningServer, whole: Any) -> None:
    with Client(minilm_server.target) as client:
        for encoding, vector in zip(client.encode_detailed(TEXTS, element_type="int8"), whole, strict=True):
            np.testing.assert_allclose(encoding.vector * encoding.scale, vector, atol=encoding.scale / 2 + 1e-6)


def test_a_stream_takes_the_same_options(minilm_server: RunningServer, whole: Any) -> None:
    with Client(minilm_server.target) as client:
        options: Any = {"dimensions": 8, "element_type": "float16"}
        got = [result.vector for result in client.encode_stream(TEXTS, **options)]
    np.testing.assert_allclose(got, unit(whole[:, :8]), atol=1e-3)
    assert got[0].dtype == np.float16


def test_no_inputs_have_the_shape_of_many(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        assert client.encode([], dimensions=16).shape == (0, 16)
        nothing = client.encode([], element_type="binary")
        assert nothing.dtype == np.uint8
        assert nothing.shape == (0, 48)


def test_what_is_too_long_loses_its_beginning(minilm_server: RunningServer) -> None:
    words = "alpha " * 300 + "beta " * 300
    with Client(minilm_server.target) as client:
        (cut,) = client.encode_detailed([words], truncate="left")
        assert (cut.truncated, cut.tokens) == (True, 512)
        np.testing.assert_allclose(cut.vector, client.encode(["alpha " * 210 + "beta " * 300])[0], atol=1e-5)
        ids = [101, *range(2000, 2600)]
        np.testing.assert_allclose(client.encode([ids], truncate="left"), client.encode([ids[-512:]]), atol=1e-5)
        long = "alpha " * 30_000 + "beta " * 510
        np.testing.assert_allclose(
            client.encode([long], truncate="left")[0], client.encode(["beta " * 510])[0], atol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        (pb.EncodeOptions(dimensions=385), "options.dimensions", "is 385, which is not from 1 to the model's 384"),
        (
            pb.EncodeOptions(dimensions=12, data_type=pb.DATA_TYPE_BINARY),
            "options.data_type",
            "is DATA_TYPE_BINARY, which is not possible with 12 dimensions, which 8 does not divide",
        ),
        (pb.EncodeOptions(pooling=9), "options.pooling", "is 9, which is none of POOLING_UNSPECIFIED"),  # type: ignore[arg-type]  # out of range on purpose
        (pb.EncodeOptions(data_type=9), "options.data_type", "is 9, which is none of DATA_TYPE_UNSPECIFIED"),  # type: ignore[arg-type]  # as above
        (
            pb.EncodeOptions(output=pb.OUTPUT_TOKENS, dimensions=8),
            "options.dimensions",
            "cannot be given together with options.output OUTPUT_TOKENS",
        ),
        (
            pb.EncodeOptions(output=pb.OUTPUT_TOKENS, normalize=False),
            "options.normalize",
            "cannot be given together with options.output OUTPUT_TOKENS",
        ),
    ],
)
def test_what_cannot_be_is_named(
    minilm_server: RunningServer, options: pb.EncodeOptions, field: str, message: str
) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - grpc's error has no public type of its own
        stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text("a"), options=options))
    wrong = refused(error.value)
    assert (wrong.code, wrong.fields) == ("INVALID_ARGUMENT", (field,))
    assert wrong.message.startswith(f"{field}: {message}")


def test_the_client_knows_what_it_may_ask(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        wrong: Any = {"pooling": "sum"}
        for options in (wrong, {"element_type": "int4"}, {"truncate": "middle"}, {"dimensions": 0}):
            with pytest.raises(ValueError, match=next(iter(options))):
                client.encode(["a"], **options)
        with pytest.raises(InvalidInput, match="385"):
            client.encode(["a"], dimensions=385)


def test_a_file_of_shorter_vectors(minilm_server: RunningServer, tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415 - this test alone
    import sys  # noqa: PLC0415

    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    command = [sys.executable, "-c", "from harken_client.cli import main; main()", "encode"]
    command += ["-i", str(tmp_path / "in.txt"), "-o", str(tmp_path / "out.npy"), "--dimensions", "32"]
    subprocess.run([*command, "--server", minilm_server.target], check=True, timeout=60)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), encode(minilm_server, dimensions=32), atol=1e-5)


class Bundle:
    def __init__(self, pooling: str, normalized: bool) -> None:
        self.pooling, self.normalized = pooling, normalized


@given(
    arrays(np.float32, (5, 6), elements=st.floats(-4, 4, width=32)),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, 1, 3, 6]),
    st.sampled_from([None, "mean", "cls", "max"]),
    st.booleans(),
)
def test_whatever_is_asked_it_is_what_pooling_cutting_and_normalising_give(
    vectors: npt.NDArray[np.float32], normalize: bool | None, dimensions: int | None, pooling: Any, normalized: bool
) -> None:
    bundle: Any = Bundle("mean", normalized)
    finish = Finish(normalize, dimensions, pooling)
    pooled = {"mean": vectors.mean(axis=0), "cls": vectors[0], "max": vectors.max(axis=0)}

    def scaled(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)

    graph = scaled(pooled["mean"]) if normalized else pooled["mean"]
    computed = {"sentence_embedding": graph, "token_embeddings": vectors}
    wanted = ("sentence_embedding",)
    engine = {name: computed[name] for name in finish.engine_outputs(wanted, bundle)}
    expected = pooled[pooling or "mean"][: dimensions or 6]
    if normalized if normalize is None else normalize:
        if np.linalg.norm(expected) < 1e-3:
            return  # the direction of next to nothing is anybody's
        expected = scaled(expected)
    np.testing.assert_allclose(finish.apply(engine, wanted, bundle)["sentence_embedding"], expected, atol=1e-4)
