"""The parts of the load generator that need no server: pacer, workload, metrics, figures, report."""

import json
import math
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from harken_client import ModelInfo
from harken_client.load import workload
from harken_client.load.pacer import Call, ClosedLoop, OpenLoop
from harken_client.load.report import Report, render, setup_of
from harken_client.load.runner import Plan, Run
from harken_client.load.scrape import Histogram, between, parse, url_beside
from harken_client.load.summary import ServerFigures, Spread, figures, of_client, of_server, unusable
from harken_client.load.workload import build
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

BERT = 30_522
SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.floats(1, 1000), st.floats(0, 5))
def test_a_schedule_is_ascending_within_its_time_and_the_same_for_its_seed(
    seed: int, rate_per_s: float, until_s: float
) -> None:
    sends_s = list(OpenLoop(rate_per_s, seed).sends_s(until_s))
    assert sends_s == list(OpenLoop(rate_per_s, seed).sends_s(until_s))
    assert all(earlier < later for earlier, later in pairwise(sends_s))
    assert all(0 < moment_s < until_s for moment_s in sends_s)


@settings(max_examples=25)
@given(SEEDS)
def test_a_schedule_is_a_poisson_process_of_its_rate(seed: int) -> None:
    sends_s = np.array(list(OpenLoop(100, seed).sends_s(200)))
    gaps_s = np.diff(sends_s)
    assert len(sends_s) == pytest.approx(20_000, rel=0.05)  # 7 standard deviations
    assert gaps_s.mean() == pytest.approx(0.01, rel=0.06)
    assert gaps_s.std() == pytest.approx(0.01, rel=0.10)  # as large as the mean: exponential


def test_latency_counts_from_the_intended_moment() -> None:
    call = Call(intended_s=1.0, sent_s=1.5, finished_s=1.75, sequences=1, tokens=5)
    assert (call.latency_s, call.late_s) == (0.75, 0.5)


def lengths(spec: str, seed: int = 1, count: int = 5000, max_length: int = 512) -> list[int]:
    work = build(spec, count=count, seed=seed, vocab_size=BERT, max_length=max_length)
    return [len(sequence) for sequence in work.inputs]


@given(SEEDS)
def test_the_same_seed_sends_the_same(seed: int) -> None:
    spec = "lognormal:median=40,p99=300"
    first, again, other = (
        build(spec, count=50, seed=s, vocab_size=BERT, max_length=512) for s in (seed, seed, seed + 1)
    )
    assert first == again
    assert first.inputs != other.inputs


@settings(max_examples=15)
@given(SEEDS, st.integers(10, 100), st.floats(1.5, 8))
def test_lognormal_lengths_have_the_quantiles_asked_for(seed: int, median: int, spread: float) -> None:
    drawn = lengths(f"lognormal:median={median},p99={median * spread}", seed, count=20_000, max_length=10_000)
    assert np.median(drawn) == pytest.approx(median, rel=0.05, abs=1)
    assert np.percentile(drawn, 99) == pytest.approx(median * spread, rel=0.15, abs=1)


def test_other_distributions_are_what_they_say() -> None:
    assert lengths("fixed:32") == [32] * 5000
    uniform = lengths("uniform:low=3,high=6")
    assert set(uniform) == {3, 4, 5, 6}
    bimodal = lengths("bimodal:short=16,long=400,share=0.1")
    assert set(bimodal) == {16, 400}
    assert bimodal.count(400) == pytest.approx(500, rel=0.3)
    assert max(lengths("lognormal:median=40,p99=300,cap=64")) == 64
    assert max(lengths("lognormal:median=40,p99=300", max_length=128)) == 128


@given(SEEDS, st.sampled_from([100, 1000, BERT]), st.integers(1, 64))
def test_token_ids_are_valid_for_the_model(seed: int, vocab_size: int, length: int) -> None:
    work = build(f"fixed:{length}", count=5, seed=seed, vocab_size=vocab_size, max_length=64)
    for sequence in work.inputs:
        assert not isinstance(sequence, str)
        assert len(sequence) == length
        if vocab_size == BERT and length >= 3:
            assert (sequence[0], sequence[-1]) == (101, 102)
            assert all(999 <= token < BERT for token in sequence[1:-1])
        else:
            assert all(0 <= token < vocab_size for token in sequence)


def test_texts_have_about_the_lengths_asked_for() -> None:
    work = build("fixed:12", count=3, seed=0, vocab_size=BERT, max_length=512, text=True)
    assert [len(text.split()) for text in work.inputs if isinstance(text, str)] == [10] * 3


def test_a_file_gives_lengths_or_texts_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("5\n900\n7\n")
    assert lengths(f"file:{path}") == [5, 512, 7]
    path.write_text("a text\n17\n")
    work = build(f"file:{path}", count=1, seed=0, vocab_size=BERT, max_length=512)
    assert work.inputs == ["a text", "17"]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("5\n\n7\n", "2: a blank line, where a length or a text should be"),
        ("a text\n  \n", "2: a blank line, where a length or a text should be"),
        ("5\n" + "9" * 5000, "2: 99999999999999999999 is no length in tokens"),
        ("5\n" + "9" * 25, "2: 99999999999999999999 is no length in tokens"),
    ],
)
def test_a_file_of_lengths_that_cannot_be_read_is_named_with_its_line(lines: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(lines)
    with pytest.raises(ValueError, match="trace") as caught:
        build(f"file:{path}", count=1, seed=0, vocab_size=BERT, max_length=512)
    assert str(caught.value) == f"file:{path}:{fault}"


@pytest.mark.parametrize(
    "spec",
    [
        "", "normal:mean=3", "fixed:", "fixed:0", "fixed:nan", "lognormal:median=40", "lognormal:median=40,p99=30",
        "lognormal:median=40,p99=300,top=3", "uniform:low=5,high=3", "bimodal:short=1,long=2,share=2", "uniform",
    ],
)  # fmt: skip
def test_lengths_that_make_no_sense_are_refused_with_the_forms(spec: str) -> None:
    with pytest.raises(ValueError, match="not one of lognormal:median=40") as caught:
        lengths(spec)
    assert workload.FORMS in str(caught.value)


METRICS = """\
harken_accepted_total{model="m"} 40.0
# HELP harken_tokens_total Tokens computed.
# TYPE harken_tokens_total counter
harken_tokens_total{model="m",kind="real"} 100.0
harken_tokens_total{model="m",kind="padding"} 50.0
harken_tokens_total{model="other \\"x\\", n",kind="real"} 1e6
harken_batch_sequences_bucket{model="m",le="1.0"} 2.0
harken_batch_sequences_bucket{model="m",le="4.0"} 6.0
harken_batch_sequences_bucket{model="m",le="+Inf"} 8.0
harken_batch_sequences_sum{model="m"} 24.0
harken_batch_sequences_count{model="m"} 8.0
harken_memory_bytes{kind="rss"} 1048576
harken_memory_bytes{kind="rss_peak"} 2097152 1700000000000

this is no metric
harken_strange{model="m"} word
"""


def test_the_text_format_is_read() -> None:
    metrics = parse(METRICS)
    assert metrics.value("harken_tokens_total", model="m") == 150
    assert metrics.value("harken_tokens_total", model="m", kind="real") == 100
    assert metrics.value("harken_tokens_total", model='other "x", n') == 1e6
    assert metrics.value("harken_memory_bytes", kind="rss_peak") == 2_097_152
    assert metrics.value("no_such_metric") == 0
    assert metrics.histogram("harken_batch_sequences", model="m") == Histogram(
        buckets=((1.0, 2.0), (4.0, 6.0), (math.inf, 8.0)), total=24.0, count=8.0
    )


def test_quantiles_lie_linearly_in_their_bucket() -> None:
    histogram = Histogram(((1.0, 2.0), (4.0, 6.0), (math.inf, 8.0)), 24.0, 8.0)
    assert histogram.mean == 3.0
    assert [histogram.quantile(share) for share in (0.125, 0.25, 0.5, 0.75, 0.99)] == [0.5, 1.0, 2.5, 4.0, 4.0]
    nothing = Histogram((), 0.0, 0.0)
    assert (nothing.mean, nothing.quantile(0.5)) == (None, None)


def test_only_what_was_observed_in_between_counts() -> None:
    before = Histogram(((1.0, 2.0), (math.inf, 2.0)), 1.0, 2.0)
    after = Histogram(((1.0, 5.0), (math.inf, 6.0)), 9.0, 6.0)
    assert between(before, after) == Histogram(((1.0, 3.0), (math.inf, 4.0)), 8.0, 4.0)


PLAN = Plan(pacer=ClosedLoop(4), duration_s=3.0, warmup_s=1.0, deadline_s=30.0, inputs_per_call=2, output="sentence")


def test_the_clients_figures_leave_the_warm_up_out_and_no_late_call() -> None:
    calls = [
        Call(0.5, 0.5, 1.5, 2, 20),  # sent in the warm-up: its end counts for the throughput alone
        Call(1.0, 1.0, 1.2, 2, 20),
        Call(2.0, 2.1, 2.5, 2, 20),
        Call(3.0, 3.0, 3.1, 0, 0, ("RESOURCE_EXHAUSTED BACKLOG_FULL",)),
        Call(3.0, 3.0, 3.2, 1, 10, ("INVALID_ARGUMENT",)),
        Call(3.5, 3.5, 9.0, 2, 20),  # answered after the period: its latency counts
    ]
    result = of_client(calls, PLAN)
    assert result.calls == 5
    assert result.failed_calls == 1
    assert result.windows_per_s == [4.0, 2.0, 1.0]
    assert result.sequences_per_s == pytest.approx(7 / 3)
    assert result.tokens_per_s == pytest.approx(70 / 3)
    assert result.steady is False
    assert result.errors == {"RESOURCE_EXHAUSTED BACKLOG_FULL": 1, "INVALID_ARGUMENT": 1}
    assert result.late_sends == 1
    assert result.latest_send_s == pytest.approx(0.1)
    assert result.latency.max_s == 5.5
    assert result.latency.mean_s == pytest.approx((0.2 + 0.5 + 0.2 + 5.5) / 4)


def test_windows_within_ten_percent_are_steady() -> None:
    calls = [Call(moment, moment, moment, 1, 1) for moment in np.arange(1.005, 4.0, 0.01).tolist()]
    assert of_client(calls, PLAN).steady is True
    assert of_client([], PLAN).steady is False


def test_the_servers_figures_are_differences() -> None:
    later = (
        METRICS.replace('kind="real"} 100.0', 'kind="real"} 400.0')
        .replace('kind="padding"} 50.0', 'kind="padding"} 150.0')
        .replace("_sum{model=\"m\"} 24.0", "_sum{model=\"m\"} 64.0")
        .replace("_count{model=\"m\"} 8.0", "_count{model=\"m\"} 18.0")
    )  # fmt: skip
    nothing = Spread(None, None, None, None)
    assert of_server(parse(METRICS), parse(later), "m") == ServerFigures(
        mean_batch_sequences=4.0,
        padding_share=0.25,
        stages=dict.fromkeys(("tokenize", "queue", "collate", "compute", "scatter", "edge"), nothing),
        rss_bytes=1_048_576,
        rss_peak_bytes=2_097_152,
    )


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ('kind="padding"} 50.0', 'kind="padding"} 49.0'),
        ('le="4.0"} 6.0', 'le="4.0"} 5.0'),
        ('_sum{model="m"} 24.0', '_sum{model="m"} 3.0'),
        ('harken_accepted_total{model="m"} 40.0', 'harken_accepted_total{model="x"} 40.0'),
        ("process_start_time_seconds 1", "process_start_time_seconds 2"),
    ],
)
def test_counters_of_another_start_are_not_subtracted(was: str, now: str) -> None:
    before = METRICS + "process_start_time_seconds 1\n"
    assert unusable(parse(before), parse(before), "m") == ""
    assert "another start" in unusable(parse(before), parse(before.replace(was, now)), "m")


def test_counters_of_other_models_and_gauges_may_fall() -> None:
    after = METRICS.replace("1e6", "1").replace("1048576", "5")
    assert unusable(parse(METRICS), parse(after), "m") == ""


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("localhost:8001", "localhost"), ("host", "host"), ("[::1]:8001", "[::1]"), ("[::1]", "[::1]"),
        ("dns:///a.b:1", "a.b"), ("ipv4:10.0.0.1:1", "10.0.0.1"), ("unix:/run/x", "127.0.0.1"),
    ],
)  # fmt: skip
def test_metrics_and_http_are_looked_for_beside_the_server(target: str, host: str) -> None:
    assert url_beside(target, 8002) == f"http://{host}:8002"


INFO = ModelInfo("m", 3, True, 384, 512, BERT, 6, 12, True, "fp32", "cpu", "", "", "")


def report(*, scraped: bool) -> Report:
    calls = [Call(moment, moment, moment + 0.004, 2, 20) for moment in np.arange(1.005, 4.0, 0.01).tolist()]
    metrics = parse(METRICS) if scraped else None
    work = build("fixed:10", count=4, seed=7, vocab_size=BERT, max_length=512)
    client, server, reason = figures(Run(calls, metrics, metrics), PLAN, "m")
    assert reason == ("" if scraped else "did not answer")
    return Report(setup_of("host:1", "harken", INFO, PLAN, work), client, server)


def rendered(result: Report) -> str:
    console = Console(width=120, file=StringIO())
    with console.capture() as captured:
        render(result, console)
    return captured.get()


def test_a_report_tells_setup_and_figures() -> None:
    text = rendered(report(scraped=True))
    for part in (
        "host:1, m/3 fp32 on cpu",
        "harken",
        "closed loop, 4 calls under way, 2 token ids inputs a call, sentence output",
        "fixed:10, seed 7",
        "3 s after 1 s of warm-up, deadline 30 s",
        "latency of answered calls",
        "200.0 sequences/s, 2000 tokens/s",
        "200.0 | 200.0 | 200.0 sequences/s, agree within 10 %",
        "p50 4.00 ms, p95 4.00 ms, p99 4.00 ms, max 4.00 ms",
        "none, of 300 calls",
        "0, the latest by 0.00 ms",
        "1 MiB, peak 2 MiB",
        "compute",
    ):
        assert part in text


def test_without_metrics_only_the_clients_side_is_told() -> None:
    text = rendered(report(scraped=False))
    assert "not read" in text
    assert "compute" not in text


def test_a_report_as_json_holds_everything() -> None:
    result = json.loads(report(scraped=True).json())
    assert result.keys() == {"setup", "client", "server"}
    assert result["setup"]["pace"] == "closed loop, 4 calls under way"
    assert result["client"]["windows_per_s"] == [200.0, 200.0, 200.0]
    assert result["server"]["rss_peak_bytes"] == 2_097_152
    assert json.loads(report(scraped=False).json())["server"] is None
