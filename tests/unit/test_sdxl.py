"""Models of SDXL's form go through the same code: conditions, samplers, surrogate, both methods."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor

from actors.rollout import FewStepPolicy, Group, ManyStepPolicy
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import RunConfig, load_config
from learner.diffusion.noise import group_noise
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.surrogate import new_surrogate
from tests.fifty_steps import clean_of, take_table
from tests.tiny_sdxl import POOLED, WIDTH_1, WIDTH_2, new_unet_xl, save_sdxl

PROMPTS = ["a red circle left of a blue square", ""]
SMOKE = Path("deploy/configs/smoke.yaml")
GROUP = Group(0, PROMPTS[0], 7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipe(folders: tuple[Path, Path]) -> Any:
    pipe = StableDiffusionXLPipeline.from_pretrained(folders[0], torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_of(folder: Path) -> Text:
    return PipelineFolder.locate(str(folder)).prompt_encoder()(PROMPTS)


def test_conditions_are_those_of_diffusers_own_pipeline(
    folders: tuple[Path, Path], pipe: Any
) -> None:
    text = text_of(folders[0])
    states, negative, pooled, negative_pooled = pipe.encode_prompt(
        PROMPTS[0], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    assert text.pooled_BP is not None
    torch.testing.assert_close(text.states_BLE, torch.cat([states, negative]))
    torch.testing.assert_close(text.pooled_BP, torch.cat([pooled, negative_pooled]))
    assert float(text.pooled_BP[1].abs().sum()) == 0
    assert text.time_ids_B6 is not None
    assert text.time_ids_B6.tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 2


def many_steps(folder: Path) -> RunConfig:
    overrides = [f"model.path={folder}", "model.lora_rank=2", "model.lora_alpha=2"]
    return load_config("deploy/configs/smoke-sqdf.yaml", overrides)


def few_steps(folder: Path, teacher: Path) -> RunConfig:
    return load_config(SMOKE, [f"model.path={folder}", f"model.teacher={teacher}"])


def test_the_chain_is_the_one_that_diffusers_draws(folders: tuple[Path, Path], pipe: Any) -> None:
    config = many_steps(folders[0])
    pipeline = PipelineFolder.locate(str(folders[0]))
    policy = policy_of(config, pipeline, group_size=1, only_clean=True)
    assert isinstance(policy, ManyStepPolicy)
    shape = pipeline.latent_shape
    noise = [group_noise(GROUP.seed, 1, shape, stream) for stream in range(51)]
    ours = clean_of(policy, PROMPTS[0], noise)
    injected = iter(noise[1:])
    take_table(pipe.scheduler, pipeline.schedule)
    # diffusers draws the noise of a step itself; it is given ours.
    step = pipe.scheduler.step

    def with_our_noise(eps: Tensor, t: Any, x: Tensor, eta: float, **options: Any) -> Any:
        return step(eps, t, x, eta=eta, variance_noise=next(injected), **options)

    pipe.scheduler.step = with_our_noise
    theirs = pipe(
        PROMPTS[0],
        num_inference_steps=50,
        guidance_scale=config.model.guidance_scale,
        eta=1.0,
        latents=noise[0],
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # A record has them in half precision.
    sampled = torch.from_numpy(policy.sample([GROUP])[0].latents[0, -1:]).float()
    torch.testing.assert_close(sampled, ours, atol=1e-3, rtol=1e-3)


def test_a_few_step_model_is_told_its_guidance(folders: tuple[Path, Path]) -> None:
    base, lcm = folders
    pipeline, latents = PipelineFolder.locate(str(lcm)), []
    for scale in (1.5, 8.0):
        config = few_steps(lcm, base)
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"guidance_scale": scale})}
        )
        policy = policy_of(config, pipeline, group_size=2)
        assert isinstance(policy, FewStepPolicy)
        assert policy.guidance_dim == 8
        latents.append(torch.from_numpy(policy.sample([GROUP])[0].latents).float())
    assert latents[0].shape == (2, 2, 4, 8, 8)
    assert not torch.allclose(latents[0], latents[1])


@pytest.mark.parametrize("backbone", ["unet", "unet_encoder", "conv"])
def test_the_surrogate_has_a_gradient_to_latents(folders: tuple[Path, Path], backbone: Any) -> None:
    unet = PipelineFolder.locate(str(folders[0])).unet()
    surrogate = new_surrogate(backbone, unet, num_steps=1, heads=1, timestep=99, seed=0)
    torch.nn.init.normal_(surrogate.head.out.weight)  # pyright: ignore
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    surrogate(x, text_of(folders[0]), torch.zeros(2, dtype=torch.long)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("backbone", ["unet", "unet_encoder"])
def test_a_surrogate_may_have_a_middle_that_reads_no_text_as_ssd_1bs(backbone: Any) -> None:
    unet = new_unet_xl(mid_block_type="UNetMidBlock2D")
    surrogate = new_surrogate(backbone, unet, num_steps=1, heads=2, timestep=99, seed=0)
    text = Text(torch.randn(3, 5, WIDTH_1 + WIDTH_2), torch.randn(3, POOLED), torch.ones(3, 6))
    assert surrogate(torch.randn(3, 4, 8, 8), text, torch.zeros(3).long()).shape == (3, 2)


def test_the_whole_surrogate_starts_as_the_unet_whose_blocks_it_has(
    folders: tuple[Path, Path],
) -> None:
    unet, own, read = PipelineFolder.locate(str(folders[0])).unet(), [], []
    whole = new_surrogate("unet", unet, num_steps=1, heads=1, timestep=99, seed=0)
    for block in unet.up_blocks:
        block.register_forward_hook(lambda module, given, out: own.append(out))
    x, text = torch.randn(2, 4, 8, 8), text_of(folders[0])
    with torch.no_grad():
        Denoiser(unet)(x, torch.full((2,), 99), text)
        whole.head.register_forward_pre_hook(lambda module, given: read.extend(given[0]))  # pyright: ignore
        whole(x, text, torch.zeros(2, dtype=torch.long))
    for theirs, ours in zip(own, read[1:], strict=True):
        torch.testing.assert_close(ours, theirs)
