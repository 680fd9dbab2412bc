"""The rules of deploy/monitoring for the Prometheus operator: write them, or check that they are the plain ones.

kustomize puts no file into a field, so the operator's form is a copy. `python tests/prometheus_rule.py` writes it anew.
"""

import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PLAIN = DEPLOY / "monitoring" / "rules.yaml"
RULE = DEPLOY / "k8s" / "components" / "monitoring" / "prometheusrule.yaml"
_HEAD = """\
# Made of deploy/monitoring/rules.yaml by tests/prometheus_rule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: harken
spec:
"""


def operators_form() -> str:
    """The plain rules, as they stand there, below `spec`."""
    lines = PLAIN.read_text().splitlines()
    return _HEAD + "".join(f"  {line}\n" if line.strip() else "\n" for line in lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        RULE.write_text(operators_form())
    elif RULE.read_text() != operators_form():
        sys.exit(f"{RULE} is not what {PLAIN} says: python tests/prometheus_rule.py")
