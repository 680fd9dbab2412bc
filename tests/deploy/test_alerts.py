"""Each alert fires in a real Prometheus by a fault that is injected into a real server, and clears once that is gone.

The rules are those of deploy/monitoring with durations of seconds (support/prometheus.py); test_rules.py holds that
nothing else differs, and promtool's unit tests hold the true durations.
"""

import datetime
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harken.v1 import encoder_pb2_grpc
from support.calls import different, stub
from support.faults import Certificate, Faulty, callers, encode, faulty_server, held
from support.prometheus import RULES, RunningPrometheus, running_prometheus, scaled
from support.server import running_server

JOB = "harken"
Found = Callable[[str, object], None]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPrometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), scaled(RULES.read_text())) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def faulty(
    tiny_models: Path, tmp_path_factory: pytest.TempPathFactory, prometheus: RunningPrometheus
) -> Iterator[Faulty]:
    """One server for all faults but those that end it: each test leaves it well."""
    options = ("--max-backlog-sequences", "64", "--stall-min-s", "60")
    with faulty_server(tiny_models / "tiny" / "1", tmp_path_factory.mktemp("faulty"), *options) as faulty:
        prometheus.scrape(JOB, faulty.server)
        prometheus.wait_until("the first scrapes", lambda: prometheus.query(f'harken_ready{{job="{JOB}"}} == 1'))
        yield faulty


@pytest.fixture
def encoder(faulty: Faulty) -> encoder_pb2_grpc.EncoderStub:
    return stub(faulty.server.target)


def says(found: Found, fired_s: float, cleared_s: float) -> None:
    found("found", f"fired after {fired_s:.1f} s, cleared {cleared_s:.1f} s after the fault")


def test_a_server_that_is_well_fires_nothing(
    prometheus: RunningPrometheus, encoder: encoder_pb2_grpc.EncoderStub
) -> None:
    served = f'sum(increase(harken_slo_requests_total{{job="{JOB}", outcome="served"}}[8s]))'
    with callers(2, lambda _: encoder.Encode(encode([5, 6, 7])), pause_s=0.01):
        prometheus.wait_until("load in Prometheus", lambda: prometheus.query(f"{served} > 100"))
        assert prometheus.query("harken:unavailable:ratio_rate3d")[0].value == 0.0
        assert prometheus.alerts(JOB) == {}


def test_availability_burns_fast_and_slowly_while_the_engine_fails_on_some_calls(
    prometheus: RunningPrometheus, faulty: Faulty, encoder: encoder_pb2_grpc.EncoderStub, record_property: Found
) -> None:
    names = ("HarkenAvailabilityFastBurn", "HarkenAvailabilitySlowBurn")
    with callers(2, lambda _: encoder.Encode(encode([5, 6, 7])), pause_s=0.01):
        with callers(1, lambda _: encoder.Encode(encode([5, faulty.fails])), pause_s=0.02):
            fired_s = prometheus.wait_firing(JOB, *names)
        # The calls go on, and none fails.
        says(record_property, fired_s, prometheus.wait_cleared(JOB, *names))


def test_what_callers_do_wrong_burns_nothing(
    prometheus: RunningPrometheus, encoder: encoder_pb2_grpc.EncoderStub
) -> None:
    wrong = f'sum(increase(harken_slo_requests_total{{job="{JOB}", outcome="caller"}}[8s]))'
    with callers(2, lambda turn: encoder.Encode(encode([5, 1000] if turn % 2 else [5] * 129)), pause_s=0.01):
        prometheus.wait_until("calls that are wrong", lambda: prometheus.query(f"{wrong} > 100"))
        assert prometheus.query("sum(harken:unavailable:ratio_rate5m) > 0") == []
        assert prometheus.alerts(JOB) == {}


def test_the_latency_burns_fast_and_slowly_while_the_engine_is_slow(
    prometheus: RunningPrometheus, faulty: Faulty, encoder: encoder_pb2_grpc.EncoderStub, record_property: Found
) -> None:
    names = ("HarkenLatencyFastBurn", "HarkenLatencySlowBurn")

    def slow_call(_: int) -> None:
        faulty.hold()
        call = encoder.Encode.future(held())
        time.sleep(0.3)
        faulty.release()
        call.result()

    with callers(1, lambda _: encoder.Encode(encode([5, 6, 7])), pause_s=0.02):
        with callers(1, slow_call):
            fired_s = prometheus.wait_firing(JOB, *names)
        # The slow burn allows one call in a hundred to be slow, and the machine may be busy: without calls it ends.
        cleared_s = prometheus.wait_cleared(JOB, names[0])
    prometheus.wait_cleared(JOB, names[1])
    says(record_property, fired_s, cleared_s)


def test_the_refused_share_is_high_while_more_is_asked_for_than_may_wait(
    prometheus: RunningPrometheus, encoder: encoder_pb2_grpc.EncoderStub, record_property: Found
) -> None:
    name = "HarkenRefusedShareHigh"
    long = encode(*different(60, 128))
    with callers(6, lambda _: encoder.Encode(long)):
        fired_s = prometheus.wait_firing(JOB, name)
        reasons = {one.labels["reason"] for one in prometheus.query("increase(harken_rejected_total[8s]) > 0")}
        assert reasons == {"BACKLOG_FULL"}
    with callers(1, lambda _: encoder.Encode(encode([5, 6, 7])), pause_s=0.02):
        says(record_property, fired_s, prometheus.wait_cleared(JOB, name))


def test_the_padding_share_is_high_while_batches_mix_lengths(
    prometheus: RunningPrometheus, encoder: encoder_pb2_grpc.EncoderStub, record_property: Found
) -> None:
    # A run costs more than its tokens do, so that short ones ride with long ones.
    mixed = encode([5] * 128, *[[5, number] for number in range(6, 16)])
    alike = encode(*[[5, number] for number in range(6, 16)])
    name = "HarkenPaddingShareHigh"
    with callers(1, lambda _: encoder.Encode(mixed), pause_s=0.01):
        fired_s = prometheus.wait_firing(JOB, name)
    with callers(1, lambda _: encoder.Encode(alike), pause_s=0.01):
        says(record_property, fired_s, prometheus.wait_cleared(JOB, name))


def test_memory_is_near_its_limit_while_the_process_may_take_little_more(
    prometheus: RunningPrometheus, faulty: Faulty, record_property: Found
) -> None:
    name, pid = "HarkenMemoryNearLimit", faulty.server.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    (size_kib,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")]
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (int(1.05 * size_kib * 1024), before[1]))
    try:
        fired_s = prometheus.wait_firing(JOB, name)
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
    says(record_property, fired_s, prometheus.wait_cleared(JOB, name))


def test_a_model_swap_has_failed_while_a_broken_bundle_lies_in_the_folder(
    prometheus: RunningPrometheus, faulty: Faulty, encoder: encoder_pb2_grpc.EncoderStub, record_property: Found
) -> None:
    name, folder = "HarkenModelSwapFailed", faulty.models / "tiny"
    shutil.copytree(folder / "1", faulty.models / ".new")
    with (faulty.models / ".new" / "model.onnx").open("ab") as model:
        model.write(b"more")
    (faulty.models / ".new").rename(folder / "2")
    fired_s = prometheus.wait_firing(JOB, name)
    encoder.Encode(encode([5, 6, 7]))  # the version before serves on
    shutil.rmtree(folder / "2")
    says(record_property, fired_s, prometheus.wait_cleared(JOB, name))


def test_no_lane_works_while_a_run_does_not_end(
    prometheus: RunningPrometheus, faulty: Faulty, encoder: encoder_pb2_grpc.EncoderStub, record_property: Found
) -> None:
    name = "HarkenNoLaneWorks"
    faulty.hold()
    # Others wait behind it.
    calls = [encoder.Encode.future(held()), *[encoder.Encode.future(encode([5, index])) for index in range(6, 10)]]
    fired_s = prometheus.wait_firing(JOB, name)
    faulty.release()
    cleared_s = prometheus.wait_cleared(JOB, name)
    assert [len(call.result(30).results) for call in calls] == [1] * 5
    says(record_property, fired_s, cleared_s)


def test_a_server_that_is_killed_is_not_ready_until_another_one_takes_its_place(
    tiny_models: Path, prometheus: RunningPrometheus, record_property: Found
) -> None:
    name, job = "HarkenNotReady", "killed"
    with running_server(tiny_models, "--warmup-s", "1") as server:
        prometheus.scrape(job, server)
        prometheus.wait_until("a scrape", lambda: prometheus.query(f'harken_ready{{job="{job}"}} == 1'))
        server.process.kill()
        fired_s = prometheus.wait_firing(job, name)
        port = str(server.metrics_port)
    with running_server(tiny_models, "--warmup-s", "1", "--metrics-port", port):
        says(record_property, fired_s, prometheus.wait_cleared(job, name))


def test_no_server_is_ready_while_none_is_scraped_any_more(
    tiny_models: Path, prometheus: RunningPrometheus, record_property: Found
) -> None:
    name, job = "HarkenNoServerReady", "vanished"
    with running_server(tiny_models, "--warmup-s", "1") as server:
        prometheus.scrape(job, server)
        prometheus.wait_until("a scrape", lambda: prometheus.query(f'harken_ready{{job="{job}"}} == 1'))
        prometheus.scrape(job)
        fired_s = prometheus.wait_firing(job, name)
        assert prometheus.query(f'up{{job="{job}"}}') == []
        prometheus.scrape(job, server)
        says(record_property, fired_s, prometheus.wait_cleared(job, name))


def test_a_server_that_never_answered_is_not_ready(prometheus: RunningPrometheus) -> None:
    name, job = "HarkenNotReady", "new-harken"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        prometheus.scrape_ports(job, taken.getsockname()[1])
        taken.close()
    prometheus.wait_firing(job, name)
    prometheus.scrape(job)
    prometheus.wait_cleared(job, name)


def test_a_server_that_drains_is_not_ready(tiny_models: Path, prometheus: RunningPrometheus) -> None:
    name, job = "HarkenNotReady", "drains"
    with running_server(tiny_models, "--warmup-s", "1", "--drain-delay-s", "60") as server:
        prometheus.scrape(job, server)
        prometheus.wait_until("a scrape", lambda: prometheus.query(f'harken_ready{{job="{job}"}} == 1'))
        server.terminate()
        prometheus.wait_firing(job, name)
        assert prometheus.query(f'up{{job="{job}"}}')[0].value == 1.0
    prometheus.scrape(job)  # it is gone on purpose, and nobody scrapes it any more
    prometheus.wait_cleared(job, name)


def test_a_certificate_of_one_hour_is_near_its_end_until_it_is_renewed(
    tiny_models: Path, tmp_path: Path, prometheus: RunningPrometheus, record_property: Found
) -> None:
    name, job = "HarkenCertificateNearEnd", "tls"
    certificate = Certificate(tmp_path)

    def is_told(end: datetime.datetime) -> bool:
        told = f'harken_certificate_expiry_timestamp_seconds{{job="{job}", file="tls_certificate"}}'
        return bool(prometheus.query(f"{told} == {end.timestamp():.0f}"))

    end = certificate.issue(datetime.timedelta(hours=1))
    with running_server(tiny_models, "--warmup-s", "1", *certificate.options) as server:
        prometheus.scrape(job, server)
        fired_s = prometheus.wait_firing(job, name)
        assert is_told(end)
        renewed = certificate.issue(datetime.timedelta(days=90))
        says(record_property, fired_s, prometheus.wait_cleared(job, name))
        prometheus.wait_until("the new end", lambda: is_told(renewed))
    prometheus.scrape(job)
