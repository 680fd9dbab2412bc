"""A real Prometheus that scrapes real servers, and the rules of deploy/monitoring with durations of seconds."""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.server import RunningServer
from support.tools import REPOSITORY, tool

MONITORING: Final = REPOSITORY / "deploy" / "monitoring"
RULES: Final = MONITORING / "rules.yaml"

SCALED: Final = {
    "1m": "2s", "5m": "3s", "30m": "4s", "1h": "5s", "6h": "6s", "1d": "30s", "3d": "40s", "30d": "60s",
}  # fmt: skip
"""What the rules' durations become in a test that cannot wait for days: longer ones stay longer."""

_SCRAPE: Final = "500ms"
_DURATION: Final = re.compile(r"(?P<before>\[|\bfor: |\binterval: )(?P<duration>\d+[smhdwy])(?P<after>\]|\s)")


def scaled(rules: str) -> str:
    """Rules with each duration, of a range, a `for` or a group's interval, as in SCALED. KeyError: one is not there."""
    return _DURATION.sub(lambda match: match["before"] + SCALED[match["duration"]] + match["after"], rules)


@dataclass(frozen=True)
class Sample:
    """One series of an answer, at one moment."""

    labels: Mapping[str, str]
    value: float


@dataclass
class RunningPrometheus:
    """Scrapes whoever is added, twice a second."""

    port: int
    targets: Path
    """A file that it follows."""

    def scrape(self, job: str, *servers: RunningServer) -> None:
        """From now on these, and nobody else under this name."""
        self.scrape_ports(job, *(server.metrics_port for server in servers))

    def scrape_ports(self, job: str, *ports: int) -> None:
        """The same, by the ports of their metrics, whoever listens there."""
        jobs = json.loads(self.targets.read_text())
        jobs = [one for one in jobs if one["labels"]["job"] != job]
        jobs.append({"labels": {"job": job}, "targets": [f"127.0.0.1:{port}" for port in ports]})
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps(jobs))
        new.rename(self.targets)

    def query(self, promql: str) -> list[Sample]:
        """What it answers now. Raises ValueError with Prometheus' own words."""
        found = self.ask("query", query=promql)
        if found["resultType"] == "scalar":
            return [Sample({}, float(found["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in found["result"]]

    def alerts(self, job: str) -> dict[str, str]:
        """pending or firing, by the names of this job's alerts."""
        states: dict[str, str] = {}
        for alert in self.ask("alerts")["alerts"]:
            name = alert["labels"]["alertname"]
            if alert["labels"].get("job") == job and states.get(name) != "firing":
                states[name] = alert["state"]
        return states

    def wait_until(self, what: str, holds: Callable[[], Any], timeout_s: float = 60.0) -> float:
        """Until `holds()`; returns after how many seconds. Fails after `timeout_s`, naming `what` was awaited."""
        began_s = time.monotonic()
        while not holds():
            assert time.monotonic() < began_s + timeout_s, f"{what} did not come within {timeout_s} s"
            time.sleep(0.1)
        return time.monotonic() - began_s

    def wait_firing(self, job: str, *names: str) -> float:
        """Until these alerts fire."""
        return self.wait_until(
            f"{' and '.join(names)} to fire", lambda: all(self.alerts(job).get(name) == "firing" for name in names)
        )

    def wait_cleared(self, job: str, *names: str) -> float:
        """Until these alerts are gone."""
        return self.wait_until(
            f"{' and '.join(names)} to clear", lambda: not any(name in self.alerts(job) for name in names)
        )

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API. Raises ValueError."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from None


@contextmanager
def running_prometheus(folder: Path, rules: str = "groups: []") -> Iterator[RunningPrometheus]:
    """Start it with these rules, and with exemplars. It keeps its data in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = folder / "targets.json"
    targets.write_text("[]")
    (folder / "rules.yaml").write_text(rules)
    config = {
        "global": {"scrape_interval": _SCRAPE, "scrape_timeout": _SCRAPE, "evaluation_interval": _SCRAPE},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [{"job_name": "harken", "file_sd_configs": [{"files": [str(targets)]}]}],
    }
    # YAML is a superset of JSON.
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    prometheus = RunningPrometheus(port, targets)
    try:
        prometheus.wait_until("Prometheus", lambda: _is_ready(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield prometheus
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
