"""Checkpoints: a folder per learner step, complete or not there.

    checkpoints/00000012/           after so many cycles; written as 00000012.partial, renamed
                                    when whole
    checkpoints/00000012-midway/    after the policy steps of the next one, too
        policy/  surrogate/         DeepSpeed's own files: weights, optimizer
        state.json                  counters, scales, ticket limit, log position; midway what was
                                    told of the cycle; size and checksum of every other file,
                                    and its own checksum

The newest whole folder is the one to resume from; nobody needs to be told which. One that a full
disk or a lost machine has damaged, or that cannot be read, is passed over for the one before it.
Where all are damaged nothing is resumed: to begin anew would be to lose the run in silence.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FORMAT = 5
_CHUNK = 2**22
_STATE = "state.json"
_SEAL = "checksum"
"""Of the state's own, in it."""
_REPLACED = ".replaced"
_NAME = re.compile(r"(\d{8,})(-midway)?")


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint in a run's folder; None: there is none at all.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    _take_back_replaced(folder / "checkpoints")
    damages: dict[str, str] = {}
    for path in reversed(_complete(folder / "checkpoints")):
        damage = _damage(path)
        if damage is None:
            return path
        log.warning("checkpoint %s is passed over: %s", path, damage)
        damages[path.name] = damage
    if damages:
        told = "; ".join(f"{name}: {damage}" for name, damage in damages.items())
        raise ValueError(
            f"every checkpoint in {folder / 'checkpoints'} is damaged ({told}). Put one back from "
            "a copy, or remove that folder: the run then trains from its beginning, with the "
            "samples that are there"
        )
    return None


def place_of(checkpoint: Path) -> tuple[int, bool]:
    """How many cycles it is after, and whether the policy steps of one more."""
    found = _NAME.fullmatch(checkpoint.name)
    assert found is not None, checkpoint
    return int(found.group(1)), found.group(2) is not None


def at(folder: Path, cycles: int, *, midway: bool) -> Path:
    """The checkpoint of that place in a run's folder, unlooked at.

    Raises:
        ValueError: there is none.
    """
    path = folder / "checkpoints" / _name(cycles, midway)
    if not path.is_dir():
        raise ValueError(f"there is no checkpoint {path}")
    return path


def _name(cycles: int, midway: bool) -> str:
    return f"{cycles:08d}" + "-midway" * midway


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` says.

    Raises:
        ValueError: unreadable, or of another format.
    """
    try:
        state = json.loads((checkpoint / _STATE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {checkpoint} cannot be read: {error}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"checkpoint {checkpoint} has format {found!r}; this version reads {FORMAT}. Resume "
            "with the version that wrote it."
        )
    return state


def write(
    folder: Path,
    cycles: int,
    state: dict[str, Any],
    save_parts: Callable[[Path], None],
    *,
    midway: bool = False,
    rank: int,
    barrier: Callable[[], None],
    keep: int,
) -> None:
    """Writes the checkpoint after so many cycles; every rank must call it.

    Args:
        midway: the policy steps of one more cycle are in it.
        save_parts: writes a rank's part into the folder that it is given.
        keep: newest checkpoints that stay.
    """
    final = folder / "checkpoints" / _name(cycles, midway)
    partial = final.with_suffix(".partial")
    if rank == 0:
        for left in final.parent.glob("*.partial"):  # by whoever was killed while writing it
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    save_parts(partial)
    barrier()
    if rank == 0:
        state = {"format": FORMAT, **state, "files": _files(partial)}
        sealed = {**state, _SEAL: _seal(state)}
        (partial / _STATE).write_text(json.dumps(sealed, indent=1))
        _flush(partial)
        _replace(partial, final)
        _forget(final, keep)
        log.info("checkpoint %s", final)
    barrier()


def _complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted((path for path in folder.glob("*") if _NAME.fullmatch(path.name)), key=place_of)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; a state of another format is not damage."""
    try:
        state = json.loads((path / _STATE).read_text())
        if not isinstance(state, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        return f"{_STATE} cannot be read: {error}"
    if state.get("format", FORMAT) != FORMAT:
        return None
    if state.pop(_SEAL, None) != _seal(state):
        return f"{_STATE} is damaged"
    try:
        found = _files(path)
    except OSError as error:
        return f"a file of it cannot be read: {error}"
    odd = [name for name, told in state["files"].items() if found.get(name) != told]
    return f"missing or damaged: {', '.join(odd)}" if odd else None


def _seal(state: dict[str, Any]) -> int:
    """Checksum of a state, which is the same of what its file says of it."""
    return zlib.crc32(json.dumps(state).encode())


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file but the state's, by its path in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)]
        for path in paths
        if path.name != _STATE
    }


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def _flush(folder: Path) -> None:
    """To the disk: a rename must not become true before what it names."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(partial: Path, final: Path) -> None:
    """Two renames; `_take_back_replaced` mends what a kill between them leaves."""
    replaced = final.with_suffix(_REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _take_back_replaced(folder: Path) -> None:
    """What was to be replaced, where nothing has come in its place."""
    for replaced in folder.glob(f"*{_REPLACED}"):
        if not (final := replaced.with_suffix("")).exists():
            replaced.rename(final)


def _forget(newest: Path, keep: int) -> None:
    """Leaves so many up to the one that was just written. Later ones were passed over, as they were
    damaged: they take the place of no whole one, and are not gone on from if they can be read."""
    known = _complete(newest.parent)
    until = known.index(newest) + 1
    for path in known[until:]:
        log.warning("checkpoint %s is removed: the run went on from one before it", path)
    for path in (*known[: max(0, until - keep)], *known[until:]):
        shutil.rmtree(path, ignore_errors=True)
