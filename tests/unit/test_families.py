"""Every model family draws what diffusers' own pipeline of it draws, from the same noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.rollout import FewStepPolicy
from actors.sampling import sample_few_steps
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import load_config
from learner.policy.components import PipelineFolder, decode_images
from learner.policy.trainable import load_arrays, save_for_diffusers, trainable_arrays
from learner.policy.trainable import trainable_unet as new_trained
from learner.policy.whole import sampling_arguments, whole_pipeline
from learner.settings.model import Model
from tests.tiny_families import FAMILIES, Family, save_families, with_steps

SMOKE = Path("deploy/configs/smoke.yaml")
PROMPT = "a red circle left of a blue square"

# What diffusers, transformers and peft say of each other's loaders is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


def _also_slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return save_families(tmp_path_factory.mktemp("families"))


def policy(model: Model) -> FewStepPolicy:
    config = load_config(SMOKE, ["name=n"])
    config = config.model_copy(update={"model": model})
    found = policy_of(config, PipelineFolder.of(model), group_size=1)
    assert isinstance(found, FewStepPolicy)
    return found


def drawn(policy: FewStepPolicy, seed: int = 3) -> Tensor:
    """The last clean latent of one picture; noise as diffusers' schedulers would draw it."""
    generator = torch.Generator().manual_seed(seed)
    noise = [
        torch.randn(1, *policy.latent_shape, generator=generator) for _ in range(policy.num_steps)
    ]
    with torch.no_grad():
        return sample_few_steps(
            policy.network,
            policy._chain,
            policy.encode([PROMPT]),
            noise[0],
            noise[1:],
            policy._guidance(1),
        )[-1]


def drawn_by_diffusers(pipeline: Any, model: Model, seed: int = 3, output: str = "latent") -> Any:
    """Without guidance but where the model takes it as an input."""
    shape = PipelineFolder.of(model).latent_shape
    generator = torch.Generator().manual_seed(seed)
    size = {} if model.size is None else {"height": model.height, "width": model.width}
    return pipeline(
        PROMPT,
        latents=torch.randn(1, *shape, generator=generator),
        generator=generator,
        num_inference_steps=model.num_steps,
        guidance_scale=8.0 if model.unet is not None else 0.0,
        output_type=output,
        **size,
    ).images


@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_end_where_diffusers_pipeline_ends(
    families: dict[str, Family], name: str
) -> None:
    family = families[name]
    ours, pipeline = drawn(policy(family.model)), family.pipeline()
    theirs = drawn_by_diffusers(pipeline, family.model)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    images = decode_images(PipelineFolder.of(family.model).vae(), ours)
    seen = drawn_by_diffusers(pipeline, family.model, output="pt")
    torch.testing.assert_close(images, seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_turbo_ends_where_diffusers_ends_in_other_numbers_of_steps(
    families: dict[str, Family], num_steps: int
) -> None:
    family = with_steps(families["turbo"], num_steps)
    theirs = drawn_by_diffusers(family.pipeline(), family.model)
    torch.testing.assert_close(drawn(policy(family.model)), theirs, rtol=1e-5, atol=1e-5)


def test_a_picture_may_have_another_size_which_sdxl_is_told(families: dict[str, Family]) -> None:
    family = families["turbo"]
    model = Model.model_validate(family.model.model_dump() | {"height": 48, "width": 24})
    found = policy(model)
    assert found.latent_shape == (4, 12, 6)
    assert found.encode([PROMPT]).time_ids_B6.tolist() == [[48, 24, 0, 0, 48, 24]]
    theirs = drawn_by_diffusers(family.pipeline(), model)
    torch.testing.assert_close(drawn(found), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*_also_slow("sdxl-lcm", "ssd1b", "turbo"), "sd15-lcm"])
def test_a_trained_adapter_is_drawn_by_diffusers_as_by_a_sampler(
    families: dict[str, Family], name: str, tmp_path: Path
) -> None:
    family = families[name]
    unet = new_trained(PipelineFolder.of(family.model), family.model, seed=0)
    arrays = trainable_arrays(unet)
    generator = torch.Generator().manual_seed(1)
    for array in arrays.values():
        array += 0.2 * torch.randn(array.shape, generator=generator).numpy()
    load_arrays(unet, arrays)
    saved = save_for_diffusers(unet, "lora", tmp_path)
    sampler, pipeline = policy(family.model), family.pipeline()
    before = drawn(sampler)
    sampler.load(arrays)
    pipeline.load_lora_weights(str(saved))
    ours, theirs = drawn(sampler), drawn_by_diffusers(pipeline, family.model)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert (ours - before).abs().max() > 0.01


@pytest.mark.parametrize("name", [*_also_slow("sdxl-lcm", "ssd1b"), "sd15-lcm", "turbo"])
def test_the_whole_pipeline_of_a_section_draws_the_same(
    families: dict[str, Family], name: str
) -> None:
    model = families[name].model
    pipeline = whole_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, *PipelineFolder.of(model).latent_shape, generator=generator)
    theirs = pipeline(
        PROMPT,
        latents=noise,
        generator=generator,
        output_type="latent",
        **sampling_arguments(model, pipeline),
    ).images
    torch.testing.assert_close(drawn(policy(model)), theirs, rtol=1e-5, atol=1e-5)


def test_another_vae_decodes(families: dict[str, Family], tmp_path: Path) -> None:
    model = families["turbo"].model
    other = PipelineFolder.of(model).vae()
    bias = other.decoder.conv_out.bias
    assert bias is not None
    with torch.no_grad():
        bias += 0.25
    other.save_pretrained(tmp_path / "alone")
    changed = Model.model_validate(model.model_dump() | {"vae": str(tmp_path / "alone")})
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.1
    images = [decode_images(PipelineFolder.of(m).vae(), latents) for m in (model, changed)]
    uncut = (images[0] > 0) & (images[0] < 0.875)
    assert uncut.float().mean() > 0.5
    torch.testing.assert_close(images[1][uncut], images[0][uncut] + 0.125)
    sliced = Model.model_validate(changed.model_dump() | {"vae_slicing": True})
    torch.testing.assert_close(decode_images(PipelineFolder.of(sliced).vae(), latents), images[1])


def test_weights_that_lie_there_in_half_precision_alone_are_read(
    families: dict[str, Family], tmp_path: Path
) -> None:
    model = families["ssd1b"].model
    unet = PipelineFolder.of(model).unet()
    unet.half().save_pretrained(tmp_path, variant="fp16")
    changed = Model.model_validate(model.model_dump() | {"unet": str(tmp_path)})
    read = PipelineFolder.of(changed).unet()
    assert read.dtype == torch.float32
    for mine, theirs in zip(read.parameters(), unet.float().parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_folder_without_that_part_is_refused(families: dict[str, Family], tmp_path: Path) -> None:
    model = families["ssd1b"].model
    for part in ("unet", "vae"):
        wrong = Model.model_validate(model.model_dump() | {part: str(tmp_path)})
        with pytest.raises(ValueError, match=rf"holds no {part}: neither it nor its {part}/"):
            PipelineFolder.of(wrong)
