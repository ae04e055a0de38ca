"""The fleets of a run: looked after, scaled while it runs, and shown to whoever asks.

Every change is a decision with its reason: a line in the job's log, one in `fleet.jsonl` of the
run's folder, and the newest of them on the page of `deploy.fleet`. So is every actor that ended
without being asked to, and was replaced.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.fleet import Fleet
from actors.slot import Seen
from deploy.fleet.autoscale import Bounds, Reading, advise, measured_between
from deploy.run.best_effort import BestEffort
from deploy.run.files import DECISIONS_FILE
from deploy.run.whole_files import append_whole

log = logging.getLogger(__name__)
_SHOW_EVERY_S = 1.0
_RATE_WINDOW_S = 30.0
_STUCK_S = 120.0
"""An actor that has no place after so long is not waited for: the cluster may have none."""
_LONG = 10
"""Of a cycle that takes longer than so many times `measured_s`, no end is waited for."""
_DECISIONS_SHOWN = 10


class Fleets:
    """By role, in the driver of a run. Nothing here waits but `stop` and `stats`.

    Args:
        desk: handle of the `FleetDesk`.
        folder: the run's, for the decisions.
        bounds: of the roles that are scaled by what is measured; others are as they are told.
        useful: by role, as many as find something to do in the cycles that may be under way;
            the rule has no more of them.
        measured_s: least that is measured for one decision: of whole cycles, so that every role has
            had its turn. Of a part of a long one, and before the first, only more actors can come.
    """

    def __init__(
        self,
        fleets: Mapping[str, Fleet],
        *,
        desk: Any,
        folder: Path,
        bounds: Mapping[str, Bounds] | None = None,
        useful: Mapping[str, int] | None = None,
        measured_s: float = 30.0,
    ) -> None:
        self._fleets = dict(fleets)
        self._desk = desk
        self._file = folder / DECISIONS_FILE
        self._writing = BestEffort(f"new lines of {DECISIONS_FILE}")
        self._asked: Any = None
        self._shown_at = -_SHOW_EVERY_S
        self._decisions: deque[dict[str, Any]] = deque(maxlen=_DECISIONS_SHOWN)
        self._images: dict[str, deque[tuple[float, float]]] = {}
        self._bounds = dict(bounds or {})
        self._useful = dict(useful or {})
        self._measured_s = measured_s
        self._first: Reading | None = None
        self._first_begins_cycle = False
        self._stage: Any = None
        self._cycle: Any = None
        self._placing_since: dict[str, float] = {}

    def start(self, counts: Mapping[str, int]) -> None:
        """Creates the first actors."""
        for role, count in counts.items():
            self._fleets[role].start(count)

    def look(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Replaces what has ended, does what was asked for, and shows how it stands.

        Args:
            facts: of the run, for the page; `learner_waited_s` by role, `queue_share`, `stage`
                and `cycle` are read here.

        Returns:
            The page that is shown, about once a second; None in between.

        Raises:
            FleetGaveUpError: an actor cannot be kept alive.
        """
        for role, fleet in self._fleets.items():
            fleet.ensure_alive()
            for end in fleet.ends():
                self._keep(role, len(fleet), len(fleet), f"{end.actor} {end.why}; it is replaced")
        for role, wish in self._wishes().items():
            if role in self._fleets:
                self._heed(role, wish)
            else:
                log.warning("a wish for %s is left: the run has %s", role, ", ".join(self._fleets))
        now = time.monotonic()
        if now - self._shown_at < _SHOW_EVERY_S:
            return None
        self._shown_at = now
        seen = {role: fleet.glance() for role, fleet in self._fleets.items()}
        page = self._page(facts, seen, now)
        self._desk.show.remote(page)
        self._follow(facts, seen, now)
        return page

    def scale(self, role: str, count: int, why: str) -> None:
        """Has so many actors of a role from now on; those too many finish their batch first."""
        fleet, before = self._fleets[role], len(self._fleets[role])
        if count == before:
            return
        fleet.scale(count)
        self._first = None  # what was measured is of another fleet
        self._keep(role, before, count, why)
        log.info("%s: %d -> %d, %s", role, before, count, why)

    def lack_place(self, role: str) -> bool:
        """Whether a role has actors, and none has a place in the cluster; waits for nobody."""
        states = {seen.state for seen in self._fleets[role].glance().values()}
        return states == {"placing"}

    def stats(self) -> dict[str, dict[str, float | str]]:
        """Counters of all actors that answer in time."""
        return {
            name: each for fleet in self._fleets.values() for name, each in fleet.stats().items()
        }

    def _keep(self, role: str, before: int, count: int, why: str) -> None:
        """A line of `fleet.jsonl`; one that replaces an actor leaves the number as it is."""
        decision = {"time": time.time(), "role": role, "from": before, "to": count, "why": why}
        self._decisions.append(decision)
        with self._writing:
            append_whole(self._file, json.dumps(decision) + "\n")

    def _heed(self, role: str, wish: int | tuple[int, int]) -> None:
        """A number is had from now on; a pair of them bounds what the rule may do."""
        if isinstance(wish, int):
            self._bounds.pop(role, None)
            self.scale(role, wish, "asked for by deploy.fleet")
            return
        bounds = self._bounds[role] = Bounds(*wish)
        log.info("%s: from now on %d to %d, by what is measured", role, *wish)
        count = len(self._fleets[role])
        within = min(max(count, bounds.least), bounds.most)
        self.scale(role, within, "bounds given to deploy.fleet")

    def _follow(
        self, facts: Mapping[str, Any], seen: Mapping[str, Mapping[str, Seen]], now: float
    ) -> None:
        """Does what the rule advises, once there is a whole while to judge by."""
        stuck = self._stuck(seen, now)
        begins_cycle, self._cycle = facts.get("cycle") != self._cycle, facts.get("cycle")
        goes_on, self._stage = facts.get("stage") == self._stage, facts.get("stage")
        prepares = self._stage == "collecting"
        if not self._bounds or not goes_on or not (prepares or self._stage == "training"):
            self._first = None
            return
        reading = Reading(
            now,
            facts.get("learner_waited_s", {}),
            {role: _worked_s(workers) for role, workers in seen.items()},
            float(facts.get("queue_share", 0.0)),
        )
        there = {role: len(fleet) - len(stuck[role]) for role, fleet in self._fleets.items()}
        if any(len(reading.worked_s[role]) != count for role, count in there.items()):
            # While a new actor finds its place or loads its models, nothing can be judged.
            self._first = None
            return
        bounds = {role: self._within(role, asked, prepares) for role, asked in self._bounds.items()}
        for role, allowed in bounds.items():
            if len(self._fleets[role]) > allowed.most:
                self.scale(role, allowed.most, "a cycle has no work for more")
                return
        first = self._first
        if first is None:
            self._first, self._first_begins_cycle = reading, begins_cycle
            return
        took_s = now - first.at_s
        is_whole = begins_cycle and self._first_begins_cycle and took_s >= self._measured_s
        is_part = took_s >= self._measured_s * (1 if prepares else _LONG)
        if is_whole or (begins_cycle and not self._first_begins_cycle):
            self._first, self._first_begins_cycle = reading, True
        elif is_part and not self._first_begins_cycle:
            self._first = reading
        if not is_whole and not is_part:
            return
        measured = measured_between(first, reading)
        allowed = {
            role: Bounds(
                each.least if is_whole else max(each.least, there[role]),
                # More of those that find no place would not find one either.
                min(each.most, there[role]) if stuck[role] else each.most,
            )
            for role, each in bounds.items()
        }
        if measured is not None and (advice := advise(measured, there, allowed)):
            self.scale(advice.role, advice.count, advice.why)

    def _within(self, role: str, asked: Bounds, prepares: bool) -> Bounds:
        """What the rule may have: what was asked for, as far as there is work for it."""
        useful = asked.most if prepares else self._useful.get(role, asked.most)
        return Bounds(asked.least, max(asked.least, min(asked.most, useful)))

    def _stuck(self, seen: Mapping[str, Mapping[str, Seen]], now: float) -> dict[str, list[str]]:
        """By role, who has looked for a place for long."""
        placing = {n for each in seen.values() for n, it in each.items() if it.state == "placing"}
        self._placing_since = {name: self._placing_since.get(name, now) for name in placing}
        return {
            role: [n for n in workers if now - self._placing_since.get(n, now) > _STUCK_S]
            for role, workers in seen.items()
        }

    def _wishes(self) -> dict[str, int | tuple[int, int]]:
        """Those that have come since the last look."""
        if self._asked is None:
            self._asked = self._desk.wishes.remote()
        if not ray.wait([self._asked], timeout=0)[0]:
            return {}
        asked, self._asked = self._asked, None
        try:
            return ray.get(asked)
        except RayError as error:
            log.warning("the desk of deploy.fleet does not answer: %s", error)
            return {}

    def _page(
        self, facts: Mapping[str, Any], seen: Mapping[str, Mapping[str, Seen]], now: float
    ) -> dict[str, Any]:
        there = {name for workers in seen.values() for name in workers}
        self._images = {name: known for name, known in self._images.items() if name in there}
        return {
            **facts,
            "fleets": {
                role: {
                    "wanted": len(self._fleets[role]),
                    "bounds": vars(self._bounds[role]) if role in self._bounds else None,
                    "workers": {name: self._row(name, it, now) for name, it in workers.items()},
                }
                for role, workers in seen.items()
            },
            "decisions": list(self._decisions),
        }

    def _row(self, name: str, seen: Seen, now: float) -> dict[str, Any]:
        return {"state": seen.state, "rate": self._rate(name, seen, now), **seen.stats}

    def _rate(self, name: str, seen: Seen, now: float) -> float | None:
        """Images a second over the last while; None before there are two counts."""
        images = seen.stats.get("images")
        if not isinstance(images, int | float):
            self._images.pop(name, None)
            return None
        known = self._images.setdefault(name, deque())
        if known and images < known[-1][1]:  # a new life of that actor counts from 0
            known.clear()
        known.append((now, float(images)))
        while now - known[0][0] > _RATE_WINDOW_S:
            known.popleft()
        (start, first), (end, last) = known[0], known[-1]
        return (last - first) / (end - start) if end > start else None


def _worked_s(workers: Mapping[str, Seen]) -> dict[str, float]:
    """Seconds of work of those that are at work: of every stage but waiting."""
    return {
        name: sum(
            float(value)
            for stage, value in seen.stats.items()
            if stage.endswith("_s") and stage != "wait_s"
        )
        for name, seen in workers.items()
        if seen.state == "working"
    }
