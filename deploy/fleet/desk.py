"""Where a run's fleets are asked for and told of: the named actor `controller` of its namespace.

    deploy.fleet ──ask──► FleetDesk ◄──wishes, show── Fleets, in the run's driver
                 ◄─page──

The desk keeps wishes and the newest page, and decides nothing. It lives as long as the driver:
while it is there, the run's name is taken.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

DESK = "controller"
ROLES = ("samplers", "rewards")
"""Of every run; a reward with a fleet of its own has the role `rewards.<its name>` beside them."""
MOST = 10_000
"""Largest fleet that can be asked for: a slip of the finger is no cluster."""


Wish: TypeAlias = int | tuple[int, int]
"""A number of actors, or the least and the most that `deploy.fleet.autoscale` may have."""


class FleetDesk:
    """Wishes in, pages out."""

    def __init__(self) -> None:
        self._wishes: dict[str, Wish] = {}
        self._page: dict[str, Any] = {}

    def ask(self, wishes: Mapping[str, Wish]) -> None:
        """So many actors by role, or bounds; a later wish replaces an earlier one.

        Raises:
            ValueError: a role or a number that there cannot be.
        """
        check_wishes(wishes)
        self._wishes.update(wishes)

    def wishes(self) -> dict[str, Wish]:
        """Those since the last call."""
        taken, self._wishes = self._wishes, {}
        return taken

    def show(self, page: Mapping[str, Any]) -> None:
        """How the fleets are now."""
        self._page = dict(page)

    def page(self) -> dict[str, Any]:
        """What was shown last; empty before that."""
        return self._page


def check_wishes(wishes: Mapping[str, Wish]) -> None:
    """Raises ValueError for a role or a number that there cannot be."""
    for role, wish in wishes.items():
        if role not in ROLES and not role.startswith("rewards."):
            raise ValueError(
                f"there is no fleet {role!r}; a run has {' and '.join(ROLES)}, and rewards.NAME of "
                "a reward with a fleet of its own"
            )
        least, most = (wish, wish) if isinstance(wish, int) else wish
        if not 1 <= least <= most <= MOST:
            given = f"{wish}" if isinstance(wish, int) else f"{least}-{most}"
            raise ValueError(
                f"{role}={given}: give 1 to {MOST:,}, the smaller number first; a run without "
                f"{role} would wait for them without end"
            )
