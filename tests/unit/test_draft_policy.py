"""DRaFT's policy step: whose gradient flows, what is drawn, and what cutting a batch changes."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from learner.diffusion.chain import Chain
from learner.diffusion.ddim import ddim_moments
from learner.diffusion.schedule import NoiseSchedule
from learner.methods.draft import AskNoise, KlForm, step_kl
from learner.methods.draft_policy import DraftBatch, DraftPolicy
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser, guided_call
from learner.policy.views import shared_view
from learner.seat import Seat
from learner.settings.draft import Draft
from learner.states import StateBatch, kept_parts, starting_parts
from tests.unit.learner_fakes import HandEngine, adapted, base, encode, gradients

CHAIN = Chain(
    NoiseSchedule.from_config(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    )
)
PROMPTS = ["a red circle", "a blue star", "two hearts", "a cat"]
PATHS: dict[str, dict[str, Any]] = {
    "last": {"path": "last", "last_steps": 2},
    "renoised": {"path": "renoised", "renoisings": 3},
    "stopped": {"path": "stopped", "ceiling": 2.0},
    "last, KL of the chain": {"path": "last", "last_steps": 2, "kl_over": "chain"},
    "renoised, KL of the chain": {"path": "renoised", "kl_over": "chain"},
    "stopped, KL of the chain": {"path": "stopped", "kl_over": "chain"},
}


def states(steps: range, seed: int) -> StateBatch:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    step_B = torch.tensor([steps[11 * i % len(steps)] for i in range(4)])
    return StateBatch(latents, step_B, PROMPTS)


def batch(settings: Draft, rows: slice = slice(None)) -> DraftBatch:
    beside = settings.steps_beside(50)
    whole = DraftBatch(states(settings.starts(50), 8), states(beside, 9) if beside else None)
    return whole.rows(rows)


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
        lambda x, text, prompts: x.flatten(1).mean(dim=1) + text.states_BLE.flatten(1).mean(dim=1),
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


@pytest.mark.parametrize(
    ("path", "counts", "beside"), [("last", 1, 48), ("renoised", 0, 50), ("stopped", 12, 38)]
)
def test_the_kl_of_a_chain_counts_each_of_its_steps_once(
    path: str, counts: int, beside: int
) -> None:
    settings = Draft.model_validate({**PATHS[f"{path}, KL of the chain"], "alpha": 0.1})
    assert settings.path_counts(50) == counts
    assert settings.steps_beside(50) == range(beside)
    parts = starting_parts(settings, 50)
    assert parts.edges[:2] == (0, beside)
    of_path = stepped(path)[0]["kl_nats"]
    step, unet = states(range(beside), 9), base()
    text, empty = encode(PROMPTS), encode([""] * 4)

    def asking(network: Denoiser) -> AskNoise:
        return lambda x, t_B: guided_call(network, x, t_B, text, empty, 3.0)

    asked = asking(adapted(unet)), asking(Denoiser(shared_view(unet)))
    with torch.no_grad():
        _, nats_B = step_kl(*asked, step.latents_BCHW, step.step_B, CHAIN, KlForm())
    told = stepped(f"{path}, KL of the chain")[0]["kl_nats"]
    assert told == pytest.approx(counts * of_path + beside * float(nats_B.mean()), rel=1e-4)


def test_the_gradient_is_that_of_the_reward_less_the_kl_by_the_forward_process() -> None:
    """Of DRaFT-1, beside the same maths on the bare networks."""
    unet = base()
    form = {"alpha": 0.3, "kl_std": "forward", "kl_reduce": "mean"}
    _, engine = stepped("last", unet=unet, last_steps=1, **form)
    network, reference = adapted(unet), Denoiser(unet)
    text, empty, x = encode(PROMPTS), encode([""] * 4), states(range(49, 50), 8).latents_BCHW
    t_B, next_t_B = CHAIN.times(torch.full((4,), 49))
    eps = guided_call(network, x, t_B, text, empty, 3.0)
    mean, std = ddim_moments(x, eps, t_B, next_t_B, CHAIN.schedule)
    with torch.no_grad():
        ref_eps = guided_call(reference, x, t_B, text, empty, 3.0)
    ref_mean, _ = ddim_moments(x, ref_eps, t_B, next_t_B, CHAIN.schedule)
    noise = torch.randn(1, 4, 4, 8, 8, generator=step_generator(7, 0))[0]
    reward_B = (mean + std * noise).mean(dim=(1, 2, 3))
    kept_T = CHAIN.schedule.alphas_cumprod_T
    variance_B = 1 - kept_T[t_B] / kept_T[next_t_B]
    kl_B = 0.5 * (mean - ref_mean).square().mean(dim=(1, 2, 3)) / variance_B
    trained = [p for p in network.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(-(reward_B - 0.3 * kl_B).mean().float(), trained)
    for mine, other in zip(gradients(engine), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


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
