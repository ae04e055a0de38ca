"""Where a run's fleets are asked for and told of: the named actor `controller` of its namespace.

    deploy.fleet ──ask──► FleetDesk ◄──wishes, show── Fleets, in the run's driver
                 ◄─page──

The desk keeps wishes and the newest page, and decides nothing. It lives as long as the driver:
while it is there, the run's name is taken.
"""

from collections.abc import Mapping
from typing import Any

DESK = "controller"
ROLES = ("samplers", "rewards")
MOST = 10_000
"""Largest fleet that can be asked for: a slip of the finger is no cluster."""


class FleetDesk:
    """Wishes in, pages out."""

    def __init__(self) -> None:
        self._wishes: dict[str, int] = {}
        self._page: dict[str, Any] = {}

    def ask(self, counts: Mapping[str, int]) -> None:
        """Wishes for so many actors by role; a later wish replaces an earlier one.

        Raises:
            ValueError: a role or a count that there cannot be.
        """
        check_counts(counts)
        self._wishes.update(counts)

    def wishes(self) -> dict[str, int]:
        """Those since the last call."""
        taken, self._wishes = self._wishes, {}
        return taken

    def show(self, page: Mapping[str, Any]) -> None:
        """How the fleets are now."""
        self._page = dict(page)

    def page(self) -> dict[str, Any]:
        """What was shown last; empty before that."""
        return self._page


def check_counts(counts: Mapping[str, int]) -> None:
    """Raises ValueError for a role or a count that there cannot be."""
    for role, count in counts.items():
        if role not in ROLES:
            raise ValueError(f"there is no fleet {role!r}; a run has {' and '.join(ROLES)}")
        if not 1 <= count <= MOST:
            raise ValueError(
                f"{role}={count}: give 1 to {MOST:,}; a run without {role} would wait for them "
                "without end"
            )
