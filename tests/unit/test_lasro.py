"""LaSRO's squashed reward, and where the gradient of a policy step goes.

The engine is made by hand; surrogates, teacher and, where it matters, the policy are real and
tiny.
"""

import dataclasses
import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from deploy.shapes.models import new_unet
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.schedule import NoiseSchedule
from learner.exploration import Climb
from learner.group_batch import GroupBatch
from learner.methods.distillation import distillation_error, distilled
from learner.methods.lasro import RewardScale, anchor_weight, gradient, reward_loss, squash
from learner.methods.lasro_policy import AnchorData, LasroPolicy, PolicyState
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.trainable import make_trainable
from learner.seat import Seat
from learner.settings.lasro import Lasro
from learner.settings.model import Model
from learner.surrogate import new_surrogate
from learner.surrogate_training import RewardMoments, SurrogateTrainer
from tests.unit.learner_fakes import HandEngine, encode

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
PROMPTS = ["a red circle", "a blue star", "two hearts"]
MODEL = Model(path="unused", lora_rank=2, lora_alpha=2, guidance_scale=3.0)
NO_ANCHOR = {"data": "none"}


class CountingUNet(nn.Module):
    """eps = gain_k x in its k-th call, so that the gains' gradients tell the calls apart."""

    config: ClassVar[dict[str, Any]] = {"time_cond_proj_dim": None}

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.tensor([0.3, 0.6]))
        self.calls = 0

    def forward(self, x: Tensor, t_B: Tensor, **_: Any) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(sample=self.gains[self.calls - 1] * x)


def counting() -> tuple[HandEngine, CountingUNet]:
    unet = CountingUNet()
    return HandEngine(Denoiser(unet)), unet  # pyright: ignore[reportArgumentType]


def fitted_surrogate(heads: int = 1) -> nn.Module:
    """A surrogate whose scores are not 0, as they are before it is trained."""
    surrogate = new_surrogate("conv", new_unet(), num_steps=2, heads=heads, timestep=0, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        nn.init.normal_(surrogate.head.out.weight)  # pyright: ignore
    return surrogate


def adapted_unet() -> Denoiser:
    """A policy with an adapter that does something already, so that all of it has a gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = new_unet(time_cond_proj_dim=8)
        for parameter in make_trainable(unet, "lora", rank=2, alpha=2, targets="attention"):
            nn.init.normal_(parameter, std=0.1)
    return Denoiser(unet)


def teacher() -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Denoiser(new_unet().requires_grad_(False))


def anchor_data() -> AnchorData:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return AnchorData(latents, ["x", "y", "z", "w"])


def policy_of(
    engine: HandEngine,
    settings: dict[str, Any],
    *,
    surrogate: nn.Module | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> LasroPolicy:
    chosen = Lasro.model_validate({"policy_batch": 4, "anchor": NO_ANCHOR, **settings})
    return LasroPolicy(
        chosen,
        MODEL,
        engine,  # pyright: ignore[reportArgumentType]
        ConsistencyChain(SCHEDULE, MODEL.num_steps),
        (4, 8, 8),
        encode,
        teacher() if "anchor" in settings else None,
        Climb(surrogate or fitted_surrogate(), chosen.surrogate),
        Seat(7, rank, ranks),
    )


def gain_gradients(**settings: Any) -> list[float]:
    """Gradient of each call's gain after one policy step."""
    engine, unet = counting()
    policy_of(engine, settings).step(PROMPTS, None)
    assert unet.gains.grad is not None
    return unet.gains.grad.tolist()


def adapter_gradient(
    settings: dict[str, Any], rank: int = 0, ranks: int = 1, scale: RewardScale | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Gradient of a real adapter after one policy step, as one vector, and the step's metrics."""
    module = adapted_unet()
    policy = policy_of(HandEngine(module), settings, rank=rank, ranks=ranks)
    if scale is not None:
        policy.state = PolicyState(scales=(scale, scale))
    metrics = policy.step(PROMPTS, anchor_data())
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(gradients), metrics


# S[R]


def test_the_first_batch_sets_mean_and_largest_deviation() -> None:
    assert RewardScale().seen(torch.tensor([1.0, 3.0])) == RewardScale(2.0, 1.0)


def test_a_later_batch_moves_the_mean_by_a_twentieth() -> None:
    scale = RewardScale(2.0, 1.0).seen(torch.tensor([5.0, 7.0]))
    assert (scale.mean, scale.largest) == pytest.approx((2.2, 4.8))


def test_an_outlier_is_forgotten_by_a_hundredth_a_batch() -> None:
    assert RewardScale(0.0, 50.0).seen(torch.zeros(2)).largest == pytest.approx(49.5)


def test_squashed_rewards_are_deviations_over_the_largest() -> None:
    squashed, _ = squash(torch.tensor([1.0, 2.0, 4.0]), RewardScale(2.0, 4.0))
    assert squashed.tolist() == pytest.approx([-0.25, 0.0, 0.5])


def test_rewards_beyond_the_largest_are_clipped_and_counted() -> None:
    squashed, clipped = squash(torch.tensor([-9.0, 0.0, 0.5, 9.0]), RewardScale(0.0, 1.0))
    assert (squashed.tolist(), clipped) == (pytest.approx([-1, 0, 0.5, 1], abs=1e-5), 0.5)


def test_a_batch_is_clipped_by_what_was_seen_before_it() -> None:
    first = RewardScale().seen(torch.tensor([0.0, 1.0]))
    assert RewardScale().before(first) is first
    rewards_B = torch.tensor([0.0, 9.0])
    assert squash(rewards_B, first.before(first.seen(rewards_B)))[1] == 0.5


def test_a_clipped_row_gets_no_gradient() -> None:
    rewards_B = torch.tensor([0.5, 9.0], requires_grad=True)
    squash(rewards_B, RewardScale(0.0, 1.0))[0].sum().backward()
    assert rewards_B.grad is not None
    assert rewards_B.grad.tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_mean_and_largest_take_no_gradient() -> None:
    rewards_B = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    scale = RewardScale().seen(rewards_B)
    squash(rewards_B, scale)[0].sum().backward()
    assert rewards_B.grad is not None
    assert rewards_B.grad.tolist() == pytest.approx([1 / scale.largest] * 3, rel=1e-5)


def test_equal_rewards_stay_finite() -> None:
    rewards_B = torch.full((3,), 0.7)
    assert squash(rewards_B, RewardScale().seen(rewards_B))[0].isfinite().all()


def test_the_loss_falls_as_a_reward_rises() -> None:
    squashed = [torch.tensor([0.5, 1.0]), torch.tensor([0.2, 0.2])]
    assert float(reward_loss(squashed, (1.0, 2.0))) == pytest.approx(-0.75 - 0.4)


# The anchor's weight


def test_the_anchor_is_weighted_to_the_asked_share_of_the_rewards_gradient() -> None:
    assert anchor_weight(anchor_norm=2.0, reward_norm=5.0, ratio=0.4) == 1.0


def test_a_gradient_is_zero_where_the_loss_does_not_reach() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    parts = gradient((3 * used).sum(), [used, unused])
    assert [part.tolist() for part in parts] == [[3.0, 3.0], [0.0]]


def test_in_a_step_the_gradient_norms_have_the_asked_ratio() -> None:
    reward_only, _ = adapter_gradient({"anchor": {"ratio": None, "weight": 0.0, "batch": 2}})
    both, _ = adapter_gradient({"anchor": {"ratio": None, "weight": 1.0, "batch": 2}})
    _, metrics = adapter_gradient({"anchor": {"ratio": 0.4, "batch": 2}})
    of_anchor = metrics["anchor_weight"] * (both - reward_only).norm()
    assert float(of_anchor / reward_only.norm()) == pytest.approx(0.4, rel=1e-3)


def gradient_of(network: Denoiser, loss: Tensor) -> Tensor:
    trained = [p for p in network.parameters() if p.requires_grad]
    return torch.cat([part.flatten() for part in gradient(loss, trained)])


def first_draw() -> tuple[list[str], Tensor, torch.Generator]:
    """Prompts and noise of a first step, and what its anchor is drawn from after them."""
    generator = step_generator(7, 0)
    prompts = [PROMPTS[i] for i in torch.randint(3, (4,), generator=generator)]
    return prompts, torch.randn(2, 4, 4, 8, 8, generator=generator), generator


def test_an_anchor_adds_the_gradient_that_leads_down_its_own_loss() -> None:
    reward_only, _ = adapter_gradient({"anchor": {"ratio": None, "weight": 0.0, "batch": 2}})
    both, _ = adapter_gradient({"anchor": {"ratio": None, "weight": 1.0, "batch": 2}})
    network, data, (_, _, generator) = adapted_unet(), anchor_data(), first_draw()
    rows = torch.randint(4, (2,), generator=generator)
    text, empty = encode([data.prompts[i] for i in rows]), encode([""] * 2)
    index_B = torch.randint(50, (2,), generator=generator)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    clean = data.latents_NCHW[rows]
    ends = distilled(teacher(), clean, noise, index_B, text, empty, SCHEDULE, guidance_scale=3.0)
    told = guidance_rows(3.0, 8, 2, "cpu")
    eps = network(ends.x_start, ends.start_B, text, told)
    loss = distillation_error(eps, network, ends, told, SCHEDULE).mean()
    expected = gradient_of(network, loss)
    assert float((both - reward_only) @ expected / expected.norm() ** 2) == pytest.approx(1, 1e-2)


def test_a_step_leads_up_the_surrogates_score() -> None:
    settings = {"reward_steps": "last", "anchor": {"ratio": None, "weight": 0.0, "batch": 2}}
    reward_only, _ = adapter_gradient(settings)
    network, chain, (prompts, noise, _) = (
        adapted_unet(),
        ConsistencyChain(SCHEDULE, 2),
        first_draw(),
    )
    text, told, x = encode(prompts), guidance_rows(3.0, 8, 4, "cpu"), chain.initial(noise[0])
    for k, t in enumerate(chain.timesteps):
        t_B = torch.full((4,), t)
        clean = chain.clean(x, network(x, t_B, text, told), t_B)
        x = chain.noised(x, clean.detach(), 0, noise[1]) if k == 0 else x
    score_B = Climb(fitted_surrogate(), Lasro().surrogate)(clean, text, torch.zeros(4).long())
    expected = gradient_of(network, score_B.mean())
    cosine = float(reward_only @ expected / (reward_only.norm() * expected.norm()))
    assert cosine == pytest.approx(-1, abs=1e-2)


def test_a_step_that_led_to_no_update_leaves_nothing_behind() -> None:
    class Broken(HandEngine):
        def update(self, losses: Iterable[Tensor]) -> float:
            super().update(losses)
            return math.nan

    settings = {"anchor": {"ratio": 0.4, "batch": 2}}
    module = adapted_unet()
    policy = policy_of(Broken(module), settings)
    policy.step(PROMPTS, anchor_data())
    assert policy.state == PolicyState(1, None, (RewardScale(), RewardScale()))
    whole = policy_of(HandEngine(module), settings)
    whole.state = policy.state
    assert whole.step(PROMPTS, anchor_data())["anchor_weight"] > 0
    known = whole.state
    policy.state = known
    policy.step(PROMPTS, anchor_data())
    assert policy.state == dataclasses.replace(known, step=3)


def test_the_anchor_shares_the_first_call_of_the_network() -> None:
    engine = HandEngine(adapted_unet())
    policy_of(engine, {"anchor": {"ratio": 0.4, "batch": 2}}).step(PROMPTS, anchor_data())
    assert engine.calls == MODEL.num_steps


def test_without_an_anchor_its_weight_is_zero() -> None:
    metrics = policy_of(counting()[0], {}).step(PROMPTS, None)
    assert (metrics["anchor_weight"], metrics["anchor_loss"]) == (0.0, 0.0)


# Where the gradient goes


def test_the_reward_of_the_first_prediction_reaches_only_the_first_call() -> None:
    first, second = gain_gradients(step_weights=(1.0, 0.0))
    assert (first != 0, second) == (True, 0.0)


def test_the_reward_of_the_second_prediction_reaches_only_the_second_call() -> None:
    first, second = gain_gradients(step_weights=(0.0, 1.0))
    assert (first, second != 0) == (0.0, True)


def test_with_the_cross_term_it_reaches_the_first_call_too() -> None:
    first, second = gain_gradients(step_weights=(0.0, 1.0), cross_term=True)
    assert (first != 0, second != 0) == (True, True)


def test_the_cross_term_does_not_change_what_the_first_reward_does() -> None:
    assert gain_gradients(step_weights=(1.0, 0.0), cross_term=True) == gain_gradients(
        step_weights=(1.0, 0.0)
    )


def test_rewarding_the_last_step_alone_leaves_the_first_call_without_gradient() -> None:
    first, second = gain_gradients(reward_steps="last")
    assert (first, second != 0) == (0.0, True)


def test_a_policy_step_gives_the_surrogate_no_gradient() -> None:
    surrogate = fitted_surrogate()
    policy_of(counting()[0], {}, surrogate=surrogate).step(PROMPTS, None)
    assert all(parameter.grad is None for parameter in surrogate.parameters())


def test_a_policy_step_leaves_the_surrogate_trainable() -> None:
    surrogate = fitted_surrogate()
    policy_of(counting()[0], {}, surrogate=surrogate).step(PROMPTS, None)
    assert all(parameter.requires_grad for parameter in surrogate.parameters())


def test_a_surrogate_step_gives_the_policy_no_gradient() -> None:
    (engine, network), surrogate = counting(), fitted_surrogate()
    policy_of(engine, {}, surrogate=surrogate).step(PROMPTS, None)
    assert network.gains.grad is not None
    before = network.gains.grad.clone()
    trainer = SurrogateTrainer(Lasro().surrogate, HandEngine(surrogate), encode)  # pyright: ignore
    rewards_GNK = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    trainer.moments = RewardMoments.of(rewards_GNK)
    trainer.step(GroupBatch([0], PROMPTS[:1], torch.randn(1, 2, 2, 4, 8, 8), rewards_GNK))
    assert torch.equal(network.gains.grad, before)


def test_a_surrogate_of_several_heads_reaches_the_policy_too() -> None:
    engine, network = counting()
    settings = {"surrogate": {"heads": 3, "pessimism": 0.7}}
    policy_of(engine, settings, surrogate=fitted_surrogate(3)).step(PROMPTS, None)
    assert network.gains.grad is not None
    assert bool((network.gains.grad != 0).all())


# Draws and cuts


def test_two_ranks_by_hand_have_the_mean_gradient_of_one() -> None:
    settings = {"anchor": {"ratio": None, "weight": 0.5, "batch": 2}}
    # So wide that no batch changes it: ranks learn of each other's rows only over a real group.
    wide = RewardScale(0.0, 1e4)
    whole, _ = adapter_gradient(settings, scale=wide)
    parts = [adapter_gradient(settings, rank, 2, wide)[0] for rank in (0, 1)]
    assert torch.allclose(torch.stack(parts).mean(dim=0), whole, rtol=1e-4, atol=1e-7)


def test_two_ranks_draw_different_rows() -> None:
    settings = {"anchor": {"ratio": None, "weight": 0.5, "batch": 2}}
    wide = RewardScale(0.0, 1e4)
    parts = [adapter_gradient(settings, rank, 2, wide)[0] for rank in (0, 1)]
    assert not torch.allclose(*parts, rtol=0.01)


def second_step() -> dict[str, float]:
    engine, unet = counting()
    policy = policy_of(engine, {})
    policy.step(PROMPTS, None)
    unet.calls = 0
    return policy.step(PROMPTS, None)


def test_a_step_draws_anew() -> None:
    first = policy_of(counting()[0], {}).step(PROMPTS, None)
    assert second_step()["surrogate_1step"] != first["surrogate_1step"]


def test_a_policy_set_to_a_step_draws_what_it_would_have_drawn() -> None:
    again = policy_of(counting()[0], {})
    again.state = PolicyState(step=1, scales=again.state.scales)
    assert again.step(PROMPTS, None)["surrogate_1step"] == second_step()["surrogate_1step"]


def test_the_state_of_a_policy_survives_json() -> None:
    state = PolicyState(3, 0.25, (RewardScale(0.1, 2.0), RewardScale()))
    assert PolicyState.from_json(state.to_json()) == state
