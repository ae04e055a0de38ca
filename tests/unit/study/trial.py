"""Two small studies, and runs of them that are finished."""

import json
from pathlib import Path

from deploy.report.data import versions
from deploy.study.file import Cell

TEXT = """
config: deploy/configs/smoke.yaml
settings: [method.cycles=1]
seeds: [0, 1]
arms:
  plain: []
  no-anchor: [method.anchor.data=none, model.teacher=null]
scores: [exact_2step]
"""
TUNED = """
config: deploy/configs/smoke.yaml
seeds: [0, 1]
tuning: {seed: 7, score: exact_2step, settings: [method.cycles=1]}
arms:
  plain:
    tries: [[method.learning_rate=1e-4], [method.learning_rate=2e-4]]
  no-anchor:
    settings: [method.anchor.data=none, model.teacher=null]
    tries: [[method.learning_rate=1e-4], [method.learning_rate=3e-4]]
  last: {settings: [method.reward_steps=last], tuned_as: plain}
against: plain
scores: [exact_2step]
fronts: [{scores: [exact_2step, diversity], reference: [0, 0]}]
"""


def finish(
    cell: Cell, tmp_path: Path, before: float, after: float, status: str = "finished"
) -> None:
    folder = tmp_path / "runs" / cell.config.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(cell.config.to_json())
    summary = {
        "status": status,
        "before": {"exact_2step": before, "diversity": 1.0, "kl_nats": 0.0},
        "after": {"exact_2step": after, "diversity": 1.0, "kl_nats": 0.2},
        "reward_queries": 100,
        "flops": {"sampling": 2e12, "policy": 3e12},
        "wall_s": 10.0,
        "versions": versions(),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
