"""What the autoscalers ask Prometheus, answered by its own engine; and the operator's form of what is watched."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_rule import PLAIN, RULE, operators_form
from support.compositions import rendered
from support.manifests import K8S, find
from support.tools import tool

DASHBOARD = K8S.parent / "monitoring" / "grafana" / "harken.json"
TARGET = 0.7

KEDA = ("autoscaling-keda", "overlays/dev-scaled", "overlays/prod-gpu")
HPA = ("autoscaling-hpa", "overlays/prod-cpu")


def kedas_query(composition: str) -> str:
    scaled = find(rendered(composition), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert float(trigger["metadata"]["threshold"]) == TARGET
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    query: str = trigger["metadata"]["query"]
    # A plain string, which kustomize's namespace does not reach.
    assert query.count(f'namespace="{scaled["metadata"]["namespace"]}"') == query.count("namespace=") == 2
    return query


def adapters_query(composition: str) -> str:
    """As prometheus-adapter fills its template in for what the HorizontalPodAutoscaler asks."""
    scaler = find(rendered(composition), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    asked = metric["external"]["metric"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": f"{TARGET * 1000:.0f}m"}
    values = yaml.safe_load((K8S / "components" / "autoscaling-hpa" / "prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["external"]
    assert rule["name"]["as"] == asked["name"]
    labels = {**asked["selector"]["matchLabels"], "namespace": scaler["metadata"]["namespace"]}
    assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}}
    template: str = rule["metricsQuery"]
    return template.replace("<<.LabelMatchers>>", ",".join(f'{name}="{value}"' for name, value in labels.items()))


QUERIES = {**dict.fromkeys(KEDA, kedas_query), **dict.fromkeys(HPA, adapters_query)}


def series(pod: str, lanes: int, accepted: float, refused: float, **labels: str) -> list[dict[str, str]]:
    """Samples every 15 s for 10 minutes, of a pod of which so many lane seconds are asked in a second."""
    common = {"namespace": "harken", "track": "stable", "pod": pod, **labels}

    def sample(name: str, per_s: float, **own: str) -> dict[str, str]:
        text = ",".join(f'{key}="{value}"' for key, value in {**common, **own}.items())
        return {"series": f"{name}{{{text}}}", "values": f"0+{15 * per_s}x40"}

    offered = "harken_offered_work_seconds_total"
    return [
        sample(offered, accepted, model="m", outcome="accepted"),
        sample(offered, refused, model="m", outcome="refused"),
        *(sample("harken_engine_busy_seconds_total", 0.5, lane=str(lane)) for lane in [*range(lanes), "wide"]),
    ]


OTHERS = [
    *series("elsewhere", 2, 9.0, 9.0, namespace="other"),
    *series("canary", 2, 9.0, 9.0, track="canary"),
]
LOADS = {
    # 2 pods with 2 lanes each: 2 * (0.4 + 1.0) lanes are asked for, so the work of 1.4 pods, for which there are 2.
    "refused work counts": ([*series("a", 2, 0.4, 1.0), *series("b", 2, 0.4, 1.0)], 1.4, 2),
    "one pod has all of it": ([*series("a", 2, 4.0, 0.0), *series("b", 2, 0.0, 0.0)], 2.0, 3),
    "nothing is asked": ([*series("a", 2, 0.0, 0.0)], 0.0, 1),
    # Not 0, which would take pods away while Prometheus does not see them.
    "no pod is seen": ([], None, None),
}


@pytest.mark.parametrize("load", LOADS)
def test_the_autoscalers_see_the_work_that_is_offered_in_pods(load: str, tmp_path: Path, record_property: Any) -> None:
    samples, value, pods = LOADS[load]
    expected = [] if value is None else [{"value": value}]
    file = tmp_path / "test.yaml"
    tests = [
        {
            "interval": "15s",
            "input_series": samples + OTHERS,
            "promql_expr_test": [{"expr": ask(name), "eval_time": "8m", "exp_samples": expected}],
        }
        for name, ask in QUERIES.items()
    ]
    file.write_text(yaml.safe_dump({"tests": tests}))
    command = [tool("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    if value is not None and pods is not None:
        # What a HorizontalPodAutoscaler makes of an AverageValue.
        assert max(-(-value // TARGET), 1) == pods
    record_property("found", f"{load}: {value} pods' worth, {pods} pods, by {len(QUERIES)} queries")


def test_there_is_never_no_pod_to_count_what_is_asked() -> None:
    assert all(find(rendered(name), "ScaledObject")["spec"]["minReplicaCount"] >= 1 for name in KEDA)
    assert all(find(rendered(name), "HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 1 for name in HPA)


def test_both_autoscalers_are_as_quick() -> None:
    keda = find(rendered("autoscaling-keda"), "ScaledObject")["spec"]
    hpa = find(rendered("autoscaling-hpa"), "HorizontalPodAutoscaler")["spec"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])


def test_the_operators_rules_are_the_plain_rules() -> None:
    assert RULE.read_text() == operators_form(), "python tests/prometheus_rule.py"
    rule = find(rendered("autoscaling-hpa"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(PLAIN.read_text())


def test_the_dashboard_is_what_grafanas_sidecar_takes() -> None:
    manifests = rendered("autoscaling-hpa")
    config = next(m for m in manifests if m["metadata"]["name"] == "harken-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["harken.json"]) == json.loads(DASHBOARD.read_text())
    # kubectl apply keeps what it sent in an annotation, of at most 256 KiB in all.
    assert len(json.dumps(config)) < 250_000


def test_prometheus_finds_the_pods_by_the_port_and_the_labels_that_they_have() -> None:
    manifests = rendered("overlays/dev-scaled")
    monitor, deployment = find(manifests, "PodMonitor"), find(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "harken"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = {
        port["name"]: port["containerPort"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports[endpoint["port"]] == 8002
    (relabeling,) = endpoint["relabelings"]
    assert relabeling == {"sourceLabels": ["__meta_kubernetes_pod_label_harken_track"], "targetLabel": "track"}
    assert labels["harken/track"] == "stable"
    annotations = deployment["spec"]["template"]["metadata"].get("annotations", {})
    assert not any(name.startswith("prometheus.io/") for name in annotations)
