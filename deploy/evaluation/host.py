"""The evaluator inside its actor, which the controller's handle is of.

Its `Evaluator`, and torch with it, is imported where it is built, so that the driver, which names
this class, imports neither.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError

from deploy.evaluation.kept import save_weights
from deploy.fleet.reward_pools import pooled_rewards
from deploy.run.files import cycle_name, kept_file, pictures_file
from deploy.run.gpu_share import hide_unbooked
from deploy.run.shared_folder import SharedFolder
from deploy.settings.run_config import RunConfig
from reward_servers.pool import PooledReward
from reward_servers.timed import StalledError

if TYPE_CHECKING:
    from deploy.evaluation.evaluator import Evaluator

log = logging.getLogger(__name__)
_BOARD_TIMEOUT_S = 60.0
WeightsSource = list[Any] | Path
"""References that are the whole policy together, none for the untouched one; or a file."""


class EvaluatorHost:
    """The evaluator inside its actor: takes references to weights, builds itself when asked.

    It raises NotSharedError where this node has not got the run's folder, before it builds itself.
    """

    def __init__(self, config: RunConfig, folder: SharedFolder) -> None:
        self._config = config
        self._folder = folder
        self._evaluator: Evaluator | None = None
        self._pools: dict[str, PooledReward] = {}

    def check_folder(self) -> None:
        """Raises NotSharedError where this node has not got the run's folder."""
        self._folder.check("the evaluator")

    def evaluate(self, source: WeightsSource, pictures: Path) -> dict[str, float]:
        """`Evaluator.evaluate` of these weights."""
        return self._measuring().evaluate(_weights(source), pictures)

    def evaluate_newest(
        self, board: Any, at_least: int, folder: Path, *, keep: bool
    ) -> tuple[int, dict[str, float]] | None:
        """Version and metrics of the newest policy on the board; pictures go to `folder`.

        None where the board's newest is older than `at_least`, or its weights died with a learner
        that will publish them again.

        Args:
            keep: save the weights too.
        """
        try:
            version, refs = ray.get(board.weights.remote(at_least), timeout=_BOARD_TIMEOUT_S)
            weights = _weights(refs)
        except (RayError, LookupError) as error:
            log.info("no policy to evaluate: %s", error)
            return None
        metrics = self._measuring().evaluate(weights, pictures_file(folder, cycle_name(version)))
        if keep and weights is not None:
            save_weights(weights, kept_file(folder, version))
        return version, metrics

    def export(self, source: WeightsSource, folder: Path) -> str:
        """`Evaluator.export` of these weights."""
        return self._get().export(_weights(source), folder)

    def _get(self) -> Evaluator:
        if self._evaluator is None:
            self.check_folder()
            hide_unbooked(self._config.evaluation.num_gpus)
            from deploy.evaluation.evaluator import Evaluator

            self._pools = pooled_rewards(self._config)
            self._evaluator = Evaluator(self._config, self._pools)
        return self._evaluator

    def _measuring(self) -> Evaluator:
        """The evaluator, once every reward that has a fleet of its own answers.

        Else the first pictures would have no score of a reward that still starts, and a mean over
        the others would be held against a later one over all. It waits for `limits.stall_s`, or
        less. Where a reward hangs since an earlier evaluation this process ends, and Ray begins it
        anew, with what was asked of it.
        """
        evaluator = self._get()
        try:
            evaluator.check_rewards()
        except StalledError as error:
            log.error("evaluation: %s; the evaluator begins anew", error)
            os._exit(1)
        patience_s = min(self._config.limits.stall_s, 0.5 * self._config.evaluation.timeout_s)
        until = time.monotonic() + patience_s
        for name, pool in self._pools.items():
            try:
                pool.wait(until - time.monotonic())
            except Exception as error:  # noqa: BLE001  as in its `score`, no member may be found
                log.warning("evaluation: reward %s may lack scores: %s", name, error)
        return evaluator


def _weights(source: WeightsSource) -> dict[str, np.ndarray] | None:
    if isinstance(source, Path):
        from safetensors.numpy import load_file

        return load_file(source)
    return {name: array for part in ray.get(source) for name, array in part.items()} or None
