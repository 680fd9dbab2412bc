"""The manifests of deploy/ as kustomize renders them, against the schemas and against one another."""

import copy
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from support.compositions import COMPOSED, EVERYTHING, SHIPPED, compose, rendered, server_container
from support.manifests import K8S, Manifest, Refused, find, name_of, pod_of, problems, render


def test_every_overlay_and_every_composition_of_components_is_valid(record_property: Any) -> None:
    manifests = [manifest for name in EVERYTHING for manifest in rendered(name)]
    assert problems(manifests) == []
    kinds = {manifest["kind"] for manifest in manifests}
    record_property("found", f"{len(EVERYTHING)} rendered, {len(manifests)} objects of {len(kinds)} kinds, strict")


def test_every_component_is_in_one_of_them() -> None:
    used = {component for components in COMPOSED.values() for component in components}
    for folder in SHIPPED.values():
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used |= {component.rpartition("/")[2] for component in kustomization.get("components", [])}
    assert used == {folder.name for folder in (K8S / "components").iterdir()}


WRONG: dict[str, tuple[str, str, Callable[[Any], object], str]] = {
    "a name that there is not": (
        "overlays/dev", "Deployment/harken", lambda m: pod_of(m).update(enableServiceLink=False), "enableServiceLink",
    ),
    "a probe of two kinds mixed up": (
        "overlays/dev", "Deployment/harken",
        lambda m: server_container(m)["livenessProbe"].update(grpc={"port": "health"}), "livenessProbe.grpc.port",
    ),
    "a trigger of KEDA": (
        "autoscaling-keda", "ScaledObject/harken", lambda m: m["spec"]["triggers"][0].update(treshold="1"), "treshold",
    ),
    "a trigger's missing type": (
        "autoscaling-keda", "ScaledObject/harken", lambda m: m["spec"]["triggers"][0].pop("type"), "type",
    ),
    "a weight": (
        "canary", "HTTPRoute/harken", lambda m: m["spec"]["rules"][0]["backendRefs"][0].update(weigth=1), "weigth",
    ),
    "a port of a route": (
        "canary", "GRPCRoute/harken", lambda m: m["spec"]["rules"][0]["backendRefs"][0].update(port=80010), "65535",
    ),
    "an interval": (
        "autoscaling-hpa", "PodMonitor/harken",
        lambda m: m["spec"]["podMetricsEndpoints"][0].update(interval="quarter"), "interval",
    ),
    "a rule": (
        "autoscaling-hpa", "PrometheusRule/harken", lambda m: m["spec"]["groups"][0]["rules"][0].pop("expr"), "expr",
    ),
    "a metric of the autoscaler": (
        "autoscaling-hpa", "HorizontalPodAutoscaler/harken",
        lambda m: m["spec"]["metrics"][0]["external"]["target"].pop("type"), "type",
    ),
    "a port of KServe": (
        "../kserve", "ServingRuntime/harken", lambda m: m["spec"]["containers"][0].update(port=1), "containers[0].port",
    ),
    "no container for KServe": (
        "../kserve", "ServingRuntime/harken", lambda m: m["spec"].pop("containers"), "spec needs containers",
    ),
    "a model of KServe": (
        "../kserve", "InferenceService/minilm",
        lambda m: m["spec"]["predictor"]["model"].update(modelFormat="harken"), "model.modelFormat",
    ),
}  # fmt: skip


def test_what_is_not_valid_is_named_by_its_kind_its_name_and_the_field() -> None:
    broken = []
    for composition, name, wrong, _ in WRONG.values():
        manifest = copy.deepcopy(next(one for one in rendered(composition) if name_of(one) == name))
        wrong(manifest)
        broken.append(manifest)
    found = problems(broken)
    for what, (_, name, _, field) in WRONG.items():
        assert any(problem.startswith(f"{name}: ") and field in problem for problem in found), (what, found)


def test_both_autoscalers_in_one_overlay_are_refused_with_a_sentence() -> None:
    both = ["monitoring", "autoscaling-hpa", "autoscaling-keda"]
    for components in (both, [both[0], *reversed(both[1:])]):
        with pytest.raises(Refused, match=r"registered id.*only-one-of-autoscaling-hpa-and-autoscaling-keda"):
            compose(components)


def test_an_autoscaler_finds_no_number_of_replicas_that_an_apply_would_set_back() -> None:
    for name in (
        "autoscaling-hpa",
        "autoscaling-keda",
        "overlays/dev-scaled",
        "overlays/prod-cpu",
        "overlays/prod-gpu",
    ):
        assert "replicas" not in find(rendered(name), "Deployment")["spec"]
    # What stands beside the first version is not scaled.
    assert find(rendered("canary, all of it"), "Deployment", "harken-canary")["spec"]["replicas"] == 1


def selectors(manifest: Manifest) -> list[dict[str, str]]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Service":
            return [spec["selector"]]
        case "PodDisruptionBudget" | "Deployment":
            labels = [spec["selector"]["matchLabels"]]
            spreads = pod_of(manifest)["topologySpreadConstraints"] if manifest["kind"] == "Deployment" else []
            return labels + [spread["labelSelector"]["matchLabels"] for spread in spreads]
        case "NetworkPolicy":
            return [spec["podSelector"]["matchLabels"]]
    return []


def test_each_selector_takes_the_pods_of_its_own_track_and_no_others() -> None:
    manifests = rendered("canary, all of it")
    tracks = {name: find(manifests, "Deployment", name) for name in ("harken", "harken-canary")}
    pods = {name: track["spec"]["template"]["metadata"]["labels"].items() for name, track in tracks.items()}
    checked = 0
    for manifest in manifests:
        for selector in selectors(manifest):
            own = "harken-canary" if manifest["metadata"]["name"].endswith("-canary") else "harken"
            assert [name for name, labels in pods.items() if selector.items() <= labels] == [own], name_of(manifest)
            checked += 1
    assert checked == 2 * 7
    monitor = find(manifests, "PodMonitor")["spec"]["selector"]["matchLabels"]
    assert all(monitor.items() <= labels for labels in pods.values())


def test_what_listens_is_reached_by_whom_it_is_for_and_nobody_else() -> None:
    manifests = rendered("overlays/prod-cpu")
    ports = {port["name"]: port["containerPort"] for port in server_container(find(manifests, "Deployment"))["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002, "health": 8003}
    callers, monitoring = find(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in callers["ports"]] == ["http", "grpc"]
    expression = [{"key": "harken/client", "operator": "In", "values": ["true"]}]
    assert [next(iter(who.values()))["matchExpressions"] for who in callers["from"]] == [expression, expression]
    assert [port["port"] for port in monitoring["ports"]] == ["metrics"]
    assert monitoring["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert find(manifests, "NetworkPolicy")["spec"]["egress"] == []
    assert {port["targetPort"] for port in find(manifests, "Service")["spec"]["ports"]} == {"http", "grpc"}
    headless = find(manifests, "Service", "harken-headless")["spec"]
    assert (headless["clusterIP"], [port["targetPort"] for port in headless["ports"]]) == ("None", ["grpc"])
    # The load test comes in by its label.
    job = find(rendered("load"), "Job", "harken-load")
    assert job["spec"]["template"]["metadata"]["labels"]["harken/client"] == "true"


def test_with_tls_nothing_says_that_plain_text_is_spoken() -> None:
    plain = {port["appProtocol"] for port in find(rendered("base"), "Service")["spec"]["ports"]}
    assert plain == {"http", "kubernetes.io/h2c"}
    for name in ("overlays/prod-cpu", "canary, all of it"):
        services = [manifest for manifest in rendered(name) if manifest["kind"] == "Service"]
        assert not any("appProtocol" in port for service in services for port in service["spec"]["ports"])


def test_routes_lead_to_services_that_there_are_with_shares_that_make_a_hundred() -> None:
    for name in ("gateway", "canary", "canary, all of it", "overlays/prod-cpu"):
        services = {m["metadata"]["name"]: m["spec"]["ports"] for m in rendered(name) if m["kind"] == "Service"}
        for kind, port in (("HTTPRoute", 8000), ("GRPCRoute", 8001)):
            backends = find(rendered(name), kind)["spec"]["rules"][0]["backendRefs"]
            assert all(port in [p["port"] for p in services[backend["name"]]] for backend in backends)
            assert {backend["port"] for backend in backends} == {port}
            shares = [backend.get("weight") for backend in backends]
            assert shares == ([90, 10] if "canary" in name else [None])
    tracks = [find(rendered("canary"), "Deployment", name) for name in ("harken", "harken-canary")]
    assert len({server_container(track)["image"] for track in tracks}) == 2


def test_with_a_canary_both_versions_get_what_the_components_add() -> None:
    manifests = rendered("canary, all of it")
    stable, canary = (find(manifests, "Deployment", name) for name in ("harken", "harken-canary"))
    assert server_container(stable)["env"] == server_container(canary)["env"]
    assert pod_of(stable)["volumes"] == pod_of(canary)["volumes"]
    assert pod_of(stable)["initContainers"] == pod_of(canary)["initContainers"]


def test_an_overlay_says_where_the_bucket_is_and_a_changed_one_is_a_rollout() -> None:
    manifests, as_it_comes = (
        rendered("overlays/prod-gpu"),
        find(rendered("from a bucket"), "ConfigMap", "harken-models"),
    )
    where = find(manifests, "ConfigMap", "harken-models")
    assert where["data"] == {**as_it_comes["data"], "MODELS_PATH": "example-bucket/models"}
    assert where["metadata"]["name"] != as_it_comes["metadata"]["name"]
    (init,) = pod_of(find(manifests, "Deployment"))["initContainers"]
    assert init["envFrom"][0] == {"configMapRef": {"name": where["metadata"]["name"]}}


def test_secrets_are_rendered_from_files_that_are_not_in_git(tmp_path: Any) -> None:
    (tmp_path / "kustomization.yaml").write_text((K8S / "secrets" / "kustomization.yaml").read_text())
    with pytest.raises(Refused, match=r"tls\.crt"):
        render(tmp_path)
    for name in ("tls.crt", "tls.key", "keys.toml"):
        (tmp_path / name).write_text(name)
        subprocess.run(["git", "check-ignore", "--quiet", str(K8S / "secrets" / name)], cwd=K8S, check=True)
    secrets = render(tmp_path)
    assert problems(secrets) == []
    (trusted,) = [manifest for manifest in secrets if manifest["kind"] == "ConfigMap"]
    secrets.remove(trusted)
    policy = find(rendered("overlays/prod-cpu"), "BackendTLSPolicy")["spec"]["validation"]
    assert [ca["name"] for ca in policy["caCertificateRefs"]] == [trusted["metadata"]["name"]]
    assert trusted["data"] == {"ca.crt": "tls.crt"}  # the certificate itself
    made = {secret["metadata"]["name"]: set(secret["data"]) for secret in secrets}
    assert made == {"harken-tls": {"tls.crt", "tls.key"}, "harken-api-keys": {"keys.toml"}}
    wanted = {
        volume["secret"]["secretName"]
        for volume in pod_of(find(rendered("overlays/prod-cpu"), "Deployment"))["volumes"]
        if "secret" in volume
    }
    assert wanted == made.keys()
