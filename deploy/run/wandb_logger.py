"""A run's curves in Weights & Biases, beside TensorBoard: the callback behind `logging.wandb`.

The names are TensorBoard's, `phase/name`, and so is the x axis, which is the curve `step`: W&B's
own counts calls and never goes back. The run's id is in `wandb.json` in its folder, so that a
resumed run goes on in the same W&B run; what it does again stands there twice. The key is
WANDB_API_KEY in the environment and is nowhere else.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deploy.callbacks import RunInfo
from deploy.run.curves import Point
from deploy.run.files import WANDB_FILE
from deploy.run.whole_files import write_whole
from deploy.settings.sections import Wandb

STEP = "step"
_INIT_TIMEOUT_S = 60.0


class WandbLogger:
    """A `deploy.callbacks.Callback`; any failure ends it, and the log says so once."""

    def __init__(self, settings: Wandb) -> None:
        self._settings = settings
        self._wandb: Any = None
        self._run: Any = None

    def on_start(self, run: RunInfo) -> None:
        """Begins the W&B run, or goes on with it."""
        import wandb  # pyright: ignore[reportMissingImports]

        settings = self._settings
        self._wandb = wandb
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            tags=list(settings.tags),
            name=run.name,
            id=_id_in(run.folder),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True, init_timeout=_INIT_TIMEOUT_S),
        )
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def on_points(self, points: Sequence[Point]) -> None:
        """One row for each point."""
        for point in points:
            values = {f"{point.phase}/{name}": value for name, value in point.values.items()}
            self._run.log({**values, STEP: point.step})

    def on_evaluation(
        self, cycle: int, metrics: Mapping[str, float], pictures: Path | None
    ) -> None:
        """The pictures with their prompts; the metrics are among the points."""
        if pictures is None:
            return
        with np.load(pictures, allow_pickle=False) as arrays:
            pairs = zip(arrays["images"], arrays["prompts"], strict=True)
            shown = [self._wandb.Image(image, caption=str(prompt)) for image, prompt in pairs]
        self._run.log({"evaluation/pictures": shown, STEP: cycle})

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Scores before and after, what it cost, and how it ended."""
        for moment in ("before", "after"):
            scores = summary.get(moment) or {}
            self._run.summary.update({f"{moment}/{name}": v for name, v in scores.items()})
        told = ("status", "reason", "reward_queries", "wall_s", "exported_version")
        self._run.summary.update({name: summary[name] for name in told if summary.get(name)})
        self._run.finish(exit_code=int(summary.get("status") == "failed"))


def missing_for(settings: Wandb, environ: Mapping[str, str]) -> str | None:
    """Why nothing could be logged; None: nothing that is seen without a network."""
    found = find_spec("wandb")
    if found is None or found.origin is None:  # a folder of that name is no package
        return (
            "the package wandb is not installed here: pip install -e '.[wandb]', or leave this "
            "section out"
        )
    if settings.mode == "online" and not environ.get("WANDB_API_KEY"):
        return (
            "mode: online needs the environment variable WANDB_API_KEY, which is not set; set it "
            "where the run's driver starts, or take mode: offline"
        )
    return None


def _id_in(folder: Path) -> str:
    """The id of the W&B run that belongs to a run's folder, made there at first."""
    path = folder / WANDB_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        made = secrets.token_hex(6)
        write_whole(path, json.dumps({"id": made}))
        return made
