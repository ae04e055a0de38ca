"""Checkpoints: a folder per learner step, complete or not there.

    checkpoints/00000012/           written as 00000012.partial, renamed when whole
        policy/  surrogate/         DeepSpeed's own files: weights, optimizer
        state.json                  counters, scales, ticket limit, log position

The newest complete folder is the one to resume from; nobody needs to be told which.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FORMAT = 1


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder."""
    whole = [path for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return max(whole, key=lambda path: int(path.name), default=None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` says.

    Raises:
        ValueError: unreadable, or of another format.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text())
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
    number: int,
    state: dict[str, Any],
    save_parts: Callable[[Path], None],
    *,
    rank: int,
    barrier: Callable[[], None],
    keep: int,
) -> None:
    """Writes checkpoint `number`; every rank must call it.

    Args:
        save_parts: writes a rank's part into the folder that it is given.
        keep: newest checkpoints that stay.
    """
    final = folder / "checkpoints" / f"{number:08d}"
    partial = final.with_suffix(".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    save_parts(partial)
    barrier()
    if rank == 0:
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1))
        _replace(partial, final)
        _forget_old(final.parent, keep)
        log.info("checkpoint %s", final)
    barrier()


def _replace(partial: Path, final: Path) -> None:
    """Two renames, so that a kill between them is as unlikely as can be."""
    replaced = final.with_suffix(".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _forget_old(folder: Path, keep: int) -> None:
    whole = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda p: p.name)
    for path in whole[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
