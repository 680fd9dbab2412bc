"""The dashboard for Grafana 9 and later, made of panels.py: `python dashboard.py > harken.json`, in this folder."""

import json
import sys
from typing import Any, Final

from panels import OF_JOB, OF_MODEL, OF_TRACK, ROWS, Panel, selected

_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS: Final = 24
_HEIGHT: Final = 8
_CHANGES: Final = f"harken_model_changes_total{{{selected(OF_MODEL)}}}"


def dashboard() -> dict[str, Any]:
    """What harken.json holds."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        at = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "gridPos": at, "panels": []}
        )
        top, left = top + 1, 0
        for panel in members:
            if left + panel.width > _COLUMNS:
                top, left = top + _HEIGHT, 0
            at = {"h": _HEIGHT, "w": panel.width, "x": left, "y": top}
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": at})
            left += panel.width
        top += _HEIGHT
    return {
        "uid": "harken",
        "title": "harken",
        "description": "Encoders that are served: objectives, traffic, latency, batching, load, memory and models.",
        "tags": ["harken"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "Namespace", "label_values(harken_ready, namespace)"),
                _variable("job", "Deployment", 'label_values(harken_ready{namespace=~"$namespace"}, job)'),
                _variable("track", "Track", f"label_values(harken_ready{{{OF_JOB}}}, track)"),
                _variable("instance", "Server", f"label_values(harken_ready{{{OF_TRACK}}}, instance)"),
                _variable("model", "Model", f"label_values(harken_model_info{{{selected()}}}, model)"),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Versions that changed",
                    "datasource": _DATASOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": f"sum by (model, change) (increase({_CHANGES}[5m])) > 0",
                    "titleFormat": "{{model}} {{change}}",
                }
            ]
        },
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    heatmap = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _DATASOURCE,
            "expr": query.promql,
            "legendFormat": query.legend,
            "exemplar": "_bucket" in query.promql and "request_duration" in query.promql,
            **({"format": "heatmap"} if heatmap else {}),
        }
        for index, query in enumerate(panel.queries)
    ]
    drawn: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 0, "showPoints": "never"}
    if panel.stacked:
        drawn["stacking"] = {"mode": "normal"}
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": drawn}
    if panel.line is not None:
        drawn["thresholdsStyle"] = {"mode": "dashed"}
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.line}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if heatmap:
        defaults = {"unit": "reqps"}
    options: dict[str, Any] = {"tooltip": {"mode": "multi", "sort": "desc"}}
    if heatmap:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "exemplars": {"color": "orange"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        # Also what is of no model: calls that named none that is served.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
