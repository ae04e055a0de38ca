"""Noise and samplers, against diffusers' own pipelines on a tiny random UNet."""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from actors.rollout import FewStepPolicy, Group, ManyStepPolicy, to_records
from actors.sampling import guided_noise, sample_ddpm, sample_few_steps
from learner.diffusion.chain import Chain
from learner.diffusion.consistency import guidance_embedding
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.noise import INITIAL_NOISE, group_noise, member_noise
from learner.diffusion.schedule import NoiseSchedule
from learner.policy.flops import FlopMeter, Metered

SHAPE = (4, 8, 8)
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
GOLDEN_NOISE = [-0.653769314289093, 0.998100996017456]
SCHEDULE = NoiseSchedule.from_config(CONFIG)


@cache
def tiny_unet(time_cond_proj_dim: int | None) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            time_cond_proj_dim=time_cond_proj_dim,
        ).eval()


def network(time_cond_proj_dim: int | None = None) -> Any:
    unet = tiny_unet(time_cond_proj_dim)

    def predict(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        return unet(x_BCHW, t_B, prompts, timestep_cond=guidance_BE).sample

    return predict


def text_states(rows: int) -> Tensor:
    return torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(1))


def noises(count: int, rows: int = 2) -> list[Tensor]:
    return [group_noise(7, rows, SHAPE, stream) for stream in range(count)]


def drawn(count: int) -> list[Tensor]:
    """The noise that diffusers' schedulers draw one after the other from `generator()`."""
    source = generator()
    return [torch.randn(2, *SHAPE, generator=source) for _ in range(count)]


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


# ---- noise


def test_noise_never_changes_between_releases() -> None:
    first = member_noise(2**64 - 1, 3, (2,), 1)
    np.testing.assert_array_equal(first.numpy(), np.array(GOLDEN_NOISE, np.float32))


def test_noise_does_not_depend_on_what_was_drawn_before() -> None:
    alone = member_noise(5, 2, SHAPE, 0)
    torch.randn(3)
    np.random.default_rng(0).normal()
    assert torch.equal(group_noise(5, 6, SHAPE, 0)[2], alone)


@pytest.mark.parametrize(
    "other", [(6, 0, 0), (5 + 2**32, 0, 0), (5 + 2**63, 0, 0), (5, 1, 0), (5, 0, 1)]
)
def test_noise_differs_in_every_part_of_its_key(other: tuple[int, int, int]) -> None:
    seed, member, stream = other
    assert not torch.equal(member_noise(5, 0, SHAPE, 0), member_noise(seed, member, SHAPE, stream))


def test_noise_is_standard_normal() -> None:
    noise = member_noise(1, 0, (100_000,), INITIAL_NOISE)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.02
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)


def test_members_and_streams_are_uncorrelated() -> None:
    keys = itertools.product((1, 2), range(3), range(3))
    rows = torch.stack([member_noise(seed, m, (10_000,), s) for seed, m, s in keys])
    off_diagonal = torch.corrcoef(rows) - torch.eye(len(rows))
    assert off_diagonal.abs().max().item() < 0.05


def test_shared_noise_is_one_for_all_members() -> None:
    shared = group_noise(5, 3, SHAPE, INITIAL_NOISE, shared=True)
    assert torch.equal(shared, member_noise(5, 0, SHAPE, INITIAL_NOISE).expand(3, *SHAPE))


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


def test_fifty_steps_end_where_diffusers_pipeline_ends() -> None:
    initial, noise = noises(1)[0], drawn(50)
    cond, uncond = text_states(4).chunk(2)
    scheduler = DDIMScheduler(**CONFIG, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = without_text_and_pictures(StableDiffusionPipeline, tiny_unet(None), scheduler)
    expected = pipeline(
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
            network(),
            SCHEDULE,
            torch.cat([uncond, cond]),
            initial,
            noise,
            num_steps=50,
            guidance_scale=5.0,
            keep={50},
        )
    # Diffusers computes its table of alphas in float32, ours is float64: 2e-5 after 50 steps.
    torch.testing.assert_close(ours[50], expected, rtol=1e-4, atol=5e-5)


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


# ---- policies


def encode(prompts: list[str]) -> Tensor:
    return torch.stack(
        [member_noise(sum(prompt.encode()), 0, (5, 8), INITIAL_NOISE) for prompt in prompts]
    )


def parts(**changes: Any) -> dict[str, Any]:
    return {
        "network": network(),
        "encode": encode,
        "take": lambda weights: None,
        "schedule": SCHEDULE,
        "latent_shape": SHAPE,
        "group_size": 3,
        "num_steps": 2,
        "guidance_scale": 2.0,
        **changes,
    }


CAT, DOG = Group(0, "a cat", 11), Group(1, "a dog", 12)


def test_few_step_policy_keeps_and_scores_every_prediction() -> None:
    (rollout,) = FewStepPolicy(**parts(num_steps=4)).sample([CAT])
    shape, dtype = rollout.latents.shape, rollout.latents.dtype
    told = rollout.steps, rollout.scored, shape, dtype
    assert told == ((1, 2, 3, 4), (0, 1, 2, 3), (3, 4, *SHAPE), np.float16)


def test_many_step_policy_keeps_the_chosen_states_and_scores_the_clean_one() -> None:
    (rollout,) = ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: (0, 3)).sample([CAT])
    told = rollout.steps, rollout.scored, rollout.latents.shape
    assert told == ((0, 3, 5), (2,), (3, 3, *SHAPE))


@pytest.mark.parametrize(
    "policy",
    [
        FewStepPolicy(**parts()),
        FewStepPolicy(**parts(network=network(16), guidance_dim=16)),
        ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: (0, 3)),
    ],
    ids=["few", "few-guided", "many"],
)
def test_a_group_does_not_depend_on_its_batch(policy: FewStepPolicy | ManyStepPolicy) -> None:
    alone = policy.sample([DOG])[0].latents
    together = policy.sample([CAT, DOG])[1].latents
    # Equal but for the last bit of float16: sums are cut differently in a larger batch.
    np.testing.assert_allclose(together, alone, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("num_steps", "calls"), [(1, 1), (2, 2)])
def test_a_group_is_told_its_share_of_what_its_batch_cost(num_steps: int, calls: int) -> None:
    meter = FlopMeter()
    metered = Metered(network(), meter)
    policy = FewStepPolicy(**parts(network=metered, num_steps=num_steps), meter=meter)
    alone = policy.sample([CAT])[0].flops
    assert alone > 0
    assert policy.sample([CAT])[0].flops == alone
    assert [rollout.flops for rollout in policy.sample([CAT, DOG])] == [alone, alone]
    assert meter.total == 4 * alone
    once = FlopMeter()
    single = FewStepPolicy(**parts(network=Metered(network(), once), num_steps=1), meter=once)
    assert alone == calls * single.sample([CAT])[0].flops


def test_a_group_sampled_twice_is_bit_identical() -> None:
    first, second = (FewStepPolicy(**parts()).sample([CAT, DOG]) for _ in range(2))
    assert [one.latents.tobytes() for one in first] == [two.latents.tobytes() for two in second]


def test_members_of_a_group_differ() -> None:
    latents = FewStepPolicy(**parts()).sample([CAT])[0].latents
    assert len({member.tobytes() for member in latents}) == 3


def test_with_shared_initial_noise_members_agree_on_the_first_prediction_only() -> None:
    latents = FewStepPolicy(**parts(shared_initial_noise=True)).sample([CAT])[0].latents
    distinct = [len({member[step].tobytes() for member in latents}) for step in (0, 1)]
    assert distinct == [1, 3]


def test_shared_initial_noise_needs_a_second_step() -> None:
    with pytest.raises(ValueError, match="makes all members equal"):
        FewStepPolicy(**parts(num_steps=1, shared_initial_noise=True))


def test_groups_of_a_batch_may_keep_different_states() -> None:
    kept = {CAT.seed: (0, 3), DOG.seed: (1, 4)}
    policy = ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: kept[seed])
    everything = ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: (0, 1, 2, 3, 4))
    for rollout, whole in zip(
        policy.sample([CAT, DOG]), everything.sample([CAT, DOG]), strict=True
    ):
        assert rollout.scored == (2,)
        np.testing.assert_array_equal(rollout.latents, whole.latents[:, list(rollout.steps)])


def test_what_is_told_of_a_kept_state_is_kept_and_scored_after_the_end() -> None:
    policy = ManyStepPolicy(**parts(num_steps=50), keep=lambda seed: (7, 40), consistency=network())
    rollout = policy.sample([CAT, DOG])[1]
    assert (rollout.steps, rollout.scored) == ((7, 40, 50, 58, 91), (2, 3, 4))
    states = torch.from_numpy(rollout.latents[:, :2]).float()
    text, chain = encode(["a dog"] * 3), Chain(SCHEDULE)
    for slot, state in enumerate((7, 40)):
        told = chain.told_clean(
            lambda x, t_B: network()(x, t_B, text, None), states[:, slot], torch.full((3,), state)
        )
        kept = torch.from_numpy(rollout.latents[:, 3 + slot]).float()
        torch.testing.assert_close(kept, told, atol=2e-2, rtol=1e-2)


def test_the_references_noise_is_that_of_the_state_as_it_is_stored() -> None:
    policy = ManyStepPolicy(**parts(num_steps=50), keep=lambda seed: (7, 40), reference=network())
    rollout = policy.sample([CAT])[0]
    assert (rollout.steps, rollout.scored) == ((7, 40, 50, 109, 142), (2,))
    states = torch.from_numpy(rollout.latents[:, :2]).float()
    doubled = encode([""] * 3 + ["a cat"] * 3)
    for slot, t in enumerate((841, 181)):
        eps = guided_noise(network(), states[:, slot], torch.full((3,), t), doubled, 2.0)
        kept = torch.from_numpy(rollout.latents[:, 3 + slot])
        torch.testing.assert_close(kept, eps.half(), atol=1e-3, rtol=1e-3)


def test_guidance_embedding_reaches_the_network_as_scale_minus_one() -> None:
    seen: list[Tensor | None] = []

    def spy(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        seen.append(guidance_BE)
        return x_BCHW

    FewStepPolicy(**parts(network=spy, guidance_scale=8.0, guidance_dim=16)).sample([CAT])
    expected = guidance_embedding(torch.full((3,), 7.0), 16)
    assert seen[0] is not None
    assert torch.equal(seen[0], expected)


def test_unconditional_rows_come_first() -> None:
    asked: list[list[str]] = []

    def spy(prompts: list[str]) -> Tensor:
        asked.append(prompts)
        return encode(prompts)

    ManyStepPolicy(**parts(encode=spy, group_size=2), keep=lambda seed: ()).sample([CAT, DOG])
    assert asked == [["", "", "", "", "a cat", "a cat", "a dog", "a dog"]]


def test_without_guidance_only_the_prompts_go_through_the_network() -> None:
    rows: list[int] = []

    def spy(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        rows.append(len(x_BCHW))
        return network()(x_BCHW, t_B, prompts, guidance_BE)

    free = parts(num_steps=5, guidance_scale=1.0, network=spy)
    alone = ManyStepPolicy(**free, keep=lambda seed: ()).sample([CAT])[0].latents
    assert rows == [3] * 5
    almost = parts(num_steps=5, guidance_scale=1.0 + 1e-9)
    doubled = ManyStepPolicy(**almost, keep=lambda seed: ()).sample([CAT])[0].latents
    np.testing.assert_allclose(alone, doubled, rtol=2e-3, atol=2e-3)


def test_latents_that_overflow_float16_are_refused_with_their_members() -> None:
    (rollout,) = FewStepPolicy(**parts()).sample([CAT])
    rollout.latents[1, 0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"ticket 0: members \[1\] .* version 9 has diverged"):
        to_records(CAT, rollout, policy_version=9)


def test_records_hold_one_latent_a_step() -> None:
    (rollout,) = FewStepPolicy(**parts()).sample([CAT])
    record = to_records(CAT, rollout, policy_version=9)[2]
    assert (record.member, record.policy_version, len(record.latents)) == (2, 9, 2)
    assert np.array_equal(record.latents[1], rollout.latents[2, 1])
