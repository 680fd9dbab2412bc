"""What docs/kubernetes.md says of the manifests is so."""

import re

from harken_server.sources import load
from support.compositions import rendered
from support.manifests import K8S, environment, find, name_of, pod_of, render
from support.tools import REPOSITORY

PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text()
DOCKERFILE = REPOSITORY / "deploy" / "docker" / "Dockerfile"


def named_in_first_column(*, after: str) -> list[str]:
    """What stands in backquotes in the first column of the table after this line."""
    rows = PAGE.split(after)[1].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall("`([^`]+)`", row.split("|")[1])]


def test_every_folder_that_the_page_applies_renders_and_the_waits_are_for_what_is_in_it() -> None:
    folders = re.findall(r"apply -k (deploy/[\w/-]+)", PAGE)
    assert folders[:3] == ["deploy/k8s/overlays/dev", "deploy/k8s/overlays/dev-scaled", "deploy/k8s/load"]
    applied = [name_of(manifest).lower() for folder in folders for manifest in render(REPOSITORY / folder)]
    for kind, name in re.findall(r"(deployment|service|job)/(\w[\w-]*)", PAGE):
        assert f"{kind}/{name}" in applied or name == "monitoring-grafana"


def test_the_page_needs_no_program_but_those_that_it_says_and_what_every_machine_has() -> None:
    needed = re.search(r"It needs (.+?),\nand a checkout", PAGE)
    assert needed is not None
    said = {word.lower() for word in re.findall(r"\w+", re.sub(r"\(\S+\)", "", needed[1]))}
    assert said == {"docker", "kind", "kubectl", "helm"}
    blocks = "\n".join(re.findall(r"```sh\n(.+?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in blocks.splitlines()]
    commands = [command.split()[0] for line in lines for command in re.split(r" [|&]|; ", line) if command.strip()]
    assert set(commands) <= said | {"cd", "curl", "openssl", "base64", "echo"}


def test_what_the_page_watches_is_of_one_kind_as_kubectl_wants_it() -> None:
    watched = re.findall(r"kubectl .*get (\S+) --watch", PAGE)
    assert watched == ["hpa"]
    assert "ScaledObject" in [manifest["kind"] for manifest in rendered("overlays/dev-scaled")]


def test_the_images_that_the_page_builds_are_those_of_dev_and_of_the_load_test() -> None:
    built = set(re.findall(r"-t (\S+) \.", PAGE))
    loaded = set(re.findall(r"kind load docker-image (.+)", PAGE)[0].split())
    pods = [
        pod_of(find(rendered("overlays/dev"), "Deployment")),
        pod_of(find(rendered("load"), "Job", "harken-load")),
    ]
    assert built == loaded == {container["image"] for pod in pods for container in pod["containers"]}
    if DOCKERFILE.exists():
        targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
        assert set(re.findall(r"--target (\S+)", PAGE)) <= targets


def test_the_page_names_every_overlay_and_every_component() -> None:
    overlays = named_in_first_column(after="| overlay of `deploy/k8s/overlays` | what it is |")
    assert set(overlays) == {folder.name for folder in (K8S / "overlays").iterdir()}
    components = named_in_first_column(after="| component | what it adds | what it needs |")
    assert set(components) == {folder.name for folder in (K8S / "components").iterdir()}


def test_the_numbers_of_the_page_are_those_of_the_manifests() -> None:
    rows = {row.split("|")[1].strip(): row for row in PAGE.splitlines() if row.startswith("| ")}
    manifests = rendered("base")
    deployment = find(manifests, "Deployment")
    pod = pod_of(deployment)
    (container,) = pod["containers"]
    settings = load([], environment(manifests, container))
    grace = rows["`terminationGracePeriodSeconds`"]
    assert f"{pod['terminationGracePeriodSeconds']} s" in grace
    assert f"{settings.drain_delay_s:.0f} + `HARKEN_MAX_REQUEST_S` {settings.max_request_s:.0f} + 5" in grace
    gpu = pod_of(find(rendered("overlays/prod-gpu"), "Deployment"))["containers"][0]["startupProbe"]
    start = container["startupProbe"]
    allowed_s = [probe["periodSeconds"] * probe["failureThreshold"] for probe in (start, gpu)]
    assert f"{allowed_s[0]} s, on a GPU {allowed_s[1]} s" in rows["startup probe"]
    assert f"{deployment['metadata']['annotations']['harken/start-s']} s" in rows["startup probe"]
    live = container["livenessProbe"]
    assert f"{live['periodSeconds'] * live['failureThreshold']} s" in rows["liveness"]
    small = pod_of(find(rendered("overlays/dev"), "Deployment"))["containers"][0]["resources"]["limits"]
    large = container["resources"]["limits"]
    assert (small, large) == ({"cpu": "1", "memory": "1Gi"}, {"cpu": "4", "memory": "3Gi"})
    assert "1 GiB for one core, 3 GiB for four" in rows["memory"]


def test_the_load_job_asks_for_more_than_two_pods_bear_however_slow_the_answers_are() -> None:
    """Three pods are wanted above 1.4 lanes' worth; 285 sequences/s of a core are beyond a CPU in fp32."""
    job = find(rendered("load"), "Job", "harken-load")
    (container,) = pod_of(job)["containers"]
    given = dict(argument.removeprefix("--").split("=") for argument in container["args"] if "=" in argument)
    assert "concurrency" not in given
    assert float(given["rate"]) >= 1.4 * 285
    # The client meets new pods as its connections reach their age.
    settings = load([], environment(rendered("base"), pod_of(find(rendered("base"), "Deployment"))["containers"][0]))
    assert float(given["duration"]) >= 2 * settings.max_connection_age_s
    assert job["spec"]["activeDeadlineSeconds"] > float(given["duration"]) + 60
    assert f"after {float(given['duration']) / 60:.0f} minutes" in PAGE
