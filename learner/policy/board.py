"""Where the newest policy weights are found.

The board holds references to weights, never the weights: a publisher puts them into the object
store as `dict[str, np.ndarray]` (numpy is read from there without a copy, torch tensors are
not), and readers fetch them from there. It knows nothing of Ray; it is placed as a named actor.

Versions only grow within one life of the learner. One that comes back from an older checkpoint
rewinds the board and publishes numbers again that had other weights before, so every publication
also has an edition, which never repeats: readers compare editions, tickets ask for versions.
References die with the process that put the weights.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
"""The trained tensors of one version, by parameter name."""

NOTHING_PUBLISHED = -1

log = logging.getLogger(__name__)


class PolicyBoard:
    """The last few published policy versions.

    The learner calls `rewind` when it starts and `publish` after an update; samplers ask for the
    `latest`, and for its `weights` when it is not what they have.

    Args:
        keep: how many versions stay. An older one is freed once its last reader lets go.
    """

    def __init__(self, *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; the board must keep at least 1 version")
        self._keep = keep
        self._refs_of_version: dict[int, list[Any]] = {}
        # From the clock, so that a board that starts again repeats none of its former life.
        self._edition = time.time_ns()

    def publish(self, version: int, refs: Sequence[Any]) -> None:
        """Make a version the newest. Publishing the same references again changes nothing.

        Args:
            version: above `latest_version()`.
            refs: references to dicts of weights, which together are the whole version.

        Raises:
            ValueError: an old version, or no reference.
        """
        if not refs:
            raise ValueError(f"version {version} has no references; publish at least one")
        if self._refs_of_version.get(version) == list(refs):
            return
        newest = self.latest_version()
        if version <= newest:
            raise ValueError(
                f"version {version} is not above the newest, {newest}; publish these as "
                f"{newest + 1}, or rewind the board first"
            )
        self._refs_of_version[version] = list(refs)
        self._edition += 1
        for old in sorted(self._refs_of_version)[: -self._keep]:
            del self._refs_of_version[old]

    def rewind(self, version: int) -> None:
        """Forget everything: a learner begins, or begins again, at `version`.

        What an earlier life had published died with it, the versions below `version` too.
        """
        if self._refs_of_version:
            forgotten = sorted(self._refs_of_version)
            log.info("the learner begins again at version %d; forgotten: %s", version, forgotten)
        self._refs_of_version.clear()

    def latest(self) -> tuple[int, int]:
        """The newest version and its edition."""
        return self.latest_version(), self._edition

    def latest_version(self) -> int:
        """The newest version, `NOTHING_PUBLISHED` (−1) at first."""
        return max(self._refs_of_version, default=NOTHING_PUBLISHED)

    def weights(self, at_least: int) -> tuple[int, list[Any]]:
        """The newest version and its references.

        Raises:
            LookupError: the newest is older than `at_least`. Ask `latest_version` first.
        """
        newest = self.latest_version()
        if newest < max(at_least, 0):
            raise LookupError(f"policy version {at_least} is not published; newest is {newest}")
        return newest, list(self._refs_of_version[newest])
