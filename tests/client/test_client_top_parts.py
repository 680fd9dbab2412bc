"""The parts of `harken top` that need no server: figures of two scrapes, addresses, and what a frame has room for."""

import re

import pytest
from harken_client.load.scrape import Metrics, parse
from harken_client.top.figures import Figures, Period, figures_of
from harken_client.top.frame import Row, frame
from harken_client.top.watch import Watched, metrics_url
from rich.console import Console

BUCKETS = ("0.1", "1.0", "10.0", "+Inf")


def scraped(scale: float, *, started: float = 1.0, wait_s: float = 0.0, model: str = "a") -> Metrics:
    """Counters in proportion to `scale`: of 10 sequences in 4 calls, answered within 1 s half of the time."""
    up_to = (0.0, 5.0, 10.0, 10.0)
    histograms = {"harken_request_duration_seconds": up_to, "harken_batch_sequences": (0.0, 1.0, 4.0, 4.0)}
    lines = [
        f"process_start_time_seconds {started}",
        f'harken_accepted_total{{model="{model}"}} {10 * scale}',
        f'harken_finished_total{{model="{model}",outcome="answered"}} {10 * scale}',
        f'harken_finished_total{{model="{model}",outcome="failed"}} {scale}',
        f'harken_requests_total{{model="{model}",method="Encode",code="OK"}} {4 * scale}',
        f'harken_rejected_total{{model="{model}",reason="BACKLOG_FULL"}} {3 * scale}',
        f'harken_tokens_total{{model="{model}",kind="real"}} {90 * scale}',
        f'harken_tokens_total{{model="{model}",kind="padding"}} {10 * scale}',
        f'harken_batches_total{{model="{model}",closed_by="cost"}} {3 * scale}',
        f'harken_batches_total{{model="{model}",closed_by="backlog"}} {scale}',
        f'harken_batches_total{{model="{model}",closed_by="age"}} 0',
        f'harken_batch_sequences_sum{{model="{model}"}} {10 * scale}',
        f'harken_batch_padded_tokens_sum{{model="{model}"}} {100 * scale}',
        f'harken_batch_padded_tokens_count{{model="{model}"}} {4 * scale}',
        f'harken_backlog_sequences{{model="{model}"}} 7',
        f'harken_predicted_wait_seconds{{model="{model}"}} {wait_s}',
        f'harken_engine_busy_seconds_total{{lane="10"}} {scale}',
        f'harken_engine_busy_seconds_total{{lane="2"}} {scale / 2}',
        f'harken_engine_busy_seconds_total{{lane="wide"}} {scale / 10}',
        'harken_memory_bytes{kind="rss",device=""} 1048576',
    ]
    for name, counts in histograms.items():
        lines += [
            f'{name}_bucket{{model="{model}",le="{bound}"}} {count * scale}'
            for bound, count in zip(BUCKETS, counts, strict=True)
        ]
        lines.append(f'{name}_count{{model="{model}"}} {counts[-1] * scale}')
    return parse("\n".join(lines))


def test_rates_percentiles_and_shares_are_of_the_time_between_two_scrapes() -> None:
    got = figures_of([Period(scraped(3), scraped(5), seconds=4.0)])
    assert (got.sequences, got.calls, got.refused, got.failed, got.batches) == (5.0, 2.0, 1.5, 0.5, 2.0)
    assert got.p50_s == pytest.approx(1.0)
    assert got.p95_s == pytest.approx(9.1)
    assert (got.batch_sequences, got.batch_length, got.padding_share) == (2.5, 10.0, 0.1)
    assert got.closed_by == {"cost": 0.75, "backlog": 0.25}
    assert list(got.closed_by) == ["cost", "backlog"]
    assert list(got.lanes.items()) == [("2", 0.25), ("10", 0.5), ("wide", 0.05)]
    assert got.busy_share == pytest.approx(0.425)
    assert (got.waiting, got.rss_bytes) == (7.0, 1048576.0)


def test_servers_together_are_a_sum_and_the_longest_wait() -> None:
    periods = [Period(scraped(0), scraped(4), 4.0), Period(scraped(0), scraped(8, wait_s=2.5), 2.0)]
    got = figures_of(periods)
    assert (got.sequences, got.waiting, got.wait_s) == (10.0 + 40.0, 14.0, 2.5)
    assert got.p50_s == pytest.approx(1.0)
    assert got.lanes == {}
    assert got.busy_share is None


def test_of_one_model_its_own_alone() -> None:
    both = parse("")
    both = Metrics([*scraped(2, model="a")._samples, *scraped(6, model="b")._samples, *both._samples])
    nothing = Metrics([*scraped(0, model="a")._samples, *scraped(0, model="b")._samples])
    assert figures_of([Period(nothing, both, 2.0)]).sequences == 40.0
    assert figures_of([Period(nothing, both, 2.0, "b")]).sequences == 30.0
    assert figures_of([Period(nothing, both, 2.0, "b")]).closed_by == {"cost": 0.75, "backlog": 0.25}


def test_an_idle_server_has_no_percentiles() -> None:
    got = figures_of([Period(scraped(3), scraped(3), 2.0)])
    assert (got.sequences, got.p50_s, got.batch_sequences, got.padding_share) == (0.0, None, None, None)
    assert got.closed_by == {}


def test_after_a_restart_nothing_is_shown_until_the_second_look() -> None:
    server = Watched("http://a:8002/metrics", "")
    server.took(scraped(9), 1.0)
    assert (server.period, server.trouble) == (None, "up; its rates need a second look")
    server.took(scraped(10), 2.0)
    assert server.trouble == ""
    server.took(scraped(1, started=50.0), 3.0)
    assert (server.period, server.trouble) == (None, "restarted; its rates need a second look")
    server.took(scraped(2, started=50.0), 4.0)
    assert server.trouble == ""
    server.took(parse("other_total 1"), 5.0)
    assert server.trouble == "no metrics of a harken server"
    assert server.period is None


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("a", "http://a:8002/metrics"),
        ("a.example:9", "http://a.example:9/metrics"),
        ("[::1]", "http://[::1]:8002/metrics"),
        ("[::1]:9", "http://[::1]:9/metrics"),
        ("http://a", "http://a/metrics"),
        ("https://a:9/", "https://a:9/metrics"),
        ("http://a/harken/metrics", "http://a/harken/metrics"),
    ],
)
def test_a_server_is_a_host_or_a_url(given: str, url: str) -> None:
    assert metrics_url(given) == url


@pytest.mark.parametrize("given", ["", "file:///etc/passwd", "a:b", "a:99999", "http://", "http://[::1"])
def test_what_is_no_server_is_refused_by_its_name(given: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(given))} is no http address"):
        metrics_url(given)


def rendered(rows: list[Row], together: Figures | None, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(frame(rows, together, 2.0, height))
    return capture.get().splitlines()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_frame_fits_a_small_terminal_whole(count: int) -> None:
    busy = figures_of([Period(scraped(0), scraped(12345, wait_s=123.4), 1.0)])
    rows = [Row(f"harken-{number}.harken-headless:8002", busy, "") for number in range(count)]
    lines = rendered(rows, busy if count > 1 else None)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"harken top: {count} of {count} up")
    assert ("35 more" in lines[0]) == (count == 40)
    words = " ".join(lines)
    # Nothing but long names is cut.
    assert words.count("…") == 3 * min(count, 5)
    assert " 123450 " in words
    assert "9.1 s" in words
    assert "123.4 s" in words
    assert "cost 75%" in words


def test_a_server_that_is_down_says_why_and_shows_no_figures() -> None:
    up = figures_of([Period(scraped(0), scraped(1), 1.0)])
    lines = rendered([Row("a:8002", up, ""), Row("b:8002", None, "down: Connection refused")], None)
    assert lines[0].startswith("harken top: 1 of 2 up")
    (told,) = [line for line in lines if "down: Connection refused" in line]
    assert told.split()[:4] == ["b:8002", "-", "-", "-"]


def test_what_is_wrong_is_shown_whole_where_there_are_lines_for_it_and_else_still_fits() -> None:
    up = figures_of([Period(scraped(0), scraped(12345, wait_s=123.4), 1.0)])
    reasons = ["no metrics of a harken server", "has no model nosuch, but all-MiniLM-L6-v2, paraphrase-MiniLM"]
    lines = rendered([Row("a:8002", up, ""), *(Row(f"{n}:8000", None, why) for n, why in enumerate(reasons))], None)
    assert len(lines) <= 24
    words = " ".join(" ".join(lines).split())
    for word in " ".join(reasons).split():
        assert word in words, word
    assert "…" not in words
    assert len(rendered([Row(str(number), None, reasons[1]) for number in range(5)], None)) <= 24


def test_a_model_that_a_server_does_not_have_is_named_with_those_that_it_has() -> None:
    server = Watched("http://a:8002/metrics", "nosuch")
    server.took(scraped(9), 1.0)
    server.took(scraped(10), 2.0)
    assert (server.period, server.trouble) == (None, "has no model nosuch, but a")


def test_whatever_answers_is_shown_as_text_and_the_other_servers_stay() -> None:
    """Another program's port, or somebody's who wants the terminal to do something."""
    odd = [
        "harken_accepted_total NaN", 'harken_accepted_total{model="a"} 3',
        'harken_batches_total{closed_by="[/]\x1b[2J"} %d',
        'harken_request_duration_seconds_bucket{le="abc"} 4', "harken_request_duration_seconds_bucket 4",
        'harken_engine_busy_seconds_total{lane="0"} NaN', 'harken_engine_busy_seconds_total{lane="1"} +Inf',
    ]  # fmt: skip
    server = Watched("http://a:8002/metrics", "")
    for turn in (1.0, 2.0):
        server.took(parse("\n".join(odd) % turn), turn)
    assert server.period is not None
    trouble = "down: http://b:8001/metrics cannot be read: \x00\x00\x06\x1b]0;x\x07[red]"
    lines = rendered([Row("a:8002", figures_of([server.period]), ""), Row("b:8001", None, trouble)], None)
    words = " ".join(" ".join(lines).split())
    assert words.isprintable()
    assert "[/]?[2J 100%" in words
    assert "cannot be read: ????]0;x?[red]" in words
