"""A sampler's steps as the learner reads them again: its states, its noise, its next states."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.rollout import FewStepPolicy, Group, ManyStepPolicy, to_records
from actors.sampling import kept_states
from buffer.records import IndexEntry, Record
from buffer.replay import Replay
from learner.diffusion.chain import Chain
from learner.diffusion.few_steps import ConsistencyChain, FewSteps, few_step_chain
from learner.diffusion.noise import INITIAL_NOISE, member_noise
from learner.diffusion.schedule import NoiseSchedule
from learner.diffusion.strata import Strata
from learner.settings.on_policy import Ppo
from learner.transitions import (
    KeptSteps,
    Renoised,
    Steps,
    Transitions,
    read_transitions,
    shuffled_batches,
    trained_strata,
)

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
SHAPE = (4, 4, 4)
GROUPS = [Group(0, "a cat", 11), Group(1, "a dog", 2**63 + 5)]
MEMBERS = 2


def network(x: Tensor, t_B: Tensor, prompts: Any, guidance: Any) -> Tensor:
    """A noise model that depends on both of its inputs."""
    return 0.5 * x.tanh() + (t_B / 2000).reshape(-1, 1, 1, 1).to(x)


def parts(**changes: Any) -> dict[str, Any]:
    return {
        "network": network,
        "encode": lambda prompts: prompts,
        "take": lambda weights: None,
        "schedule": SCHEDULE,
        "latent_shape": SHAPE,
        "group_size": MEMBERS,
        "guidance_scale": 1.0,
        **changes,
    }


class Shelf:
    """The replay's reads; `gone` are records that were evicted."""

    def __init__(self, records: Sequence[Record], gone: Sequence[str] = ()) -> None:
        self._records = {record.record_id: record for record in records}
        self._gone = gone

    def read_latents(self, wanted: Sequence[tuple[str, int]]) -> list[np.ndarray | None]:
        return [
            None if name in self._gone else self._records[name].latents[slot]
            for name, slot in wanted
        ]


def sampled(policy: FewStepPolicy | ManyStepPolicy) -> list[Record]:
    rollouts = policy.sample(GROUPS)
    return [
        record
        for group, rollout in zip(GROUPS, rollouts, strict=True)
        for record in to_records(group, rollout, 0)[0]
    ]


def entries_of(records: Sequence[Record]) -> list[IndexEntry]:
    names = ("record_id", "ticket", "member", "prompt", "policy_version", "seed", "steps", "scored")
    return [
        IndexEntry(
            position=f"{i}-0",
            rewards={"r": (0.0,) * len(record.scored)},
            **{name: getattr(record, name) for name in names},
        )
        for i, record in enumerate(records)
    ]


def read(
    steps: Steps, records: Sequence[Record], rows: Sequence[int], gone: Sequence[str] = ()
) -> Transitions:
    advantages = [float(i) for i in range(len(records))]
    shelf = cast("Replay", Shelf(records, gone))
    return read_transitions(shelf, steps, entries_of(records), advantages, rows)


def after(taken: Transitions, moments: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    """The states that steps led to, from the states, the noise and the policy alone."""
    chain_times = moments.__self__.times(taken.step_B)[0]  # pyright: ignore
    eps = network(taken.latents_BCHW, chain_times, None, None)
    mean, std = moments(taken.latents_BCHW, eps, taken.step_B)
    return mean + std * taken.noise_BCHW


def test_every_step_of_a_chain_leads_where_the_sampler_went() -> None:
    chain = Chain(SCHEDULE, 50)
    strata = trained_strata(Ppo(), 50)
    policy = ManyStepPolicy(**parts(num_steps=50), keep=lambda seed: kept_states(seed, strata))
    records = sampled(policy)
    assert records[0].steps == tuple(range(51))
    taken = read(KeptSteps(strata), records, range(50 * len(records)))
    there = torch.stack(
        [torch.from_numpy(x.astype(np.float32)) for r in records for x in r.latents[1:]]
    )
    # Both states are kept in half precision.
    torch.testing.assert_close(after(taken, chain.moments), there, rtol=2e-3, atol=4e-3)
    assert taken.step_B.tolist() == list(range(50)) * len(records)
    assert taken.prompts == [r.prompt for r in records for _ in range(50)]
    assert taken.advantage_B.tolist() == [float(i) for i in range(4) for _ in range(50)]


@pytest.mark.parametrize(
    ("kind", "shared"), [("consistency", False), ("consistency", True), ("ancestral", False)]
)
def test_every_call_of_few_steps_leads_where_the_sampler_went(kind: FewSteps, shared: bool) -> None:
    chain = few_step_chain(kind, SCHEDULE, 4)
    policy = FewStepPolicy(
        **parts(num_steps=4, shared_initial_noise=shared), num_scored=1, kind=kind
    )
    records = sampled(policy)
    steps = Renoised(chain, SHAPE, 3, shared_initial_noise=shared)
    taken = read(steps, records, range(3 * len(records)))
    by_call = taken.latents_BCHW.unflatten(0, (len(records), 3))
    went = after(taken, chain.moments).unflatten(0, (len(records), 3))
    torch.testing.assert_close(went[:, :-1], by_call[:, 1:], rtol=2e-3, atol=4e-3)
    initial = [
        member_noise(r.seed, 0 if shared else r.member, SHAPE, INITIAL_NOISE) for r in records
    ]
    assert torch.equal(by_call[:, 0], chain.initial(torch.stack(initial)))


def test_the_last_call_of_few_steps_has_noise_that_no_picture_has() -> None:
    chain = ConsistencyChain(SCHEDULE, 2)
    records = sampled(FewStepPolicy(**parts(num_steps=2)))
    taken = read(Renoised(chain, SHAPE, 2, shared_initial_noise=False), records, [1])
    t_B, next_t_B = chain.times(taken.step_B)
    assert t_B.tolist() == next_t_B.tolist()
    drawn = [member_noise(records[0].seed, 0, SHAPE, INITIAL_NOISE + i) for i in (0, 1)]
    assert not any(torch.equal(taken.noise_BCHW[0], noise) for noise in drawn)


def test_of_a_spread_of_states_each_weighs_what_it_stands_for() -> None:
    steps = KeptSteps(Strata.spread(50, 4))
    assert sum(steps.weights) == pytest.approx(4)
    assert KeptSteps(Strata.spread(50, 5)).weights == pytest.approx((1.0,) * 5)


def test_steps_that_are_gone_are_replaced_by_others() -> None:
    strata = Strata.spread(50, 2)
    records = sampled(
        ManyStepPolicy(**parts(num_steps=50), keep=lambda seed: kept_states(seed, strata))
    )
    taken = read(KeptSteps(strata), records, [0, 1, 2, 3], gone=[records[0].record_id])
    assert taken.advantage_B.tolist() == [1.0] * 4
    with pytest.raises(LookupError, match="capacity is too small"):
        read(KeptSteps(strata), records, [0, 1], gone=[records[0].record_id])


def test_every_row_comes_once_before_any_comes_again() -> None:
    rows_UB = shuffled_batches(12, 5, 4, np.random.default_rng(1))
    assert rows_UB.shape == (5, 4)
    assert sorted(rows_UB[:3].flatten().tolist()) == list(range(12))
    assert len(set(rows_UB[3:].flatten().tolist())) == 8


def test_no_rows_make_no_batches() -> None:
    with pytest.raises(LookupError, match="no step to train on"):
        shuffled_batches(0, 1, 4, np.random.default_rng(1))
