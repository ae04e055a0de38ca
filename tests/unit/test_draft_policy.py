"""DRaFT's policy step: whose gradient flows, what is drawn, and what cutting a batch changes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.ddim import ddim_moments
from learner.diffusion.schedule import NoiseSchedule, add_noise, predict_x0
from learner.methods.draft import AskNoise, KlForm, step_kl
from learner.methods.draft_policy import DraftBatch, DraftPolicy
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser, guided_call
from learner.policy.text import Text
from learner.policy.views import shared_view
from learner.seat import Seat
from learner.settings.draft import Draft
from learner.states import StateBatch, kept_parts, starting_parts
from tests.unit.learner_fakes import HandEngine, adapted, assert_down, base, encode, gradients

CHAIN = Chain(
    NoiseSchedule.from_config(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    )
)
PROMPTS = ["a red circle", "a blue star", "two hearts", "a cat"]
PATHS: dict[str, dict[str, Any]] = {
    "last": {"path": "last", "last_steps": 2},
    "renoised": {"path": "renoised", "renoisings": 3},
    "stopped": {"path": "stopped", "ceiling": 1.1},
    "last, KL of the chain": {"path": "last", "last_steps": 2, "kl_over": "chain"},
    "renoised, KL of the chain": {"path": "renoised", "kl_over": "chain"},
    "stopped, KL of the chain": {"path": "stopped", "kl_over": "chain"},
}
COUNTS = {"last": (1, 48), "renoised": (0, 50), "stopped": (12, 38)}
"""How often a step of the path counts in the KL of the chain of 50, and one beside it."""


def states(steps: range, seed: int) -> StateBatch:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    step_B = torch.tensor([steps[11 * i % len(steps)] for i in range(4)])
    return StateBatch(latents, step_B, PROMPTS)


def batch(settings: Draft, rows: slice = slice(None)) -> DraftBatch:
    beside = settings.steps_beside(50)
    whole = DraftBatch(states(settings.starts(50), 8), states(beside, 9) if beside else None)
    return whole.rows(rows)


def reward(x: Tensor, text: Text, prompts: Sequence[str]) -> Tensor:
    return x.square().flatten(1).mean(dim=1) + text.states_BLE.flatten(1).mean(dim=1)


def asking(network: Denoiser) -> AskNoise:
    text, empty = encode(PROMPTS), encode([""] * 4)
    return lambda x, t_B: guided_call(network, x, t_B, text, empty, 3.0)


def stepped(
    path: str, seat: Seat | None = None, unet: Any = None, **changes: Any
) -> tuple[dict[str, float], HandEngine]:
    unet, seat = unet or base(), seat or Seat(7)
    engine = HandEngine(adapted(unet))
    settings = Draft.model_validate({"policy_batch": 4, "alpha": 0.1, **PATHS[path], **changes})
    policy = DraftPolicy(
        settings,
        engine,  # pyright: ignore[reportArgumentType]
        CHAIN,
        encode,
        Denoiser(shared_view(unet)),
        reward,
        guidance_scale=3.0,
        seat=seat,
    )
    return policy.step(batch(settings, seat.share)), engine


@pytest.mark.parametrize("path", PATHS)
def test_all_of_the_adapter_learns_and_nothing_else(path: str) -> None:
    unet = base()
    metrics, engine = stepped(path, unet=unet)
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    assert len(gradients(engine)) == len(trained)
    assert all(bool(g.abs().sum() > 0) for g in gradients(engine))
    assert all(p.grad is None for p in unet.parameters())
    assert metrics["kl_nats"] > 0


@pytest.mark.parametrize(
    ("path", "calls"), [("last", 2), ("renoised", 1), ("stopped", 1), ("last, KL of the chain", 2)]
)
def test_the_network_is_called_for_every_step_with_a_gradient_and_no_other(
    path: str, calls: int
) -> None:
    _, engine = stepped(path, alpha=0.0)
    assert engine.calls == calls


@pytest.mark.parametrize("path", COUNTS)
def test_the_kl_of_a_chain_counts_each_of_its_steps_once(path: str) -> None:
    counts, beside = COUNTS[path]
    settings = Draft.model_validate({**PATHS[f"{path}, KL of the chain"], "alpha": 0.1})
    assert settings.path_counts(50) == counts
    assert settings.steps_beside(50) == range(beside)
    parts = starting_parts(settings, 50)
    assert parts.edges[:2] == (0, beside)
    of_path = stepped(path)[0]["kl_nats"]
    step, unet = states(range(beside), 9), base()
    asked = asking(adapted(unet)), asking(Denoiser(shared_view(unet)))
    with torch.no_grad():
        _, nats_B = step_kl(*asked, step.latents_BCHW, step.step_B, CHAIN, KlForm())
    told = stepped(f"{path}, KL of the chain")[0]["kl_nats"]
    assert told == pytest.approx(counts * of_path + beside * float(nats_B.mean()), rel=1e-4)


def step_by_hand(
    policy: AskNoise, reference: AskNoise, x: Tensor, step_B: Tensor, noise: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """The next state; and the KL by the forward process, mean over the latent."""
    t_B, next_t_B = CHAIN.times(step_B)
    (mean, std), (ref_mean, _) = (
        ddim_moments(x, asked(x, t_B), t_B, next_t_B, CHAIN.schedule)
        for asked in (policy, reference)
    )
    kept_T = CHAIN.schedule.alphas_cumprod_T
    variance_B = 1 - kept_T[t_B] / kept_T[next_t_B]
    return mean + std * noise, 0.5 * (mean - ref_mean).square().mean(dim=(1, 2, 3)) / variance_B


def path_by_hand(
    settings: Draft, policy: AskNoise, reference: AskNoise
) -> Iterator[tuple[Tensor, Tensor]]:
    """What is rewarded of every copy of the batch, and the KL of its path."""
    generator, start = step_generator(7, 0), batch(settings).start
    x, step_B = start.latents_BCHW, start.step_B
    if settings.path == "last":
        total_B = torch.zeros(4)
        noise_KBCHW = torch.randn(settings.last_steps, *x.shape, generator=generator)
        for step, noise in zip(range(50 - settings.last_steps, 50), noise_KBCHW, strict=True):
            x, kl_B = step_by_hand(policy, reference, x, torch.full((4,), step), noise)
            total_B = total_B + kl_B
        yield x, total_B
    elif settings.path == "renoised":
        last_B = torch.full((4,), 49)
        t_B, _ = CHAIN.times(last_B)
        noise_2KBCHW = torch.randn(2, settings.renoisings, *x.shape, generator=generator)
        for noise, step_noise in zip(*noise_2KBCHW, strict=True):
            noised = add_noise(x, noise, t_B, CHAIN.schedule)
            yield step_by_hand(policy, reference, noised, last_B, step_noise)
    else:
        t_B, _ = CHAIN.times(step_B)
        clean = predict_x0(x, policy(x, t_B), t_B, CHAIN.schedule)
        yield clean, step_by_hand(policy, reference, x, step_B)[1]


@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_is_that_of_the_reward_less_the_kl_by_the_forward_process(path: str) -> None:
    """Beside the same maths on the bare networks, one renoising after the other."""
    unet, form = base(), {"alpha": 0.3, "kl_std": "forward", "kl_reduce": "mean"}
    _, engine = stepped(path, unet=unet, **form)
    settings = Draft.model_validate({"policy_batch": 4, **PATHS[path], **form})
    network, text = adapted(unet), encode(PROMPTS)
    asked = asking(network), asking(Denoiser(unet))
    counts, left_out = COUNTS[settings.path] if settings.kl_over == "chain" else (1, 0)
    ceiling = settings.ceiling or float("inf")
    copies = [
        reward(clean, text, PROMPTS).clamp(max=ceiling) - 0.3 * counts * kl_B
        for clean, kl_B in path_by_hand(settings, *asked)
    ]
    gain = torch.stack(copies).mean()
    if (beside := batch(settings).beside) is not None:
        _, beside_kl_B = step_by_hand(*asked, beside.latents_BCHW, beside.step_B)
        gain = gain - 0.3 * left_out * beside_kl_B.mean()
    assert_down(-gain, network, engine)


def test_a_reward_above_its_ceiling_has_no_gradient_and_one_below_has_all_of_it() -> None:
    free, below, above = (
        gradients(stepped("stopped", alpha=0.0, ceiling=ceiling)[1])
        for ceiling in (None, 9.0, -9.0)
    )
    for gradient, kept, held in zip(free, below, above, strict=True):
        torch.testing.assert_close(kept, gradient)
        assert bool((kept != 0).any())
        assert bool((held == 0).all())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("uniform", [0.0, 0.999])
def test_a_sampler_keeps_the_states_that_the_learner_counts_on(path: str, uniform: float) -> None:
    settings = Draft.model_validate({"alpha": 0.1, **PATHS[path]})
    parts, kept = starting_parts(settings, 50), kept_parts(settings, 50)
    states = [] if kept is None else list(kept.pick([uniform] * (len(kept.edges) - 1)))
    record = [*states, 50]
    assert len(parts.edges) - 1 <= len(record)
    for state, (first, stop) in zip(record, pairwise(parts.edges), strict=False):
        assert first <= state < stop


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_two_ranks_and_micro_batches_have_the_gradient_of_one(path: str) -> None:
    _, whole = stepped(path)
    _, parts = stepped(path, micro_batches=2)
    halves = [gradients(stepped(path, Seat(7, rank, 2))[1]) for rank in (0, 1)]
    for together, part, a, b in zip(gradients(whole), gradients(parts), *halves, strict=True):
        torch.testing.assert_close(part, together, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close((a + b) / 2, together, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ({"last_steps": 3}, range(47, 48)),
        ({"path": "renoised"}, range(50, 51)),
        ({"path": "stopped"}, range(38, 50)),
        ({"path": "stopped", "stopped_in": 0.001}, range(49, 50)),
    ],
)
def test_where_a_gradient_may_start(changes: dict[str, Any], starts: range) -> None:
    assert Draft.model_validate(changes).starts(50) == starts
