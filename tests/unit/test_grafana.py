"""Dashboard and alerts ask for metrics that there are, with labels that these have."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import build
from deploy.run.metrics import ALL

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
LABELS = {
    f"ray_{metric.name}_bucket" if metric.bounds else f"ray_{metric.name}": {
        "run",
        *metric.tags,
        *(["le"] if metric.bounds else []),
    }
    for metric in ALL
}


def alerts() -> list[dict[str, Any]]:
    return yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]


def queries() -> list[str]:
    panels = json.loads(build.TARGET.read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return asked + [rule["expr"] for rule in alerts()]


def test_the_dashboard_is_what_its_panels_make() -> None:
    assert build.TARGET.read_text(encoding="utf-8") == build.text()


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: str) -> None:
    asked = re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", query)
    assert asked
    for name, selector in asked:
        assert name in LABELS
        assert set(re.findall(r"(\w+)\s*=", selector)) <= LABELS[name]
    grouped = re.findall(r"(?:by|on) \(([\w, ]+)\)", query)
    named = {name.strip() for names in grouped for name in names.split(",")}
    assert named <= set().union(*LABELS.values())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_understands_every_query_and_alert(tmp_path: Path) -> None:
    asked = [query.replace("$run", "mine") for query in queries()]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(asked)]
    (tmp_path / "queries.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]})
    )
    for file in (ALERTS, tmp_path / "queries.yml"):
        done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    config = ALERTS.with_name("prometheus.yml")
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_counts_up_is_asked_for_as_a_rate_or_a_sum_of_few() -> None:
    bare = [
        query
        for query in queries()
        if "_total" in query and not re.search(r"rate\(|increase\(", query)
    ]
    # How many failed at all is what a person wants to see.
    assert all("fail" in query for query in bare)


def test_every_metric_is_on_the_dashboard_or_alerted_on() -> None:
    text = " ".join(queries())
    assert [name for name in LABELS if name not in text] == []


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in build.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_every_alert_tells_what_to_do() -> None:
    for rule in alerts():
        assert {"summary", "description"} == set(rule["annotations"])
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
