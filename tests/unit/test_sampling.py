"""Samplers, against diffusers' own pipelines on a tiny random UNet."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
)
from torch import Tensor

from actors.sampling import guided_noise, sample_ddpm, sample_few_steps
from learner.diffusion.chain import Chain
from learner.diffusion.consistency import guidance_embedding
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.noise import INITIAL_NOISE, group_noise
from tests.fifty_steps import take_table
from tests.unit.tiny_networks import (
    CONFIG,
    SCHEDULE,
    SHAPE,
    network,
    noises,
    text_states,
    tiny_unet,
)


def drawn(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The noise that diffusers' schedulers draw one after the other from `generator()`."""
    source = generator()
    return [torch.randn(2, *SHAPE, generator=source, dtype=dtype) for _ in range(count)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def without_text_and_pictures(pipeline_class: Any, unet: Any, scheduler: Any) -> Any:
    """A pipeline that is given text states and returns latents."""
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    pipeline = pipeline_class(
        unet=unet,
        scheduler=scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- few steps


def chain(num_steps: int) -> ConsistencyChain:
    return ConsistencyChain(SCHEDULE, num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_few_steps_give_every_clean_prediction_of_diffusers_loop(num_steps: int) -> None:
    initial, noise, source = noises(1)[0], drawn(num_steps - 1), generator()
    prompts, guidance = text_states(2), guidance_embedding(torch.full((2,), 7.0), 16)
    scheduler = LCMScheduler(**CONFIG)
    scheduler.set_timesteps(num_steps)
    expected, x = [], initial
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = tiny_unet(16)(x, t, prompts, timestep_cond=guidance).sample
            x, clean = scheduler.step(eps, int(t), x, source, return_dict=False)
            expected.append(clean)
        ours = sample_few_steps(network(16), chain(num_steps), prompts, initial, noise, guidance)
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_few_steps_end_where_diffusers_consistency_pipeline_ends(num_steps: int) -> None:
    initial, noise = noises(1)[0], drawn(num_steps - 1)
    prompts = text_states(2)
    pipeline = without_text_and_pictures(
        LatentConsistencyModelPipeline, tiny_unet(16), LCMScheduler(**CONFIG)
    )
    expected = pipeline(
        generator=generator(),
        prompt_embeds=prompts,
        latents=initial,
        num_inference_steps=num_steps,
        guidance_scale=8.0,
        output_type="latent",
    ).images
    guidance = guidance_embedding(torch.full((2,), 7.0), 16)
    with torch.no_grad():
        ours = sample_few_steps(network(16), chain(num_steps), prompts, initial, noise, guidance)
    torch.testing.assert_close(ours[-1], expected, rtol=1e-5, atol=1e-4)


def test_first_prediction_is_the_one_step_sample() -> None:
    initial, noise = noises(2)
    with torch.no_grad():
        one = sample_few_steps(network(), chain(1), text_states(2), initial, [])
        two = sample_few_steps(network(), chain(2), text_states(2), initial, [noise])
    assert torch.equal(one[0], two[0])


# ---- many steps


@pytest.mark.parametrize(("same_table", "apart"), [(True, 1e-9), (False, 5e-5)])
def test_fifty_steps_end_where_diffusers_pipeline_ends(same_table: bool, apart: float) -> None:
    """In float64: in float32 the two round apart by 2e-5, on some processors and not on others."""
    unet = deepcopy(tiny_unet(None)).double()
    initial, noise = noises(1)[0].double(), drawn(50, torch.float64)
    cond, uncond = text_states(4).double().chunk(2)
    scheduler = DDIMScheduler(**CONFIG, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    if same_table:
        take_table(scheduler, SCHEDULE)
    expected = without_text_and_pictures(StableDiffusionPipeline, unet, scheduler)(
        generator=generator(),
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=initial,
        num_inference_steps=50,
        guidance_scale=5.0,
        eta=1.0,
        output_type="latent",
    ).images
    with torch.no_grad():
        ours = sample_ddpm(
            network(unet=unet),
            SCHEDULE,
            torch.cat([uncond, cond]),
            initial,
            noise,
            num_steps=50,
            guidance_scale=5.0,
            keep={50},
        )
    # Diffusers computes its table of alphas in float32, ours is float64: 2e-5 after 50 steps.
    torch.testing.assert_close(ours[50], expected, rtol=apart, atol=apart)


def test_a_chain_is_made_of_the_moments_of_its_steps_bit_by_bit() -> None:
    initial, *noise = noises(51)
    text, chain = text_states(4), Chain(SCHEDULE, 50)
    with torch.no_grad():
        drawn_states = sample_ddpm(
            network(), SCHEDULE, text, initial, noise,
            num_steps=50, guidance_scale=3.0, keep=range(51),
        )  # fmt: skip
        for i, injected in enumerate(noise):
            x, step_B = drawn_states[i], torch.full((2,), i)
            eps = guided_noise(network(), x, chain.state_times(step_B), text, 3.0)
            mean, std = chain.moments(x, eps, step_B)
            assert torch.equal(drawn_states[i + 1], mean + std * injected)


def test_noise_of_a_step_is_made_after_the_network_was_asked() -> None:
    order = []

    def asked(*given: Any) -> Tensor:
        order.append("network")
        return network()(*given)

    def lazily() -> Iterator[Tensor]:
        for each in noises(3):
            order.append("noise")
            yield each

    with torch.no_grad():
        sample_ddpm(
            asked, SCHEDULE, text_states(4), noises(1)[0], lazily(),
            num_steps=3, guidance_scale=3.0, keep={3},
        )  # fmt: skip
    assert order == ["network", "noise"] * 3


def few_ddim_steps(keep: set[int], **changes: Any) -> dict[int, Tensor]:
    arguments = {"num_steps": 5, "guidance_scale": 3.0, "keep": keep, **changes}
    initial, *noise = noises(arguments["num_steps"] + 1)
    with torch.no_grad():
        return sample_ddpm(network(), SCHEDULE, text_states(4), initial, noise, **arguments)


def test_only_the_chosen_states_are_kept() -> None:
    assert set(few_ddim_steps({0, 2, 5})) == {0, 2, 5}


def test_state_zero_is_the_initial_noise() -> None:
    assert torch.equal(few_ddim_steps({0})[0], group_noise(7, 2, SHAPE, INITIAL_NOISE))


def test_keeping_more_states_changes_none() -> None:
    assert torch.equal(few_ddim_steps({3})[3], few_ddim_steps(set(range(6)))[3])


def test_too_little_noise_is_an_error() -> None:
    def one_noise() -> Iterator[Tensor]:
        yield noises(1)[0]

    with pytest.raises(ValueError, match="shorter"), torch.no_grad():
        sample_ddpm(
            network(),
            SCHEDULE,
            text_states(4),
            noises(1)[0],
            one_noise(),
            num_steps=5,
            guidance_scale=3.0,
            keep={5},
        )
