"""Names of what a run leaves: files in its folder, and phases of its curves.

runs/<name>/
    config.json      resolved config             summary.json  before, after, cost
    cluster.json     its Ray cluster and start   fleet.jsonl   decisions about its fleets
    profile.json     seconds of every role       before.json   scores of the untouched policy
    metrics.jsonl    curves                      report.html   everything, for a person
    tensorboard/     curves again                pictures/     of evaluations, .npz
    checkpoints/     to resume from              redis/        the replay's append-only file
    samples/         where every sample came from, as `learner.sample_trace` has it
    evaluations.json, kept/   beside training, as `deploy.evaluation.kept` has it
    wandb.json, lock          id of its W&B run; held by the driver at work
    starts.json               its starts, by which the replay knows whose it is
    adapter/ or unet/         the result, as diffusers loads it, with its card

Knows nothing of what is in them, and imports nothing of ours, so that everybody can ask it.
"""

import re
from pathlib import Path

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
CLUSTER_FILE = "cluster.json"
DECISIONS_FILE = "fleet.jsonl"
PROFILE_FILE = "profile.json"
BEFORE_FILE = "before.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
EVENTS_FOLDER = "tensorboard"
EVALUATIONS_FILE = "evaluations.json"
WANDB_FILE = "wandb.json"
LOCK_FILE = "lock"
STARTS_FILE = "starts.json"
_PICTURES_FOLDER = "pictures"
_KEPT_FOLDER = "kept"

EVALUATION_PHASE = "evaluation"
"""Of scores on held-out prompts; a point's step is the number of cycles behind the policy."""
FRESH_PHASE = "fresh"
"""Of samples that were drawn in a cycle."""

BEFORE, AFTER = "before", "after"
"""Moments that have pictures, beside those that `cycle_name` gives."""
LAST = "last"
"""The last version, until it is known whether it is the one that the run leaves."""


def cycle_name(cycle: int) -> str:
    """Names a version's files, and the moment it is of; in the order of cycles."""
    return f"cycle-{cycle:06d}"


def cycle_of(moment: str) -> int | None:
    """The cycle of a `cycle_name`; None: it is none."""
    found = re.fullmatch(r"cycle-(\d+)", moment)
    return int(found.group(1)) if found else None


def pictures_file(folder: Path, moment: str) -> Path:
    """Pictures of the evaluation of a moment."""
    return folder / _PICTURES_FOLDER / f"{moment}.npz"


def pictured_cycles(folder: Path) -> list[str]:
    """Moments between before and after that have pictures, in no order."""
    return [path.stem for path in (folder / _PICTURES_FOLDER).glob("cycle-*.npz")]


def kept_file(folder: Path, cycle: int) -> Path:
    """Weights of the version after so many cycles."""
    return folder / _KEPT_FOLDER / f"{cycle_name(cycle)}.safetensors"


def kept_files(folder: Path) -> list[Path]:
    """All weights that are kept, of any version."""
    return list((folder / _KEPT_FOLDER).glob("cycle-*"))
