"""What a run's evaluations leave in its folder, and how it survives a crash.

runs/<name>/
    evaluations.json                what was measured beside training, and the best cycle
    kept/cycle-000012.safetensors   weights of the best version
    pictures/cycle-000012.npz       of every evaluation

Weights are written by the evaluator before the driver learns of their score, and older ones are
removed after the file that names the best is there: whenever a run dies, the version that
`evaluations.json` calls the best has its weights. What was measured stays measured, even of
cycles that a resumed run makes once more.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.evaluation.stopping import Measured
from deploy.run.files import EVALUATIONS_FILE, kept_file, kept_files
from deploy.run.whole_files import replacing, write_whole


def save_weights(weights: Mapping[str, np.ndarray], target: Path) -> None:
    """Writes weights so that a file of the name is whole."""
    from safetensors.numpy import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        save_file(dict(weights), partial)


def read_evaluations(folder: Path) -> list[Measured]:
    """What an earlier start of the run has measured, oldest first."""
    try:
        told = json.loads((folder / EVALUATIONS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Measured(each["cycle"], each["metrics"]) for each in told["evaluations"]]


def write_evaluations(folder: Path, measured: Sequence[Measured], best: int | None) -> None:
    """Writes them at once or not at all; then only the best version's weights stay.

    Args:
        best: cycle of it; None: none is looked for.
    """
    told = {"best": best, "evaluations": [vars(each) for each in measured]}
    write_whole(folder / EVALUATIONS_FILE, json.dumps(told, indent=1))
    kept = None if best is None else kept_file(folder, best)
    for path in kept_files(folder):
        if path != kept:
            path.unlink()
