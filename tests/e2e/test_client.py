"""The client library, its command and the demo, against real servers."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from harken_client import AsyncClient, Client, InvalidInput, ModelNotFound
from harken_server.settings import markdown
from support.server import BIN, RunningServer, running_server

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_call_in_a_few_lines(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        vectors = client.encode(["A man is eating food.", "Someone has a meal.", "The market fell."], truncate=False)
        assert vectors.shape == (3, 384)
        assert vectors.dtype == np.float32
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
        tokens = client.encode(["hello world"], output="tokens")
        assert [one.shape for one in tokens] == [(4, 384)]
        assert client.health() == "SERVING"
        assert [model.name for model in client.models()] == ["all-MiniLM-L6-v2"]


async def test_errors_are_the_clients_own_with_the_callers_index(minilm_server: RunningServer) -> None:
    async with AsyncClient(minilm_server.target) as client:
        with pytest.raises(InvalidInput) as error:
            await client.encode(["fine"] * 1030 + [""])
        assert error.value.index == 1030
        assert error.value.reason == "NO_TOKENS"
        with pytest.raises(InvalidInput, match="900 tokens, over the model's limit of 512"):
            await client.encode(["word " * 898])
        (cut,) = await client.encode_detailed(["word " * 898], truncate=True)
        assert (cut.tokens, cut.truncated) == (512, True)
        with pytest.raises(ModelNotFound):
            await client.encode(["fine"], model="absent")
        assert (await client.encode(["fine"])).shape == (1, 384)


async def test_bulk_outlives_a_drain_and_a_restart_without_loss_or_duplicate(tiny_models: Path) -> None:
    inputs = [[1 + index % 900] * (1 + index % 60) for index in range(6000)]
    seen: list[int] = []
    vectors: dict[int, np.ndarray] = {}
    with running_server(tiny_models) as first:
        port = str(first.grpc_port)
        restarted = threading.Event()
        stop = threading.Event()

        def restart() -> None:
            assert first.wait_exit() == 0
            with running_server(tiny_models, "--grpc-port", port):
                restarted.set()
                stop.wait(120)

        thread = threading.Thread(target=restart)
        async with AsyncClient(first.target) as client:
            async for result in client.encode_stream(inputs, ordered=True):
                assert result.error is None
                assert result.encoding is not None
                seen.append(result.index)
                vectors[result.index] = result.encoding.vector
                if len(seen) == 1500:
                    first.terminate()
                    thread.start()
            expected = await client.encode([inputs[index] for index in range(0, 6000, 500)])
        assert restarted.is_set()
        stop.set()
        thread.join()
    assert seen == list(range(6000))
    got = np.stack([vectors[index] for index in range(0, 6000, 500)])
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_the_load_test_reads_both_sides(minilm_server: RunningServer, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    metrics = f"http://127.0.0.1:{minilm_server.metrics_port}/metrics"
    command = [str(BIN / "harken"), "load", "--server", minilm_server.target, "--metrics", metrics]
    options = ["--duration", "3", "--warmup", "1", "--concurrency", "16", "--json", str(report)]
    subprocess.run([*command, *options], check=True, timeout=60, capture_output=True)
    content = json.loads(report.read_text())
    assert content["client"]["sequences_per_s"] > 0
    assert content["client"]["errors"] == {}
    assert set(content["server"]["stages"]) == {"tokenize", "queue", "collate", "compute", "scatter", "edge"}
    assert content["server"]["mean_batch_sequences"] >= 1.0
    assert 0.0 <= content["server"]["padding_share"] < 0.10
    assert content["server"]["rss_peak_bytes"] >= content["server"]["rss_bytes"] > 0
    open_loop = ["--rate", "20", "--duration", "2", "--warmup", "0.5", "--json", str(report)]
    subprocess.run([*command, *open_loop], check=True, timeout=60, capture_output=True)
    content = json.loads(report.read_text())
    assert content["client"]["errors"] == {}
    assert "open loop, 20 calls/s" in content["setup"]["pace"]


@pytest.mark.parametrize(
    ("protocol", "method"), [("harken", "Encode"), ("oip", "ModelInfer"), ("openai", "POST /v1/embeddings")]
)
def test_a_load_over_each_protocol_is_what_the_server_counts(
    tiny_server: RunningServer, protocol: str, method: str
) -> None:
    def counted() -> list[float]:
        return [
            tiny_server.total("harken_requests_total", method=method, code="OK"),
            tiny_server.total("harken_finished_total", outcome="answered"),
        ]

    before = counted()
    urls = [f"http://127.0.0.1:{port}" for port in (tiny_server.http_port, tiny_server.metrics_port)]
    command = [str(BIN / "harken"), "load", "--server", tiny_server.target, "--metrics", f"{urls[1]}/metrics"]
    command += ["--protocol", protocol, *(["--http", urls[0]] if protocol == "openai" else [])]
    options = ["--duration", "1", "--warmup", "0", "--inputs-per-call", "4", "--json", "-"]
    done = subprocess.run([*command, *options], check=True, timeout=60, capture_output=True, text=True)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["setup"]["protocol"] == protocol
    calls = report["client"]["calls"]
    assert calls > 0
    assert report["client"]["errors"] == {}
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [calls, 4 * calls]


def test_the_demo_shows_meaning_and_figures_and_leaves_nothing_running(minilm_models: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "docs" / "demo.py"), "--models", str(minilm_models), "--load-s", "2"]
    done = subprocess.run(command, check=True, timeout=180, capture_output=True, text=True, cwd=REPOSITORY)
    for expected in (
        "SERVING", "I forgot my login", "How do I reset my password?", "throughput", "p99", "mean batch", "padding",
        "queue time", "compute time", "server memory", "make serve",
    ):  # fmt: skip
        assert expected in done.stdout
    assert re.search(r"errors\s+│ none", done.stdout)
    # The session's own servers listen on other models folders or were started with other options.
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if "--drain-delay-s" in line and str(BIN / "harken-server") in line]


def test_the_settings_page_is_what_the_settings_give() -> None:
    assert (REPOSITORY / "docs" / "settings.md").read_text() == markdown() + "\n"
