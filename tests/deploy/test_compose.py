"""deploy/compose.yaml: read by Docker Compose itself, and its parts by the programs that they are for."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.docker_engine import docker_engine
from support.tools import REPOSITORY, missing, tool

DEPLOY = REPOSITORY / "deploy"

Found = Callable[[str, object], None]


def compose(*files: str) -> Mapping[str, Any]:
    """What Docker Compose makes of these files of deploy/, with all profiles."""
    options = [part for file in files for part in ("--file", str(DEPLOY / file))]
    done = subprocess.run(
        [tool("docker-compose"), *options, "--profile", "*", "config", "--format", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    configuration: Mapping[str, Any] = json.loads(done.stdout)
    return configuration


def mounted(service: Mapping[str, Any]) -> dict[str, Path]:
    """Files of the repository, by the path at which the service sees them."""
    return {one["target"]: Path(one["source"]) for one in service.get("volumes", ()) if one["type"] == "bind"}


def test_docker_compose_accepts_it(record_property: Found) -> None:
    services = compose("compose.yaml")["services"]
    assert services.keys() == {"server", "prometheus", "grafana", "load"}
    version = subprocess.run([tool("docker-compose"), "version", "--short"], capture_output=True, text=True, check=True)
    record_property("found", f"Docker Compose {version.stdout.strip()}")


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_docker_compose_has_every_container_made(files: tuple[str, ...], tmp_path: Path) -> None:
    """Some of what it refuses it reads without a word, and refuses only when containers are made."""
    options = [part for file in files for part in ("--file", str(DEPLOY / file))]
    command = [tool("docker-compose"), *options, "--profile", "*", "create", "--no-build", "--pull", "never"]
    with docker_engine() as engine:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": engine.host}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    made = {name.removeprefix("harken-").removesuffix("-1"): body for name, body in engine.containers.items()}
    assert made.keys() == compose(*files)["services"].keys()
    # What is not said here is the image's: its command, and how often it is asked later on.
    assert made["server"]["Healthcheck"] == {"StartInterval": 1_000_000_000, "StartPeriod": 120_000_000_000}
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"--start-period=(\d+)s", dockerfile) == ["120"]
    for body in made.values():
        assert body["HostConfig"]["ReadonlyRootfs"] is True
        assert body["HostConfig"]["CapDrop"] == ["ALL"]


def test_every_service_has_a_read_only_root_and_no_capability_and_a_tag_and_is_reached_from_here_only() -> None:
    for name, service in compose("compose.yaml")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r".+:(?!latest$)[\w.-]+", service["image"]), name
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}, name


def test_what_is_built_are_targets_of_the_dockerfile() -> None:
    dockerfile = DEPLOY / "docker" / "Dockerfile"
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE))
    built = {}
    for files in (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")):
        for service in compose(*files)["services"].values():
            if "build" in service:
                assert Path(service["build"]["context"], service["build"]["dockerfile"]) == dockerfile
                built[service["image"]] = service["build"]["target"]
    assert built == {"harken-server:dev": "cpu", "harken-server-gpu:dev": "gpu", "harken-client:dev": "client"}
    assert set(built.values()) <= targets


def test_a_drain_fits_into_the_time_that_it_is_given() -> None:
    # Read from the page of the settings, as the operator would.
    text = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.MULTILINE))
    grace = compose("compose.yaml")["services"]["server"]["stop_grace_period"]
    assert grace == "45s"
    assert float(defaults["drain_delay_s"]) + float(defaults["max_request_s"]) + 2 < 45


def test_prometheus_accepts_its_configuration_and_the_rules_and_scrapes_the_server(tmp_path: Path) -> None:
    services = compose("compose.yaml")["services"]
    files = mounted(services["prometheus"])
    for place, source in files.items():
        if not source.is_file():
            missing(f"{source.relative_to(REPOSITORY)} is not there")
        shutil.copy(source, tmp_path / Path(place).name)
    done = subprocess.run(
        [tool("promtool"), "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # For the dashboard's budgets of 30 days, and its exemplars.
    options = services["prometheus"]["command"]
    assert {"--storage.tsdb.retention.time=31d", "--enable-feature=exemplar-storage"} <= set(options)
    configuration = yaml.safe_load((tmp_path / "prometheus.yaml").read_text(encoding="utf-8"))
    (scrape,) = configuration["scrape_configs"]
    (target,) = scrape["static_configs"][0]["targets"]
    assert target in {f"server:{port['target']}" for port in services["server"]["ports"]}
    assert {Path(place).name for place in files} == {"prometheus.yaml", *configuration["rule_files"]}


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    services = compose("compose.yaml")["services"]
    files = mounted(services["grafana"])
    provisioning = {path.parent.name: path for path in map(Path, files) if "provisioning" in path.parts}
    (source,) = yaml.safe_load(files[str(provisioning["datasources"])].read_text(encoding="utf-8"))["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load(files[str(provisioning["dashboards"])].read_text(encoding="utf-8"))["providers"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    dashboard = files[home]
    if not dashboard.is_file():
        missing(f"{dashboard.relative_to(REPOSITORY)} is not there")
    content = json.loads(dashboard.read_text(encoding="utf-8"))
    used = set(re.findall(r'"uid": *"([^"]+)"', json.dumps(content.get("panels"))))
    assert used <= {source["uid"], "-- Grafana --", "${datasource}", "$datasource"}, "a source that is not provisioned"


def test_the_load_is_a_command_of_the_client() -> None:
    typer = pytest.importorskip("typer")
    from harken_client.cli import app  # noqa: PLC0415 - it needs what was just asked for

    command = typer.main.get_command(app)
    given = compose("compose.yaml")["services"]["load"]["command"]
    known = {option for parameter in command.commands[given[0]].params for option in parameter.opts}
    assert {argument.split("=")[0] for argument in given[1:]} <= known
