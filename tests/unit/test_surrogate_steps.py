"""The surrogate's side of an alternation: what it is fitted to, when that ends, what brakes."""

from collections.abc import Iterable, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.group_batch import GroupBatch
from learner.journal import Journal
from learner.methods.alternation import Alternating
from learner.methods.surrogate_steps import SurrogateSteps
from learner.seat import Seat
from learner.settings.cycles import Alternation

FRESH = range(100, 110)


class Scripted:
    """A trainer that says how right it is, and remembers which groups it was given.

    Args:
        held_out: accuracies of the checks one after the other; the last goes on.
        fresh: accuracy on fresh samples.
    """

    moments = None
    num_features = 200

    def __init__(self, held_out: Sequence[float] = (0.5,), fresh: float = 1.0) -> None:
        self._held_out = list(held_out)
        self._fresh = fresh
        self.trained: list[list[int]] = []
        self.measured: list[list[int]] = []

    def standardise(self, rewards_GNK: Tensor) -> None: ...

    def step(self, batch: GroupBatch) -> dict[str, float]:
        self.trained.append(list(batch.tickets))
        return {"ranking_loss": 0.0}

    def features(self, batch: GroupBatch) -> Tensor:
        """Of both labels of a group the same, and of groups orthogonal."""
        return torch.eye(self.num_features)[list(batch.tickets)].repeat_interleave(2, dim=0)

    def accuracy(self, batch: GroupBatch) -> list[float]:
        self.measured.append(list(batch.tickets))
        return [self._held_out.pop(0) if len(self._held_out) > 1 else self._held_out[0]]

    def judge(self, batches: Iterable[GroupBatch]) -> dict[str, list[float]]:
        assert sum(len(batch.tickets) for batch in batches) == len(FRESH)  # a cycle's newest
        return {"accuracy": [self._fresh]}


class Groups:
    """Groups of two that come as soon as they are asked for."""

    moments = MappingProxyType[str, Any]({})
    oldest_kept = 0

    def collect(self, tickets: range, version: int, waited: object) -> None: ...

    def complete(self, tickets: range) -> list[int]:
        return list(tickets)

    def standardise(self, tickets: Sequence[int]) -> None: ...

    def rewards(self, tickets: Sequence[int]) -> Tensor:
        return torch.tensor([0.0, 1.0]).reshape(1, 2, 1).expand(len(tickets), 2, 1)

    def fetch(self, tickets: Sequence[int], *, to_learn: bool = True) -> GroupBatch:
        shape = (len(tickets), 2, 1, 1, 1, 1)
        return GroupBatch(tickets, ["a"] * len(tickets), torch.zeros(shape), self.rewards(tickets))

    def top_up(self) -> None: ...

    def affords(self, tickets: range) -> bool:
        return True


class Counted:
    """Policy steps that do nothing but count."""

    kind = ""
    steps = 0

    def prepare(self, groups: object, tickets: object) -> None: ...

    def begin(self, groups: object, tickets: object, version: int) -> None: ...

    def step(self) -> dict[str, float]:
        self.steps += 1
        return {}


def settings_of(**changes: Any) -> Alternation:
    fit = {"groups": 20, "max_steps": 40, "check_every_steps": 4, "patience": 3}
    return Alternation.model_validate(
        {
            "cycles": 3,
            "groups_per_cycle": len(FRESH),
            "policy_steps": 2,
            "surrogate_steps": 5,
            "surrogate": {"batch_groups": 8},
            "pretrain": {**fit, "target_accuracy": 0.8, "holdout_share": 0.25},
            **changes,
        }
    )


def surrogate_of(
    trainer: Scripted,
    settings: Alternation | None = None,
    *,
    climb: Any = None,
    seat: Seat = Seat(0),  # noqa: B008  frozen
) -> SurrogateSteps:
    parts: Any = trainer, None, climb
    known: Any = {"groups": Groups(), "labels": ["2step"]}
    return SurrogateSteps(settings or settings_of(), *parts, **known, journal=Journal(), seat=seat)


def fitted(*held_out: float) -> Scripted:
    trainer = Scripted(held_out)
    surrogate_of(trainer).fit(list(range(20)), lambda: None)
    return trainer


def test_no_group_that_the_fit_is_judged_by_is_learned_from() -> None:
    trainer = fitted(0.5)
    trained, measured = (
        {ticket for batch in batches for ticket in batch}
        for batches in (trainer.trained, trainer.measured)
    )
    assert measured == {0, 4, 8, 12, 16}
    assert trained == set(range(20)) - measured


@pytest.mark.parametrize(
    ("held_out", "checks"),
    [
        ((0.5, 0.6, 0.8), 3),  # the accuracy that is asked for
        ((0.5, 0.6, 0.6, 0.55, 0.6), 5),  # no better one in three checks
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75), 10),  # all steps
    ],
)
def test_a_fit_ends_once_it_is_right_or_no_longer_rises(
    held_out: tuple[float, ...], checks: int
) -> None:
    assert len(fitted(*held_out).trained) == checks * 4


@pytest.mark.parametrize(("num_fresh", "expected"), [(10, 4), (2, 2)])
def test_half_of_what_a_cycle_learns_from_is_fresh_if_there_is_so_much(
    num_fresh: int, expected: int
) -> None:
    trainer = Scripted()
    surrogate_of(trainer).adapt(0, range(20), FRESH[:num_fresh])
    counts = [sum(ticket in FRESH for ticket in batch) for batch in trainer.trained]
    assert (counts, {len(batch) for batch in trainer.trained}) == ([expected] * 5, {8})


def run(fresh: float) -> tuple[Counted, list[dict[str, Any]]]:
    """Two cycles with a brake at 0.6, the first of them before anything was judged."""
    settings, steps = settings_of(accuracy_brake=0.6), Counted()
    known: Any = {"groups": Groups(), "labels": ["2step"], "policy_engine": None}
    method = Alternating(
        settings,
        steps,  # pyright: ignore[reportArgumentType]
        **known,
        surrogate=surrogate_of(Scripted(fresh=fresh), settings),
        journal=Journal(),
        seat=Seat(0),
    )
    method.prepare(lambda: None)
    for cycle in range(2):
        method.improve(cycle)
        method.adapt(cycle, last=False)
    return steps, [row["values"] for row in method.journal.rows if row["phase"] == "policy"]


def test_a_surrogate_that_is_wrong_on_fresh_samples_is_not_climbed() -> None:
    steps, rows = run(fresh=0.5)
    assert [row["braked"] for row in rows] == [0.0, 1.0]
    assert steps.steps == 2


def test_a_surrogate_that_is_right_on_fresh_samples_is_climbed_on() -> None:
    steps, rows = run(fresh=0.7)
    assert [row["braked"] for row in rows] == [0.0, 0.0]
    assert steps.steps == 4


@pytest.mark.parametrize("ranks", [1, 2])
def test_ucb_counts_every_label_that_is_known_once(ranks: int) -> None:
    """A group's two labels are alike here, and each group has a direction of its own."""
    settings = settings_of(
        surrogate={"batch_groups": 8, "confidence": "ucb", "heads": 1, "pessimism": 0.0}
    )
    climbs = [SimpleNamespace(gram_FF=None) for _ in range(ranks)]
    surrogates = [
        surrogate_of(Scripted(), settings, climb=climb, seat=Seat(0, rank, ranks))
        for rank, climb in enumerate(climbs)
    ]

    def counted() -> list[float]:
        """Labels of each group. Alone, a rank's mean over the ranks is what it has itself."""
        mean_FF = torch.stack([climb.gram_FF for climb in climbs]).mean(dim=0)
        assert torch.equal(mean_FF, mean_FF.diag().diag())
        return mean_FF.diag().tolist()

    def labels_of(*tickets: int) -> list[float]:
        return [2.0 * (ticket in tickets) for ticket in range(Scripted.num_features)]

    for surrogate in surrogates:
        surrogate.fit(list(range(20)), lambda: None)
    assert counted() == labels_of(*range(20))
    for surrogate in surrogates:
        surrogate.adapt(0, range(4, 20), FRESH)
    assert counted() == labels_of(*range(4, 20), *FRESH)
