"""How large a run's fleets should be, from what was measured over the last while: a pure rule.

The learner is to be kept busy and the queue for rewards bounded, with as few actors as do that:

    rewards lag, a reward's own fleet busy       more of that fleet
    rewards lag, reward servers busy             more reward servers
    learner waits, and samplers are what for     more samplers: n / (1 − its waiting share)
    learner does not wait, samplers mostly idle  fewer samplers: their work / 0.8, at most by half
    reward servers mostly idle, no queue         fewer of them likewise; so of a reward's own fleet

Rewards lag where the queue for them is half full, or the learner waits for nothing but them. Reward
servers that wait for a reward's own fleet count as busy. Shares are of wall time, in [0, 1].
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_FULL = 0.5
_BUSY = 0.8
_LEARNER_WAITS = 0.10
_LEARNER_WORKS = 0.05
_IDLE = 0.5


@dataclass(frozen=True)
class Bounds:
    """A fleet may have from `least` to `most` actors."""

    least: int
    most: int


@dataclass(frozen=True)
class Reading:
    """Sums since the start of the run, at one moment; what has ended counts no more.

    Args:
        at_s: of any clock.
        waited_s: seconds that the learner waited for scored samples, by the role that was to make
            them: samplers or rewards.
        worked_s: seconds of work by actor, of every actor of a role that is at work.
        queue: records that wait for a reward, of those that may.
    """

    at_s: float
    waited_s: Mapping[str, float]
    worked_s: dict[str, dict[str, float]]
    queue: float


@dataclass(frozen=True)
class Measured:
    """Shares of the last while.

    Args:
        waits_for_samplers: share of its time that the learner waited for samplers.
        waits_for_rewards: and for rewards alone.
        samplers_work: share that samplers sampled, on average.
        rewards_work: share that reward servers decoded and scored.
        queue: records that wait for a reward, of those that may.
        pools_work: by role, share that members of a reward's own fleet scored.
    """

    waits_for_samplers: float
    samplers_work: float
    rewards_work: float
    queue: float
    waits_for_rewards: float = 0.0
    pools_work: Mapping[str, float] = field(default_factory=dict)

    @property
    def learner_waits(self) -> float:
        """Share of its time that the learner waited for scored samples."""
        return self.waits_for_samplers + self.waits_for_rewards


@dataclass(frozen=True)
class Advice:
    """So many actors of a role, and why."""

    role: str
    count: int
    why: str


def measured_between(first: Reading, last: Reading) -> Measured | None:
    """Shares of the time between two readings; None where a role has nobody who was in both."""
    took_s = last.at_s - first.at_s
    if took_s <= 0:
        return None
    works: dict[str, float] = {}
    for role, workers in last.worked_s.items():
        known = first.worked_s.get(role, {})
        shares = [(workers[name] - known[name]) / took_s for name in workers if name in known]
        if not shares:
            return None
        works[role] = _share(sum(shares) / len(shares))
    waits = {
        role: _share((seconds - first.waited_s.get(role, 0.0)) / took_s)
        for role, seconds in last.waited_s.items()
    }
    return Measured(
        waits_for_samplers=waits.get("samplers", 0.0),
        waits_for_rewards=waits.get("rewards", 0.0),
        samplers_work=works.pop("samplers"),
        rewards_work=works.pop("rewards"),
        queue=(first.queue + last.queue) / 2,
        pools_work=works,
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def advise(measured: Measured, counts: dict[str, int], bounds: dict[str, Bounds]) -> Advice | None:
    """The change that is due, if any; one at a time, so that its effect is seen before the next.

    Args:
        bounds: of the roles that are left to this rule; others are as they are.
    """
    for advice in (
        _more_rewards(measured, counts),
        _more_samplers(measured, counts),
        _fewer_samplers(measured, counts),
        *_fewer_rewards(measured, counts),
    ):
        if advice is None or advice.role not in bounds:
            continue
        allowed = bounds[advice.role]
        count = min(max(advice.count, allowed.least), allowed.most)
        if count != counts[advice.role]:
            return Advice(advice.role, count, advice.why)
    return None


def _more_rewards(measured: Measured, counts: dict[str, int]) -> Advice | None:
    if measured.queue < _FULL and measured.waits_for_rewards <= _LEARNER_WAITS:
        return None
    # Who is handed pictures by reward servers holds them up: more servers would not help.
    works, role = max(
        ((work, role) for role, work in measured.pools_work.items()), default=(0.0, "")
    )
    if works < _BUSY * measured.rewards_work or not role:
        works, role = measured.rewards_work, "rewards"
    # Where the learner waits, they are what it waits for as long as they are busy meanwhile.
    if works < (_BUSY if measured.queue >= _FULL else _BUSY * measured.waits_for_rewards):
        return None
    return Advice(
        role,
        counts[role] + max(1, counts[role] // 4),
        f"the queue for rewards is {_percent(measured.queue)} full, the learner waits for them "
        f"{_percent(measured.waits_for_rewards)} of the time and {_named(role)} work "
        f"{_percent(works)}",
    )


def _more_samplers(measured: Measured, counts: dict[str, int]) -> Advice | None:
    waits = measured.waits_for_samplers
    # What the learner waits for is sampling as long as samplers are busy meanwhile.
    if waits <= _LEARNER_WAITS or measured.samplers_work < _BUSY * waits or measured.queue >= _FULL:
        return None
    count = counts["samplers"]
    return Advice(
        "samplers",
        min(2 * count, math.ceil(count / (1 - min(waits, 0.9)))),
        f"the learner waits for them {_percent(waits)} of the time and samplers work "
        f"{_percent(measured.samplers_work)}",
    )


def _fewer_samplers(measured: Measured, counts: dict[str, int]) -> Advice | None:
    idle = 1 - measured.samplers_work
    if measured.learner_waits >= _LEARNER_WORKS or idle <= _IDLE:
        return None
    return Advice(
        "samplers",
        _fewer(counts["samplers"], measured.samplers_work),
        f"samplers are idle {_percent(idle)} of the time and the learner waits "
        f"{_percent(measured.learner_waits)}",
    )


def _fewer_rewards(measured: Measured, counts: dict[str, int]) -> Iterator[Advice]:
    for role, works in {"rewards": measured.rewards_work, **measured.pools_work}.items():
        lag = measured.queue > 0.1 or measured.waits_for_rewards >= _LEARNER_WORKS
        if not lag and 1 - works > _IDLE:
            yield Advice(
                role,
                _fewer(counts[role], works),
                f"{_named(role)} are idle {_percent(1 - works)} of the time and the queue is "
                f"{_percent(measured.queue)} full",
            )


def _fewer(count: int, works: float) -> int:
    """Half of them at least: work that comes all at once needs more than its share of the time."""
    return max(1, math.ceil(count / 2), math.ceil(count * works / _BUSY))


def _named(role: str) -> str:
    return "reward servers" if role == "rewards" else f"those of {role}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
