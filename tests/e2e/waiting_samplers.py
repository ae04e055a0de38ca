"""`deploy.launch` whose samplers take a GPU's time and no CPU's, as long as a file is there.

    python -m waiting_samplers CONFIG a.b=value ...

Two cores do not sample faster with four samplers than with one; samplers that wait do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import launch
from deploy.run import build, controller

if TYPE_CHECKING:
    from actors.rollout import Group, Policy, Rollout
    from actors.worker import SamplerWorker
    from deploy.run.parts import RunParts
    from learner.policy.board import Weights

WAIT_FILE = "FLEETUNE_TEST_WAIT_FILE"
WAIT_S = 3.0


class WaitingPolicy:
    """Another policy, and a while before each of its groups."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._file = Path(os.environ[WAIT_FILE])

    def load(self, weights: Weights, /) -> None:
        self._policy.load(weights)

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        if self._file.exists():
            time.sleep(WAIT_S * len(groups))
        return self._policy.sample(groups)


def waiting_sampler(parts: RunParts, board: Any, owner: str) -> SamplerWorker:
    policy_of = build.policy_of
    build.policy_of = lambda *args, **options: WaitingPolicy(policy_of(*args, **options))
    return build.sampler(parts, board, owner)


if __name__ == "__main__":
    controller.sampler = waiting_sampler
    sys.exit(launch.main())
