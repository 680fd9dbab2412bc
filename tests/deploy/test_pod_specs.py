"""What every pod has: settings, time to start and to end, probes, limits, and no right that it does not need."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from harken_server.settings import Settings
from harken_server.sources import load
from support.compositions import EVERYTHING, SHIPPED, rendered, server_container, servers
from support.manifests import Manifest, environment, find, pod_of
from support.tools import REPOSITORY


def test_every_server_gets_settings_that_there_are_and_that_it_takes() -> None:
    seen: set[str] = set()
    for name, manifests, deployment in servers():
        container = server_container(deployment)
        values = environment(manifests, container)
        ours = {variable: value for variable, value in values.items() if variable.startswith("HARKEN_")}
        assert {variable.removeprefix("HARKEN_").lower() for variable in ours} <= set(Settings.model_fields), name
        settings = load(container.get("args", []), ours)
        seen |= ours.keys()
        # Outside of the pod nobody reaches 127.0.0.1.
        assert settings.listen == "0.0.0.0"  # noqa: S104 - compared, not bound
        assert (settings.http_port, settings.grpc_port, settings.metrics_port, settings.health_port) == tuple(
            port["containerPort"] for port in container["ports"]
        )
        paths = [settings.state_dir, *filter(None, (settings.tls_certificate, settings.tls_key, settings.api_keys))]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert all(any(str(path).startswith(mount) for mount in mounts) for path in paths), name
    assert {"HARKEN_LISTEN", "HARKEN_TLS_KEY", "HARKEN_API_KEYS"} <= seen


def test_a_gpus_server_takes_no_cpu_instead_and_serves_the_bundle_in_fp16() -> None:
    for name in ("overlays/prod-gpu", "gpu, from a claim"):
        deployment = find(rendered(name), "Deployment")
        container = server_container(deployment)
        settings = load([], environment(rendered(name), container))
        assert (settings.device, settings.models.parts[-2:]) == ("cuda", ("all-MiniLM-L6-v2-fp16", "1"))
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod_of(deployment)["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert "harken-server-gpu" in container["image"]


def seconds_of_pre_stop(container: Manifest) -> float:
    action = container.get("lifecycle", {}).get("preStop", {})
    assert not action or "sleep" in action, "a preStop whose time nobody knows"
    return float(action.get("sleep", {}).get("seconds", 0))


def test_a_pod_is_killed_no_earlier_than_a_drain_may_last(record_property: Any) -> None:
    for name, manifests, deployment in servers():
        container, pod = server_container(deployment), pod_of(deployment)
        settings = load([], environment(manifests, container))
        needed_s = seconds_of_pre_stop(container) + settings.drain_delay_s + settings.max_request_s + 5
        assert pod["terminationGracePeriodSeconds"] >= needed_s, name
    record_property("found", f"{pod['terminationGracePeriodSeconds']} s, at least {needed_s:.0f}")
    runtime = find(rendered("../kserve"), "ServingRuntime")["spec"]["containers"][0]
    settings = load([argument.replace("{{.Name}}", "minilm") for argument in runtime["args"]], {})
    for service in ("minilm", "minilm-grpc"):
        predictor = find(rendered("../kserve"), "InferenceService", service)["spec"]["predictor"]
        assert predictor["terminationGracePeriodSeconds"] >= settings.drain_delay_s + settings.max_request_s + 5


def test_a_start_may_take_three_times_what_was_measured(record_property: Any) -> None:
    for name, manifests, deployment in servers():
        container = server_container(deployment)
        measured_s = float(deployment["metadata"]["annotations"]["harken/start-s"])
        probe = container["startupProbe"]
        allowed_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert allowed_s >= 3 * measured_s, name
        # All that warmup_s allows may be used.
        assert measured_s >= load([], environment(manifests, container)).warmup_s, name
    record_property("found", f"measured {measured_s:.0f} s")


def test_the_kubelet_probes_the_health_listener_in_grpc() -> None:
    containers = [server_container(deployment) for _, _, deployment in servers()]
    containers += find(rendered("../kserve"), "ServingRuntime")["spec"]["containers"]
    for container in containers:
        assert container["startupProbe"]["grpc"] == container["readinessProbe"]["grpc"] == {"port": 8003, "service": ""}
        assert container["livenessProbe"]["grpc"] == {"port": 8003, "service": "liveness"}


def every_container() -> Iterator[tuple[Manifest, Manifest]]:
    """(pod's or predictor's spec, container) of everything that runs."""
    for name in EVERYTHING:
        for manifest in rendered(name):
            if manifest["kind"] in ("Deployment", "Job"):
                pod = pod_of(manifest)
                yield from ((pod, container) for container in pod["containers"] + pod.get("initContainers", []))
            if manifest["kind"] == "InferenceService":
                (container,) = find(rendered(name), "ServingRuntime")["spec"]["containers"]
                yield manifest["spec"]["predictor"], container


def test_everything_runs_restricted_without_a_token_and_without_service_links() -> None:
    for pod, container in every_container():
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        context = {**pod["securityContext"], **container["securityContext"]}
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    for name in SHIPPED:
        for manifest in rendered(name):
            if manifest["kind"] == "ServiceAccount":
                assert manifest["automountServiceAccountToken"] is False
            if manifest["kind"] == "Namespace":
                assert manifest["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_server_has_whole_cores_and_its_memory_to_itself() -> None:
    # Guaranteed, so that a static CPU manager gives them, and that the costs that were measured stay true.
    for _, _, deployment in servers():
        resources = server_container(deployment)["resources"]
        extra = {key: value for key, value in resources["limits"].items() if "/" in key}
        assert {**resources["requests"], **extra} == resources["limits"]
        assert resources["limits"]["cpu"].isdigit()


def test_the_user_is_the_images() -> None:
    dockerfile = REPOSITORY / "deploy" / "docker" / "Dockerfile"
    if not dockerfile.exists():
        pytest.skip("there is no Dockerfile yet")
    users = set(re.findall(r"^USER (\d+)(?::\d+)?$", dockerfile.read_text(), re.MULTILINE))
    for pod, container in every_container():
        if "harken" in container["image"]:
            assert {str({**pod["securityContext"], **container["securityContext"]}["runAsUser"])} == users
