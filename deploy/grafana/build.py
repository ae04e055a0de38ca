"""Writes the Grafana dashboard of fleetune from the list of its panels.

    python -m deploy.grafana.build        # deploy/grafana/fleetune.json

Grafana's own format repeats a page of settings for every panel; what differs stands here.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "fleetune.json"
_WIDTH, _HEIGHT = 8, 8
_PER_ROW = 24 // _WIDTH


@dataclass(frozen=True)
class Panel:
    """One graph.

    Args:
        queries: PromQL and the legend of its series; `RUN` stands for the chosen run.
        unit: Grafana's name of it.
    """

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"


ROWS: dict[str, tuple[Panel, ...]] = {
    "The run": (
        Panel(
            "Progress",
            "Cycles that have ended, of the whole run, and what the learner is at.",
            (
                ("ray_fleetune_cycle{RUN}", "cycle"),
                ("ray_fleetune_cycles{RUN}", "of"),
                ("ray_fleetune_stage{RUN} == 1", "{{stage}}"),
            ),
        ),
        Panel(
            "True reward",
            "Mean over fresh samples of the newest policy.",
            (('ray_fleetune_curve{RUN, phase="fresh", curve=~"reward_.*"}', "{{curve}}"),),
        ),
        Panel(
            "Policy steps",
            "Newest values of the policy's curves: KL, losses, gradient norm.",
            (('ray_fleetune_curve{RUN, phase="policy"}', "{{curve}}"),),
        ),
        Panel(
            "Surrogate",
            "Pair accuracy on held-out and on fresh samples.",
            (('ray_fleetune_curve{RUN, curve=~".*accuracy.*"}', "{{phase}} {{curve}}"),),
            "percentunit",
        ),
        Panel(
            "Where the learner's time goes",
            "Share of wall time by phase; it waits for samplers, or for rewards.",
            (
                (
                    "sum by (phase) (rate(ray_fleetune_learner_seconds_total{RUN}[2m]))",
                    "{{phase}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Memory",
            "Resident memory of Ray's processes on the driver's node.",
            (("ray_fleetune_resident_bytes{RUN}", "resident"),),
            "bytes",
        ),
    ),
    "Over-optimisation": (
        Panel(
            "Held-out scores and the trained reward",
            "Of the newest policy that was evaluated beside training, on held-out prompts.",
            (('ray_fleetune_curve{RUN, phase="evaluation", curve=~".*step"}', "{{curve}}"),),
        ),
        Panel(
            "KL and diversity",
            "True KL of a step to the untouched policy in nats, and diversity at a fixed prompt.",
            (
                (
                    'ray_fleetune_curve{RUN, phase="evaluation", curve=~"kl_nats|diversity"}',
                    "{{curve}}",
                ),
            ),
        ),
        Panel(
            "Surrogate against truth",
            "On fresh samples: rank correlation within a prompt, and by how many deviations it "
            "promises too much.",
            (
                (
                    'ray_fleetune_curve{RUN, phase="fresh", curve=~".*_(gap|rank_correlation)_.*"}',
                    "{{curve}}",
                ),
            ),
        ),
    ),
    "Samples": (
        Panel(
            "Trajectories a second",
            "Sampled, scored, failed and queued again.",
            (("sum by (state) (rate(ray_fleetune_records_total{RUN}[2m]))", "{{state}}"),),
            "ops",
        ),
        Panel(
            "Waiting and kept",
            "Records that wait for a reward, that a server holds, and that the replay keeps.",
            (("ray_fleetune_records{RUN}", "{{state}}"),),
        ),
        Panel(
            "Queue",
            "Share of the records that may wait; at 1 samplers pause.",
            (("ray_fleetune_queue_share{RUN}", "queue"),),
            "percentunit",
        ),
        Panel(
            "Failures",
            "Records set aside for good, and how often one was queued again.",
            (
                ('ray_fleetune_records_total{RUN, state=~"failed|retried"}', "{{state}}"),
                ("ray_fleetune_worker_failures_total{RUN} > 0", "batches of {{actor}}"),
            ),
        ),
        Panel(
            "A reward's call",
            "Median and 95th percentile of the seconds that a call takes.",
            tuple(
                (
                    f"histogram_quantile({share}, sum by (le, reward) "
                    "(rate(ray_fleetune_reward_seconds_bucket{RUN}[5m])))",
                    f"{{{{reward}}}} {share}",
                )
                for share in (0.5, 0.95)
            ),
            "s",
        ),
        Panel(
            "Pictures without a score",
            "A second, by the reward that gave none; calls that are repeated count again.",
            (
                (
                    "sum by (reward) (rate(ray_fleetune_reward_failures_total{RUN}[5m]))",
                    "{{reward}}",
                ),
            ),
            "ops",
        ),
        Panel(
            "How stale samples are",
            "Policy versions that the learner is ahead of what it learns from: median and 95th "
            "percentile.",
            tuple(
                (
                    f"histogram_quantile({share}, sum by (le) "
                    "(rate(ray_fleetune_sample_staleness_versions_bucket{RUN}[5m])))",
                    f"{share}",
                )
                for share in (0.5, 0.95)
            ),
        ),
        Panel(
            "How old samples are",
            "Seconds since they were scored: median and 95th percentile.",
            tuple(
                (
                    f"histogram_quantile({share}, sum by (le) "
                    "(rate(ray_fleetune_sample_age_seconds_bucket{RUN}[5m])))",
                    f"{share}",
                )
                for share in (0.5, 0.95)
            ),
            "s",
        ),
        Panel(
            "Replay",
            "Size of the latents that are kept.",
            (("ray_fleetune_replay_bytes{RUN}", "latents"),),
            "bytes",
        ),
    ),
    "Fleets": (
        Panel(
            "Actors",
            "Wanted, and by state.",
            (("ray_fleetune_fleet_actors{RUN}", "{{role}} {{state}}"),),
        ),
        Panel(
            "Images a second",
            "Of every actor.",
            (("sum by (actor) (rate(ray_fleetune_images_total{RUN}[2m]))", "{{actor}}"),),
            "ops",
        ),
        Panel(
            "Without work",
            "Share of its time that an actor waits.",
            (
                (
                    "sum by (actor) "
                    '(rate(ray_fleetune_worker_seconds_total{RUN, stage="wait"}[2m]))',
                    "{{actor}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Policy versions behind",
            "Of the version that the newest sampler draws with.",
            (
                (
                    "scalar(max(ray_fleetune_sampler_policy_version{RUN}))"
                    " - ray_fleetune_sampler_policy_version{RUN}",
                    "{{actor}}",
                ),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "title": "fleetune",
        "uid": "fleetune",
        "tags": ["fleetune", "ray"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _run()]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
        }
        top += 1
        for place, panel in enumerate(panels):
            number += 1
            x, y = place % _PER_ROW * _WIDTH, top + place // _PER_ROW * _HEIGHT
            yield _graph(panel, number, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT})
        top += -(-len(panels) // _PER_ROW) * _HEIGHT


def _graph(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {
            # Of what is never negative the axis begins at 0; rewards and losses may be.
            "defaults": {"unit": panel.unit, "custom": {"axisSoftMin": 0}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": source,
                "expr": query.replace("RUN", 'run=~"$run"'),
                "legendFormat": legend,
            }
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 0}


def _run() -> dict[str, Any]:
    return {
        "name": "run",
        "label": "run",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(ray_fleetune_cycle, run)", "refId": "run"},
        "refresh": 2,
        "sort": 1,
        # One at a time: actors of different runs have the same names.
        "includeAll": False,
        "multi": False,
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> None:
    """The command."""
    argparse.ArgumentParser(
        prog="python -m deploy.grafana.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    TARGET.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")


if __name__ == "__main__":
    main()
