"""The Grafana dashboard: each of its queries is run against a real Prometheus, and what it shows is provoked."""

import datetime
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from harken.v1 import encoder_pb2_grpc
from support.api_keys import KeyFile
from support.calls import different
from support.faults import HUNGRY, Certificate, Faulty, callers, encode, faulty_server, held
from support.prometheus import MONITORING, RULES, RunningPrometheus, running_prometheus, scaled

GRAFANA: Final = MONITORING / "grafana"
JOB: Final = "harken"
VARIABLES: Final = {
    "$namespace": ".*", "$job": JOB, "$track": ".*", "$instance": ".*", "$model": ".*", "$__rate_interval": "3s",
}  # fmt: skip

# What each of a panel's queries does in the phase that provokes it, against one caller with short sequences: some
# series goes up or down, or either. A panel that is in no phase fails the test.
PROVOKED: Final[Mapping[str, Mapping[str, str]]] = {
    "many callers with mixed lengths, failures, and too much": {
        "Availability burn rate": "up",
        "Error budget left, of 30 days": "down",
        "Calls as the objective counts them": "up",
        "Calls by method": "up",
        "Calls by code": "up",
        "Refused by reason": "up",
        "Sequences by how they ended": "up",
        "Tokens by tenant": "up",
        "Answered without a computation of their own": "up",
        "Calls by their duration": "up",
        "Sequences in a batch": "up",
        "Share of padding": "up",
        "Why batches are no larger": "either",
        "Error of the predicted cost": "either",
        "Length of the sequences": "up",
        "Tokens computed": "up",
        "Offered load": "up",
        "Offered work by outcome": "up",
        "How busy the device is": "up",
        "Time spent on scheduling": "up",
        "Memory in use": "either",
        "Memory of kept results": "up",
        "Cost against what was measured at the start": "either",
        "Alerts that fire": "up",
    },
    "a run that does not end": {
        "Latency burn rate": "up",
        "Duration of calls": "up",
        "Mean time in each stage": "up",
        "Backlog": "up",
        "Tokens that wait": "up",
        "Predicted wait": "up",
        "Lanes": "either",
        "Stalls": "up",
        "Servers that are ready": "down",
    },
    "no memory": {
        "Allocations that failed": "up",
        "Memory of batches": "down",
        "Share of memory left": "down",
    },
    "other versions, and another certificate": {
        "Versions that are served": "up",
        "Changes": "up",
        "Bundles that cannot be served": "up",
        "Until the certificate ends": "up",
    },
}


Series = Mapping[str, float]
"""Values by their labels."""


@dataclass
class Query:
    """One query of a panel."""

    panel: str
    ref: str
    promql: str
    at_first: Series = field(default_factory=dict)
    """What it showed before anything was provoked."""

    def shows(self, prometheus: RunningPrometheus) -> Series:
        """Those of its series that are numbers. Raises NoData if there are none."""
        samples = prometheus.query(self.promql)
        series = {
            ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
            for sample in samples
            if math.isfinite(sample.value)
        }
        if not series:
            found = [sample.value for sample in samples] or "nothing"
            raise NoData(f"{self.panel!r}, query {self.ref}: {found} for {self.promql}")
        return series

    def moved(self, now: Series, direction: str) -> bool:
        """Whether a series moved by a fifth or, for "either", at all; one that was not there was 0."""
        steps = {name: (self.at_first.get(name, 0.0), now.get(name, 0.0)) for name in self.at_first.keys() | now.keys()}
        if direction == "up":
            return any(after - before > abs(before) / 5 for before, after in steps.values())
        if direction == "down":
            return any(before - after > abs(before) / 5 for before, after in steps.values())
        return any(before != after for before, after in steps.values())


class NoData(Exception):
    """A query of the dashboard shows nothing; names it."""


def dashboard() -> dict[str, Any]:
    page: dict[str, Any] = json.loads((GRAFANA / "harken.json").read_text())
    return page


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def with_values(promql: str) -> str:
    for name, value in VARIABLES.items():
        promql = promql.replace(name, value)
    return promql


def queries() -> list[Query]:
    return [
        Query(panel["title"], target["refId"], with_values(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]


def test_the_page_is_what_its_source_gives() -> None:
    made = subprocess.run([sys.executable, "dashboard.py"], cwd=GRAFANA, capture_output=True, text=True, check=True)
    assert made.stdout == (GRAFANA / "harken.json").read_text(), "run it again: see dashboard.py"


def test_every_panel_is_described_has_its_own_place_and_asks_the_chosen_source() -> None:
    page = dashboard()
    names = [variable["name"] for variable in page["templating"]["list"]]
    assert names == ["datasource", "namespace", "job", "track", "instance", "model"]
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    assert len({panel["title"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        for target in panel["targets"]:
            for series in re.findall(r"\{[^}]+\}", target["expr"]):
                assert 'namespace=~"$namespace", job=~"$job"' in series, panel["title"]
            used = set(re.findall(r"\$\w+", target["expr"]))
            assert used <= {*VARIABLES}, panel["title"]
            # The tracks are apart in what is scraped, and together in what is recorded.
            assert ("$track" in used) == ("$instance" in used), panel["title"]


def test_every_panel_is_provoked_by_some_phase() -> None:
    provoked = [title for phase in PROVOKED.values() for title in phase]
    assert sorted(provoked) == sorted(panel["title"] for panel in panels())


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPrometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), scaled(RULES.read_text())) as prometheus:
        yield prometheus


@dataclass(frozen=True)
class Shown:
    """The server on the dashboard, and what its callers need."""

    faulty: Faulty
    certificate: Certificate
    encoder: encoder_pb2_grpc.EncoderStub
    headers: tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def shown(
    tiny_models: Path, tmp_path_factory: pytest.TempPathFactory, prometheus: RunningPrometheus
) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    certificate, keys = Certificate(folder), KeyFile(folder / "keys.toml")
    certificate.issue(datetime.timedelta(days=20))
    keys.write(ours='tenant = "search"')
    limits = ("--max-backlog-sequences", "256", "--stall-min-s", "2", "--result-cache-bytes", str(1 << 20))
    options = (*certificate.options, *keys.options, *limits)
    with faulty_server(tiny_models / "tiny" / "1", folder, *options) as faulty:
        credentials = grpc.ssl_channel_credentials(certificate.ca.cert_pem.bytes())
        with grpc.secure_channel(f"localhost:{faulty.server.grpc_port}", credentials) as channel:
            prometheus.scrape(JOB, faulty.server)
            headers = tuple(keys.bearer("ours").items())
            yield Shown(faulty, certificate, encoder_pb2_grpc.EncoderStub(channel), headers)


def test_every_query_returns_data_under_load_and_moves_when_what_it_shows_is_provoked(
    prometheus: RunningPrometheus, shown: Shown, record_property: Callable[[str, object], None]
) -> None:
    asked = queries()

    def call(*sequences: list[int]) -> None:
        shown.encoder.Encode(encode(*sequences), metadata=shown.headers, timeout=20)

    def wait_moved(phase: str) -> None:
        waiting = {query.promql: query for query in asked if query.panel in PROVOKED[phase]}
        why: dict[str, str] = {}

        def all_moved() -> bool:
            for promql, query in list(waiting.items()):
                try:
                    now = query.shows(prometheus)
                except NoData as problem:
                    why[promql] = str(problem)
                    continue
                why[promql] = f"{query.panel!r}, query {query.ref}: {query.at_first} before, and {now} now"
                if query.moved(now, PROVOKED[phase][query.panel]):
                    del waiting[promql], why[promql]
            return not waiting

        try:
            prometheus.wait_until("movement", all_moved, timeout_s=30)
        except AssertionError:
            pytest.fail(f"not moved by {phase}: {'; '.join(why.values())}", pytrace=False)

    def one_short_sequence(turn: int) -> None:
        call([5, 6 + turn % 900])

    def mixed(turn: int) -> None:
        fails = shown.faulty.fails
        kinds: list[list[list[int]]] = [
            [[5] * 128, *[[7, number] for number in range(6, 26)]],
            [[9, 9, 9], [9, 9, 9]],  # twice the same
            [[5, fails]],
            [[5] * 129],
            different(200, 100 + turn % 20),
        ]
        call(*kinds[turn % len(kinds)])

    with callers(1, one_short_sequence, pause_s=0.02):
        prometheus.wait_until("load", lambda: _answered(prometheus) > 60)
        problems: dict[str, str] = {}

        def all_there() -> bool:
            for query in asked:
                problems.pop(query.promql, None)
                try:
                    query.at_first = query.shows(prometheus)
                except NoData as problem:
                    problems[query.promql] = str(problem)
            return not problems

        try:
            prometheus.wait_until("data", all_there, timeout_s=20)
        except AssertionError:
            pytest.fail(f"no data under load: {'; '.join(problems.values())}", pytrace=False)
    with callers(4, mixed):
        wait_moved("many callers with mixed lengths, failures, and too much")
    shown.faulty.hold()
    waiting = [shown.encoder.Encode.future(held(), metadata=shown.headers)]
    with callers(2, lambda turn: call([8, 6 + turn % 900]), pause_s=0.1):
        try:
            wait_moved("a run that does not end")
        finally:
            shown.faulty.release()
    assert len(waiting[0].result(20).results) == 1
    pid = shown.faulty.server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    (size_kib,) = re.findall(r"VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    resource.prlimit(pid, resource.RLIMIT_AS, (int(1.2 * int(size_kib) * 1024), before[1]))
    with callers(1, lambda _: call([5, HUNGRY]), pause_s=0.05):
        try:
            wait_moved("no memory")
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, before)
    models = shown.faulty.models
    _copy(models / "tiny" / "1", models / "tiny" / "2", broken=False)
    _copy(models / "tiny" / "1", models / "tiny" / "3", broken=True)
    shown.certificate.issue(datetime.timedelta(days=90))
    with callers(1, one_short_sequence, pause_s=0.05):
        wait_moved("other versions, and another certificate")
    record_property("found", f"{len(panels())} panels, {len(asked)} queries, {len(PROVOKED)} phases")


def _answered(prometheus: RunningPrometheus) -> float:
    return sum(sample.value for sample in prometheus.query('harken_finished_total{outcome="answered"}'))


def _copy(bundle: Path, to: Path, broken: bool) -> None:
    """As another version; `broken`: its model is not what its manifest says."""
    new = to.parent.parent / f".{to.name}"
    shutil.copytree(bundle, new)
    manifest = json.loads((new / "bundle.json").read_text())
    (new / "bundle.json").write_text(json.dumps({**manifest, "version": int(to.name)}))
    if broken:
        with (new / "model.onnx").open("ab") as model:
            model.write(b"more")
    new.rename(to)


def test_a_query_that_returns_nothing_is_named(prometheus: RunningPrometheus) -> None:
    with pytest.raises(NoData, match="'A panel', query B: nothing for harken_no_such_thing"):
        Query("A panel", "B", "harken_no_such_thing").shows(prometheus)
    with pytest.raises(NoData, match="nan"):
        Query("A panel", "B", "vector(0) / vector(0)").shows(prometheus)


def test_prometheus_keeps_exemplars_that_lead_to_the_request(prometheus: RunningPrometheus, shown: Shown) -> None:
    def call(request_id: str) -> None:
        shown.encoder.Encode(encode([5, 6]), metadata=(*shown.headers, ("x-request-id", request_id)))

    def kept() -> set[str]:
        name = f'harken_request_duration_seconds_bucket{{job="{JOB}", method="Encode"}}'
        now_s = time.time()
        found = prometheus.ask("query_exemplars", query=name, start=f"{now_s - 60:.3f}", end=f"{now_s + 1:.3f}")
        exemplars = [one for series in found for one in series["exemplars"]]
        assert all(one["labels"].keys() == {"request_id"} for one in exemplars)
        assert all(abs(float(one["timestamp"]) - now_s) < 61 for one in exemplars)
        return {one["labels"]["request_id"] for one in exemplars}

    # Ids that leave no room for their name, or need an escape, have no exemplar, and do not spoil the page.
    for bad in ("x" * 119, 'quo"te', "back\\slash"):
        call(bad)
    for number in range(20):
        call(f"search-{number}")
    prometheus.wait_until("an exemplar", lambda: any(one.startswith("search-") for one in kept()))
    assert not any(bad in one for one in kept() for bad in ("xxx", '"', "\\"))
    assert prometheus.query(f'up{{job="{JOB}"}}')[0].value == 1.0
