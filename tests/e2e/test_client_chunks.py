"""Long texts through the client library and the command: a real server answers."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from harken_client import Chunking, Client, InvalidInput
from support.server import BIN, RunningServer, running_server

LONG = "the caf\u00e9 by the river was full of people, and nobody would leave before midnight " * 60


@pytest.fixture(scope="module")
def client(minilm_server: RunningServer) -> Client:
    return Client(minilm_server.target)


def test_a_long_text_has_one_vector_that_is_the_mean_of_its_chunks(client: Client) -> None:
    (whole,) = client.encode([LONG], chunking=Chunking(overlap_tokens=30))
    (parts,) = client.encode_detailed([LONG], chunking=Chunking(overlap_tokens=30, vectors="all"))
    assert parts.vector.shape == (len(parts.chunks), 384)
    assert len(parts.chunks) > 1
    assert (parts.chunks[0].start, parts.chunks[-1].end) == (0, len(LONG) - 1)
    mean = np.average(parts.vector, axis=0, weights=[chunk.tokens - 2 for chunk in parts.chunks])
    np.testing.assert_allclose(whole, mean / np.linalg.norm(mean), atol=1e-5)
    (streamed,) = client.encode_stream([LONG], chunking=Chunking(overlap_tokens=30))
    assert streamed.encoding is not None
    assert streamed.encoding.chunks == parts.chunks
    np.testing.assert_allclose(streamed.vector, whole, atol=1e-5)


def test_offsets_find_each_token_in_its_text(client: Client) -> None:
    text = "na\u00efve \U0001f600 caf\u00e9s"
    encodings = client.encode_detailed([text, [101, 102]], token_offsets=True)
    offsets = encodings[0].offsets
    assert offsets is not None
    assert offsets.shape == (encodings[0].tokens, 2)
    assert [text[start:end] for start, end in offsets] == ["", "na\u00efve", "\U0001f600", "caf\u00e9s", ""]
    assert encodings[1].offsets is None


def test_lists_become_as_many_calls_as_their_chunks_need(minilm_models: Path) -> None:
    with running_server(minilm_models, "--max-inputs", "8") as server, Client(server.target, max_inputs=8) as client:
        texts = [LONG, "short", LONG, LONG, "short"]
        encodings = client.encode_detailed(texts, chunking=Chunking(), token_offsets=False)
        assert [len(encoding.chunks) for encoding in encodings] == [2, 1, 2, 2, 1]
        assert client.encode(texts, chunking=Chunking()).shape == (5, 384)
        with pytest.raises(InvalidInput) as refused:
            client.encode([LONG * 8], chunking=Chunking())
        assert refused.value.reason == "TOO_MANY_CHUNKS"


def test_what_makes_no_sense_is_told_before_it_is_sent(client: Client) -> None:
    with pytest.raises(ValueError, match="its own shape: call encode_detailed"):
        client.encode(["a"], chunking=Chunking(vectors="all"))
    with pytest.raises(ValueError, match=r"chunking\.overlap_tokens is between 0 and 4294967295, not -1"):
        client.encode(["a"], chunking=Chunking(overlap_tokens=-1))
    with pytest.raises(InvalidInput, match="overlap_tokens: is 600"):
        client.encode(["a"], chunking=Chunking(overlap_tokens=600))


def harken(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(BIN / "harken"), *arguments], check=False, capture_output=True, text=True, timeout=120)


def test_the_command_cuts_long_lines(minilm_server: RunningServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(f"{LONG}\nshort\n")
    server = ("-s", minilm_server.target)
    source = ("encode", str(tmp_path / "in.txt"))
    assert "over the model's limit" in harken(*source, *server).stderr
    every = harken(*source, "--chunk", "all", "--overlap-tokens", "30", *server)
    (first, second) = [json.loads(line) for line in every.stdout.splitlines()]
    assert len(first["vector"]) == len(first["chunks"]) > 1
    assert (len(second["vector"]), second["chunks"]) == (1, [{"start": 0, "end": 5, "tokens": 3}])
    written = harken(*source, "--chunk", "mean", "-o", str(tmp_path / "out.npy"), *server)
    assert (written.returncode, written.stderr) == (0, "")
    expected = client.encode([LONG, "short"], chunking=Chunking())
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    for wrong, told in (
        (("--chunk", "mean", "--truncate"), "--chunk takes the place of --truncate"),
        (("--overlap-tokens", "3"), "--overlap-tokens goes with --chunk"),
        (("--chunk", "all", "-o", "out.npy"), "--chunk all gives each text its own shape: write .jsonl"),
    ):
        refused = harken(*source, *wrong, *server)
        assert refused.returncode == 2
        assert told in refused.stderr
