"""`harken load` against a fake server, as a process."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from client.fake_server import FakeEncoder, Refusal, free_port
from harken.v1 import encoder_pb2 as pb

COMMAND = [sys.executable, "-c", "from harken_client.cli import main; main()", "load"]
SHORT = ["--duration", "0.6", "--warmup", "0.2", "--lengths", "fixed:8"]


def load(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--server", target, *SHORT, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


class MetricsServer(ThreadingHTTPServer):
    """Counts what the fake did. `counted` is what each scrape saw: (real, padding) tokens."""

    def __init__(self, fake: FakeEncoder) -> None:
        super().__init__(("127.0.0.1", 0), _Metrics)
        self.fake = fake
        self.counted: list[tuple[int, int]] = []
        self.restarts = self.foreign = self.garbage = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/metrics"

    def body(self) -> str:
        real, padding = self.fake.real_tokens, self.fake.padding_tokens
        if self.restarts and self.counted:
            real = padding = 0
        self.counted.append((real, padding))
        accepted = "other_total 1" if self.foreign else f'harken_accepted_total{{model="tiny"}} {real}'
        kinds = (("real", real), ("padding", padding))
        tokens = [f'harken_tokens_total{{model="tiny",kind="{kind}"}} {count}' for kind, count in kinds]
        return "\n".join([accepted, *tokens, ""])


class _Metrics(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        if self.server.garbage:
            self.wfile.write(b"this is not HTTP\r\n\r\n")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.body().encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture
def metrics(fake: FakeEncoder) -> Iterator[MetricsServer]:
    server = MetricsServer(fake)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_closed_loop_is_measured_with_the_servers_side(
    fake: FakeEncoder, target: str, metrics: MetricsServer
) -> None:
    fake.delay_s = 0.01
    finished = load(target, "--concurrency", "3", "--metrics", metrics.url, "--json", "-")
    assert (finished.returncode, finished.stderr) == (0, "")
    result = json.loads(finished.stdout)
    assert result["setup"]["pace"] == "closed loop, 3 calls under way"
    assert result["setup"]["server"] == target
    assert result["client"]["errors"] == {}
    assert result["client"]["calls"] > 0
    assert result["client"]["tokens_per_s"] == pytest.approx(8 * result["client"]["sequences_per_s"])
    assert result["client"]["latency"]["p50_s"] >= 0.01
    assert result["server"]["padding_share"] == 0.0
    assert all(len(call.inputs) == 1 and len(call.inputs[0].token_ids.ids) == 8 for call in fake.calls)
    assert all(call.options.truncation == pb.TRUNCATION_RIGHT for call in fake.calls)


def test_the_servers_figures_leave_its_earlier_life_and_the_warm_up_out(
    fake: FakeEncoder, target: str, metrics: MetricsServer
) -> None:
    fake.padding_tokens = 1_000_000
    arguments = [
        "--metrics",
        metrics.url,
        "--json",
        "-",
        "--inputs-per-call",
        "3",
        "--lengths",
        "uniform:low=1,high=16",
    ]
    finished = load(target, *arguments)
    assert (finished.returncode, finished.stderr) == (0, "")
    (real, padding), (real_after, padding_after) = metrics.counted
    assert real > 0  # the warm-up's
    share = (padding_after - padding) / (real_after - real + padding_after - padding)
    assert 0.1 < share < 0.9
    assert json.loads(finished.stdout)["server"]["padding_share"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("restarts", "counts from another start than before: the server restarted, or there are several"),
        ("foreign", "is not a harken server's: it has no harken_accepted_total"),
        ("garbage", "did not answer"),
    ],
)
def test_metrics_whose_difference_means_nothing_are_not_told(
    fault: str, reason: str, target: str, metrics: MetricsServer
) -> None:
    setattr(metrics, fault, True)
    finished = load(target, "--metrics", metrics.url, "--json", "-")
    assert finished.returncode == 0
    assert finished.stderr == f"harken: {metrics.url} {reason}, so the server's side is not told\n"
    assert json.loads(finished.stdout)["server"] is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/metrics", "http://[::1/metrics", "ftp://x"])
def test_a_metrics_address_that_is_none_is_one_line(url: str, target: str) -> None:
    finished = load(target, "--metrics", url)
    assert (finished.returncode, finished.stderr) == (
        0,
        f"harken: {url} did not answer, so the server's side is not told\n",
    )


def test_a_run_of_mostly_failed_calls_ends_with_1(fake: FakeEncoder, target: str) -> None:
    fake.refuse_on_call = {n: Refusal(grpc.StatusCode.INTERNAL, "broken", "INTERNAL") for n in range(100_000) if n % 5}
    finished = load(target, "--metrics", "none", "--json", "-")
    client = json.loads(finished.stdout)["client"]
    assert client["errors"] == {"INTERNAL": client["failed_calls"]}
    assert (finished.returncode, finished.stderr) == (
        1,
        f"harken: {client['failed_calls']} of {client['calls']} calls failed\n",
    )


def test_a_report_that_has_no_place_fails_before_the_run(fake: FakeEncoder, target: str) -> None:
    finished = load(target, "--json", "/nope/x")
    assert (finished.returncode, finished.stderr) == (2, "harken: /nope/x cannot be written\n")
    assert fake.models_asked == 0


def test_an_open_loop_sends_its_schedule_whatever_the_server_does(fake: FakeEncoder, target: str) -> None:
    fake.delay_s = 1.0
    arguments = ["--rate", "100", "--seed", "5", "--metrics", "none", "--json", "-", "--inputs-per-call", "2"]
    finished = load(target, *arguments, "--deadline-ms", "30000", "--text", "--tokens")
    assert (finished.returncode, finished.stderr) == (0, "")
    result = json.loads(finished.stdout)
    assert result["setup"]["pace"] == "open loop, 100 calls/s (Poisson)"
    assert result["setup"]["inputs"] == "text"
    assert result["client"]["latency"]["p50_s"] >= 1.0
    assert 30 < result["client"]["calls"] < 90
    assert all(len(call.inputs) == 2 and call.options.output == pb.OUTPUT_TOKENS for call in fake.calls)
    assert result["server"] is None


def test_refusals_are_counted_by_code_and_reason_and_never_repeated(fake: FakeEncoder, target: str) -> None:
    busy = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "BACKLOG_FULL", retry_after_s=0.01)
    fake.refuse_on_call = dict.fromkeys(range(1, 100_000, 3), busy)
    finished = load(target, "--metrics", "none", "--json", "-")
    assert (finished.returncode, finished.stderr) == (0, "")
    result = json.loads(finished.stdout)
    assert result["client"]["errors"].keys() == {"RESOURCE_EXHAUSTED BACKLOG_FULL"}


def test_a_run_without_any_answer_ends_with_1(fake: FakeEncoder, target: str) -> None:
    fake.refuse_on_call = dict.fromkeys(range(1, 100_000), Refusal(grpc.StatusCode.INTERNAL, "broken"))
    finished = load(target, "--metrics", "none")
    assert (finished.returncode, finished.stderr) == (1, "harken: no call was answered\n")


def test_metrics_that_do_not_answer_are_told_in_one_line(target: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/metrics"
    finished = load(target, "--metrics", url)
    assert finished.returncode == 0
    assert finished.stderr == f"harken: {url} did not answer, so the server's side is not told\n"
    assert "not read" in finished.stdout


def test_lengths_that_make_no_sense_are_one_line_and_2(target: str) -> None:
    finished = load(target, "--lengths", "normal")
    assert finished.returncode == 2
    assert finished.stderr.startswith("harken: lengths 'normal' are not one of lognormal:median=40")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--protocol", "oip", "--text"],
            "--protocol oip sends token ids and gets sentence vectors: no --text or --tokens",
        ),
        (
            ["--protocol", "openai", "--tokens"],
            "--protocol openai sends token ids and gets sentence vectors: no --text or --tokens",
        ),
        (["--http", "http://x"], "--http is for --protocol openai, not harken"),
    ],
)
def test_what_a_protocol_does_not_carry_is_one_line_and_2(target: str, arguments: list[str], line: str) -> None:
    finished = load(target, *arguments)
    assert (finished.returncode, finished.stderr) == (2, f"harken: {line}\n")


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://[::1", "localhost:8000"])
def test_an_http_address_that_is_none_is_one_line_and_2(target: str, url: str) -> None:
    finished = load(target, "--protocol", "openai", "--http", url, "--metrics", "none")
    assert (finished.returncode, finished.stderr) == (2, f"harken: {url} is no http address\n")


def test_a_file_of_texts_is_not_sent_where_token_ids_are(target: str, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("a text\n")
    finished = load(target, "--protocol", "oip", "--lengths", f"file:{tmp_path}/texts")
    line = f"harken: --protocol oip sends token ids, and file:{tmp_path}/texts holds texts\n"
    assert (finished.returncode, finished.stderr) == (2, line)


def test_a_server_without_the_protocol_is_told_so(target: str) -> None:
    finished = load(target, "--protocol", "oip", "--metrics", "none", "--json", "-")
    assert (finished.returncode, finished.stderr) == (1, "harken: no call was answered\n")
    assert json.loads(finished.stdout)["client"]["errors"].keys() == {"UNIMPLEMENTED"}
