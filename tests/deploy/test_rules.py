"""The rules by themselves: Prometheus' own unit tests, what an alert owes to whom it wakes, and the names they use."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from harken_server.telemetry.metrics import Metrics
from support.prometheus import MONITORING, RULES, SCALED, scaled
from support.tools import REPOSITORY, tool

UNIT_TESTS: Final = (MONITORING / "rules_test.yaml", MONITORING / "rules_days_test.yaml")
RUNBOOK: Final = REPOSITORY / "docs" / "runbook.md"
REAL_FAULTS: Final = REPOSITORY / "tests" / "deploy" / "test_alerts.py"
SUFFIXES: Final = ("_bucket", "_sum", "_count", "_total")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def without_alerts(text: str) -> list[str]:
    return [name for name in alerts() if not re.search(rf"\b{name}\b", text)]


def exported() -> set[str]:
    """The names that a server can export, whether or not it has a value for them now."""
    metrics = Metrics()
    metrics.watch_memory({}, None)
    names = {"harken_gpu_utilization_ratio"}
    for family in metrics.registry.collect():
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {family.name + suffix for suffix in kinds.get(family.type, ("",))}
    return names


def test_promtools_unit_tests_pass_with_the_true_durations(record_property: Callable[[str, object], None]) -> None:
    promtool = tool("promtool")
    for check in (["check", "rules", str(RULES)], ["test", "rules", *map(str, UNIT_TESTS)]):
        done = subprocess.run([promtool, *check], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for page in UNIT_TESTS for case in yaml.safe_load(page.read_text())["tests"]]
    checks = sum(len(case.get("alert_rule_test", ())) for case in cases)
    record_property("found", f"{len(alerts())} alerts, {len(rules())} rules; {len(cases)} cases, {checks} checks")


def test_a_broken_rule_fails_promtools_unit_tests(tmp_path: Path) -> None:
    promtool = tool("promtool")
    page = tmp_path / UNIT_TESTS[0].name
    page.write_text(UNIT_TESTS[0].read_text())
    assert "14.4 * 0.001" in RULES.read_text()
    (tmp_path / "rules.yaml").write_text(RULES.read_text().replace("14.4 * 0.001", "144 * 0.001"))
    done = subprocess.run([promtool, "test", "rules", str(page)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "HarkenAvailabilityFastBurn" in done.stdout + done.stderr


def test_every_alert_has_a_runbook_unit_tests_and_a_real_fault() -> None:
    headings = set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.M))
    assert sorted(set(alerts()) - headings) == [], "alerts without a paragraph in docs/runbook.md"
    assert sorted({name for name in headings if name.startswith("Harken")} - set(alerts())) == [], "no such alert"
    fires: set[str] = set()
    is_silent: set[str] = set()
    for page in UNIT_TESTS:
        for case in yaml.safe_load(page.read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                (fires if check.get("exp_alerts") else is_silent).add(check["alertname"])
    assert sorted(set(alerts()) - fires) == [], "alerts that no unit test lets fire"
    assert sorted(set(alerts()) - is_silent) == [], "alerts that no unit test expects to be silent"
    assert without_alerts(REAL_FAULTS.read_text()) == [], "alerts that no real fault lets fire"
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"page", "ticket"}, name
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, name


def test_rules_dashboard_and_runbook_name_only_what_is_exported_or_recorded() -> None:
    there = exported()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert len(there) > 40
    for page in (RULES, *UNIT_TESTS, RUNBOOK, MONITORING / "grafana" / "harken.json"):
        text = page.read_text()
        named = set(re.findall(r"\bharken_[a-z_]+", text))
        named -= {name for name in named if f"{name}/" in text}  # packages
        assert named, page
        wrong = {name for name in named if not {name, *(name + suffix for suffix in SUFFIXES)} & there}
        assert sorted(wrong) == [], f"{page.name} names what no server exports"
        asked = set(re.findall(r"\bharken:\w+:\w+", text))
        assert sorted(asked - recorded) == [], f"{page.name} names what no rule records"
    unused = {name for name in recorded if RULES.read_text().count(name) == 1}
    readers = RUNBOOK.read_text() + (MONITORING / "grafana" / "harken.json").read_text()
    assert sorted(name for name in unused if name not in readers) == [], "recorded for nobody"


def test_recorded_names_follow_prometheus_convention() -> None:
    by_metric: dict[str, set[str]] = {}
    for rule in rules():
        if "record" in rule:
            level, metric, operation = rule["record"].split(":")
            assert level == "harken"
            assert re.fullmatch(r"[a-z_]+", metric)
            assert re.fullmatch(r"(ratio|budget_left)(_rate)?(\d+[mhd])?", operation), rule["record"]
            window = re.search(r"\d+[mhd]$", operation)
            ranges = set(re.findall(r"\[(\d+\w+)\]", rule["expr"]))
            assert ranges == ({window[0]} if window else set()), rule["record"]
            by_metric.setdefault(rule["record"].rstrip("0123456789mhd"), set()).add(
                re.sub(r"\[\d+\w+\]", "", rule["expr"])
            )
    # Of one metric all windows ask for the same.
    assert [metric for metric, asked in by_metric.items() if len(asked) > 1] == []


def test_the_objective_of_the_latency_is_a_bound_of_its_buckets() -> None:
    metrics = Metrics()
    metrics.request_duration.labels("m", "Encode").observe(0.25)
    (family,) = metrics.request_duration.collect()
    bounds = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    asked = set(re.findall(r'le="([^"]+)"', RULES.read_text()))
    assert asked == {"0.25"}
    assert bounds["0.25"] == 1.0, "what takes exactly 0.25 s is in time"
    assert max(value for bound, value in bounds.items() if float(bound) < 0.25) == 0.0
    for page in (RUNBOOK, RULES):
        assert "99.9 %" in page.read_text()
        assert "0.25 s" in page.read_text()


def test_the_rules_that_real_faults_fire_differ_only_in_their_durations() -> None:
    true, short = RULES.read_text(), scaled(RULES.read_text())
    durations = re.compile(r"(?:\[|for: |interval: )(\d+[smhd])")
    assert set(durations.findall(true)) == SCALED.keys()
    assert set(durations.findall(short)) == set(SCALED.values())

    def blank(text: str) -> str:
        return durations.sub("", text)

    assert blank(short) == blank(true)
    assert len(durations.findall(short)) == len(durations.findall(true))

    def seconds(duration: str) -> int:
        return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]

    by_length = sorted(SCALED, key=seconds)
    assert [seconds(SCALED[one]) for one in by_length] == sorted({seconds(one) for one in SCALED.values()})


def test_prometheus_takes_every_query_of_the_docs(
    record_property: Callable[[str, object], None], tmp_path: Path
) -> None:
    """docs/metrics.md and docs/runbook.md; promtool reads each as the expression of a rule."""
    promtool = tool("promtool")
    queries = []
    for page in (REPOSITORY / "docs" / "metrics.md", RUNBOOK):
        queries += re.findall(r"`([^`]*\b(?:rate|sum|max|min|harken:\w+:\w+)\b[^`]*\)?)`", page.read_text())
    queries = [query for query in queries if "(" in query]
    assert len(queries) > 10
    as_rules = [{"record": f"query_{index}", "expr": query} for index, query in enumerate(queries)]
    page = tmp_path / "docs.yaml"
    page.write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": as_rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(page)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("found", f"{len(queries)} queries")


@pytest.mark.parametrize("wrong", ["[2m]", "for: 7m"])
def test_a_duration_that_is_not_scaled_is_named(wrong: str) -> None:
    with pytest.raises(KeyError, match=wrong[-3:].strip("[ ]")):
        scaled(f"expr: x{wrong}\n" if wrong[0] == "[" else f"{wrong}\n")
