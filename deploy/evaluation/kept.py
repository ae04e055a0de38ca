"""What a run's evaluations leave in its folder, and how it survives a crash.

runs/<name>/
    evaluations.json                what was measured beside training, and the best cycle
    kept/cycle-000012.safetensors   weights of the best version
    pictures/cycle-000012.npz       of the first, the last, the best and of others between, evenly

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
from deploy.run.files import (
    EVALUATIONS_FILE,
    cycle_name,
    cycle_of,
    kept_file,
    kept_files,
    pictured_cycles,
    pictures_file,
)
from deploy.run.whole_files import replacing, write_whole

MOST_PICTURED = 32
"""Evaluations between before and after whose pictures stay: at 1024², some 60 MB each."""


def save_weights(weights: Mapping[str, np.ndarray], target: Path) -> None:
    """Writes weights so that a file of the name is whole."""
    from safetensors.numpy import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        save_file(dict(weights), partial)


def save_pictures(target: Path, images_BHWC: np.ndarray, prompts: Sequence[str]) -> None:
    """Writes an .npz of pictures and their prompts so that a file of the name is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=images_BHWC, prompts=np.array(prompts))


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


def thin_pictures(folder: Path, best: int | None) -> None:
    """Removes pictures of evaluations until no more than `MOST_PICTURED` have theirs.

    Args:
        best: cycle whose pictures stay in any case; None: none is looked for.
    """
    there = [cycle for each in pictured_cycles(folder) if (cycle := cycle_of(each)) is not None]
    for cycle in surplus(there, best, most=MOST_PICTURED):
        pictures_file(folder, cycle_name(cycle)).unlink(missing_ok=True)


def surplus(cycles: Sequence[int], best: int | None, *, most: int) -> list[int]:
    """Those to leave out so that `most` stay: the first, the last, the best, and others between.

    One after the other goes whose neighbours are closest, the earliest of them, so that what stays
    is spread over all, whether it is asked once or after every evaluation.
    """
    assert most >= 4, most
    kept, gone = sorted(cycles), []
    while len(kept) > most:
        closest = min(
            (after - before, cycle)
            for before, cycle, after in zip(kept, kept[1:], kept[2:], strict=False)
            if cycle != best
        )
        gone.append(closest[1])
        kept.remove(closest[1])
    return gone
