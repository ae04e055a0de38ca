"""What every process of a run is built from; travels to its actors."""

from dataclasses import dataclass
from pathlib import Path

from buffer.replay import Replay
from deploy.run_config import RunConfig


@dataclass(frozen=True)
class RunParts:
    """Of one run.

    Args:
        replay: picklable; opens its own connection in the process that unpickles it.
        folder: of the run, seen by learner and evaluator.
    """

    config: RunConfig
    replay: Replay
    folder: Path
