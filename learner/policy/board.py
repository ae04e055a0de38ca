"""Where the newest policy weights are found.

The board holds references to weights, never the weights: a publisher puts them into the object
store as `dict[str, np.ndarray]` (numpy is read from there without a copy, torch tensors are
not), and readers fetch them from there. It knows nothing of Ray; it is placed as a named actor.

A version names one set of weights for ever: versions only grow, and are never published twice
with different weights. A learner that resumes from an older checkpoint publishes under a
number above `latest_version()`. References die with the process that put the weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
"""The trained tensors of one version, by parameter name."""

NOTHING_PUBLISHED = -1


class PolicyBoard:
    """The last few published policy versions.

    The learner calls `publish` after an update; samplers ask `latest_version`, and fetch
    `weights` when it is newer than theirs; the evaluator asks for `exactly` one version.

    Args:
        keep: how many versions stay. An older one is freed once its last reader lets go.
    """

    def __init__(self, *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; the board must keep at least 1 version")
        self._keep = keep
        self._refs_of_version: dict[int, list[Any]] = {}

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
        if version <= self.latest_version():
            raise ValueError(
                f"version {version} is not above the newest, {self.latest_version()}; a version "
                f"names one set of weights, so publish these as {self.latest_version() + 1}"
            )
        self._refs_of_version[version] = list(refs)
        for old in sorted(self._refs_of_version)[: -self._keep]:
            del self._refs_of_version[old]

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

    def exactly(self, version: int) -> list[Any]:
        """The references of one version.

        Raises:
            LookupError: not published yet, or no longer kept.
        """
        if version not in self._refs_of_version:
            kept = ", ".join(map(str, sorted(self._refs_of_version))) or "none"
            raise LookupError(f"policy version {version} is not on the board; kept are {kept}")
        return list(self._refs_of_version[version])
