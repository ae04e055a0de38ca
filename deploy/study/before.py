"""The evaluation before training, measured once for all runs of a study that would measure alike.

It depends on the untouched policy, the held-out prompts and the rewards, not on the method or the
seed of a run: so a run takes it from the folder of a finished one, pictures included. What lies
behind a path, weights and prompts, is taken to be the same as long as the path is.
"""

import os
import shutil
from collections.abc import Iterable
from typing import Any

from deploy.report.data import versions
from deploy.run.files import BEFORE, BEFORE_FILE, pictures_file
from deploy.run.plan import has_begun
from deploy.settings.run_config import RunConfig
from deploy.study.file import Cell

_OF_TRAINING = ("every_cycles", "best_by", "stop")
"""Settings of an evaluation that say when one is due and what follows from it."""


def take_before(cell: Cell, others: Iterable[Cell]) -> bool:
    """Copies it into the folder of a run that has not begun; False: nobody has measured it."""
    if has_begun(cell.config, os.environ):
        return False
    pictures_there = pictures_file(cell.folder, BEFORE)
    for left in (cell.folder / BEFORE_FILE, pictures_there):
        left.unlink(missing_ok=True)  # of a start that came to nothing, maybe with other settings
    for other in others:
        summary = other.summary
        there = other.folder / BEFORE_FILE
        if (
            summary is not None
            and there.is_file()
            and summary.get("versions") == versions()
            and measured_by(other.config) == measured_by(cell.config)
        ):
            pictures = pictures_file(other.folder, BEFORE)
            pictures_there.parent.mkdir(parents=True, exist_ok=True)
            if pictures.is_file():
                shutil.copyfile(pictures, pictures_there)
            shutil.copyfile(there, cell.folder / BEFORE_FILE)
            return True
    return False


def measured_by(config: RunConfig) -> dict[str, Any]:
    """Every setting that the untouched policy's scores depend on."""
    told = config.model_dump(mode="json")
    evaluation = {k: v for k, v in told["evaluation"].items() if k not in _OF_TRAINING}
    return {
        "model": told["model"],
        "evaluation": evaluation,
        "rewards": told["rewards"],
        "attempts": told["replay"]["max_attempts"],
        "scoring": {k: told["scoring"][k] for k in ("max_batch", "timeout_s")},
        "shared_noise": told["actors"]["fixed_initial_noise"],
    }
