"""Writes a run's files while the disk takes no file above a size, and prints what is told.

`FOLDER WHAT BYTES`, in a process of its own: the limit is one of the process, and every file that
it writes counts.
"""

import logging
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.run.curves import Curves
from deploy.run.folder import RunFolder
from deploy.run.outcome import Outcome
from deploy.settings.run_config import load_config

POINTS = 9


def curves(folder: Path, limit: Callable[[], None]) -> None:
    """Points of steps after the second."""
    with Curves(folder, resume_step=1) as written:
        limit()
        for step in range(2, POINTS):
            written.write(step, "policy", {"loss": 1.0})


def summary(folder: Path, limit: Callable[[], None]) -> None:
    """The end of a run that has trained to it, and the status that its driver ends with."""
    config = load_config("deploy/configs/smoke.yaml", ["name=mine"])
    outcome = Outcome(config, setup_s=0, status="finished", exported=str(folder / "adapter"))
    limit()
    told = RunFolder(folder).close(outcome)
    sys.stdout.write(f"{told['status']} {outcome.exit_status}\n")


def main() -> None:
    folder, what, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    write = {"curves": curves, "summary": summary}[what]
    sys.stdout.write("begun\n")
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    try:
        write(folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    except OSError as error:
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    main()
