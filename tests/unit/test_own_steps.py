"""A policy's own steps from its samplers to its update: asked alike, and the last tells nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.rollout import FewStepPolicy, ManyStepPolicy
from actors.sampling import kept_states
from learner.diffusion.chain import Chain
from learner.diffusion.few_steps import ConsistencyChain
from learner.methods.on_policy_build import ask_of
from learner.methods.ppo_policy import PpoPolicy
from learner.methods.pso_policy import PsoPolicy
from learner.settings.model import Model
from learner.settings.on_policy import Ppo, Pso
from learner.transitions import KeptSteps, Renoised, Transitions, trained_strata
from tests.unit.learner_fakes import HandEngine, adapted, base, encode
from tests.unit.test_transitions import SCHEDULE, parts, read, sampled

SHAPE = (4, 8, 8)
SCALE = 3.0
GUIDANCE_DIM = 16


def many_steps() -> tuple[Transitions, Tensor, Chain, Any, int | None]:
    """Steps, the states that they led to, their chain and network, and its guidance's width."""
    network, strata = adapted(base()), trained_strata(Ppo(), 10)
    told = parts(
        network=network, encode=encode, latent_shape=SHAPE, guidance_scale=SCALE, num_steps=10
    )
    records = sampled(ManyStepPolicy(**told, keep=lambda seed: kept_states(seed, strata)))
    taken = read(KeptSteps(strata), records, range(10 * len(records)))
    there = torch.stack([torch.tensor(x).float() for r in records for x in r.latents[1:]])
    return taken, there, Chain(SCHEDULE, 10), network, None


def few_steps() -> tuple[Transitions, Tensor, ConsistencyChain, Any, int | None]:
    """Likewise; of the first three of four calls."""
    network = adapted(base(time_cond_proj_dim=GUIDANCE_DIM))
    told = parts(
        network=network, encode=encode, latent_shape=SHAPE, guidance_scale=SCALE, num_steps=4
    )
    records = sampled(FewStepPolicy(**told, guidance_dim=GUIDANCE_DIM))
    chain = ConsistencyChain(SCHEDULE, 4)
    calls = Renoised(chain, SHAPE, 4, shared_initial_noise=False)
    every = read(calls, records, range(4 * len(records)))
    before = [row for row in range(len(every)) if row % 4 < 3]
    after = every.latents_BCHW[[row + 1 for row in before]]
    return every.rows(before), after, chain, network, GUIDANCE_DIM


@pytest.mark.parametrize("make", [many_steps, few_steps])
def test_the_learner_asks_a_policy_as_its_samplers_did(make: Any) -> None:
    taken, there, chain, network, dim = make()

    def led_to(scale: float) -> Tensor:
        model = Model(path="p", num_steps=50 if dim is None else 4, guidance_scale=scale)
        engine: Any = HandEngine(network)
        policy = PpoPolicy(Ppo(), engine, chain, encode, ask_of(model, dim), None)
        eps = policy.remembered(taken, rows_at_once=4).old_eps_BCHW
        assert eps is not None
        mean, std = chain.moments(taken.latents_BCHW, eps, taken.step_B)
        return mean + std * taken.noise_BCHW

    # Both states are kept in half precision.
    torch.testing.assert_close(led_to(SCALE), there, rtol=2e-3, atol=1e-2)
    assert (led_to(1.5) - there).abs().max() > 5e-2


class OneWeightACall(nn.Module):
    """A noise model with weights of its own for the first call and for those after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.later = (nn.Parameter(torch.full((), 0.5)) for _ in range(2))

    def forward(self, x: Tensor, t_B: Tensor, *_: object) -> Tensor:
        is_first = (t_B == 999).reshape(-1, 1, 1, 1)
        return torch.where(is_first, self.first, self.later) * x.tanh()


@pytest.mark.parametrize(("kind", "last_call"), [("ppo", False), ("ppo", True), ("pso", False)])
def test_the_weights_of_the_last_of_two_calls_get_no_policy_gradient(
    kind: str, last_call: bool
) -> None:
    """Unless an action is made up for it."""
    settings: Any = Ppo(last_call=last_call) if kind == "ppo" else Pso()
    chain, network, reference = ConsistencyChain(SCHEDULE, 2), OneWeightACall(), OneWeightACall()
    records = sampled(FewStepPolicy(**parts(network=network, num_steps=2)))
    slots = settings.steps_trained(2)
    steps = Renoised(chain, (4, 4, 4), slots, shared_initial_noise=False)
    taken = read(steps, records, range(slots * len(records)))
    engine: Any = HandEngine(network)
    ask = ask_of(Model(path="p", num_steps=2, guidance_scale=1.0), None)
    policy: Any = (
        PpoPolicy(settings, engine, chain, encode, ask, None)
        if kind == "ppo"
        else PsoPolicy(settings, engine, chain, encode, ask, reference)
    )
    policy.step(policy.remembered(taken, rows_at_once=4))
    assert network.first.grad is not None
    assert network.first.grad != 0
    later = network.later.grad
    assert (later is not None and bool(later != 0)) == last_call
