"""What every process of a run is built from; travels to its actors."""

from dataclasses import dataclass

from buffer.replay import Replay
from deploy.run.shared_folder import SharedFolder
from deploy.settings.run_config import RunConfig


@dataclass(frozen=True)
class RunParts:
    """Of one run.

    Args:
        replay: picklable; opens its own connection in the process that unpickles it.
        folder: of the run, which learner and evaluator work in.
    """

    config: RunConfig
    replay: Replay
    folder: SharedFolder
