"""Planned operations are those that samplers and policy steps do when they run."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from actors.rollout import Group
from deploy.bench.gpu_learner import Engines, policy_step
from deploy.bench.random_parts import RandomPipeline
from deploy.doctor.flop_plan import POLICY_PARTS, flop_plan
from deploy.doctor.meta_networks import (
    Networks,
    architecture,
    parameters_of,
    unet_on_meta,
    with_consistency,
)
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import RunConfig, load_config
from deploy.shapes.models import PIPELINES
from learner.policy.denoiser import Denoiser
from learner.policy.flops import FlopMeter
from learner.settings.model import Model
from tests.unit.learner_fakes import HandEngine

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
# What fused kernels of a CPU do is not counted by torch.
PLAIN = ("name=n", "model.attention=plain")
DECODED = "shapes-sqdf-aesthetic"
BRIGHTNESS = "rewards={brightness: {kind: 'tests.unit.learner_fakes:Brightness'}}"
slow = pytest.mark.slow


def _config(preset: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{preset}.yaml", [*PLAIN, *overrides])


def _by_hand(config: RunConfig, module: Any) -> Any:
    if isinstance(module, Denoiser) and config.learner.gradient_checkpointing:
        module.unet.enable_gradient_checkpointing()
    return HandEngine(module)


def _done(config: RunConfig) -> int:
    """Operations of a policy step, when the states of its prompts are known."""
    step = policy_step(config, "cpu", engines=Engines(_by_hand, _by_hand))
    step()
    meter = FlopMeter()
    with meter.counted("step"):
        step()
    return meter.total


def _planned(config: RunConfig) -> dict[str, int]:
    return flop_plan(config, Networks(config))


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        pytest.param("smoke-sqdf", ("method.surrogate.backbone=unet_encoder",), id="surrogate"),
        pytest.param(
            DECODED,
            (BRIGHTNESS, "model.guidance_scale=2", "learner.gradient_checkpointing=true"),
            id="decoded, checkpointed, guided",
            marks=slow,
        ),
        pytest.param(
            DECODED,
            (BRIGHTNESS, "method.states.store_reference=true"),
            id="stored reference",
            marks=slow,
        ),
        pytest.param(DECODED, (BRIGHTNESS, "method.clean={by: tweedie}"), id="tweedie", marks=slow),
    ],
)
def test_a_step_of_sqdf_costs_what_is_planned(preset: str, overrides: tuple[str, ...]) -> None:
    config = _config(preset, "method.policy_batch=2", *overrides)
    planned = _planned(config)
    assert planned["policy_row"] == sum(planned[f"policy_row_{part}"] for part in POLICY_PARTS)
    assert _done(config) == 2 * planned["policy_row"]


@pytest.mark.slow
def test_a_step_of_lasro_costs_what_is_planned_with_teacher_and_target() -> None:
    config = _config(
        "smoke",
        "method.policy_batch=2",
        "method.surrogate.backbone=unet",
        "method.anchor={ratio: null, weight: 1, batch: 2}",
    )
    planned = _planned(config)
    assert planned["policy_row_untracked"] > 0
    # The least of its calls, those of the anchor's target, are 7 % of it.
    assert _done(config) == pytest.approx(2 * planned["policy_row"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "calls"),
    [
        ((), 50 * 2),
        (("method.states.store_reference=true",), 50 * 2 + 4 * 2),
    ],
)
def test_a_picture_costs_a_call_for_every_step_and_kept_noise(
    overrides: tuple[str, ...], calls: int
) -> None:
    config = _config("smoke-sqdf", *overrides)
    one_call = _planned(_config("shapes-ddpo", "model.guidance_scale=1"))["sampling_picture"] // 50
    assert _planned(config)["sampling_picture"] == calls * one_call


@pytest.mark.slow
def test_a_sampler_counts_what_is_planned_for_its_pictures() -> None:
    config = _config("smoke-sqdf", "method.states.score_clean=true")
    pipeline = RandomPipeline.like(config.model, seed=0, device="cpu")
    (rollout,) = policy_of(config, pipeline, 1).sample([Group(0, "a picture", seed=0)])
    assert rollout.flops == _planned(config)["sampling_picture"]


@pytest.mark.slow
def test_an_lcm_lora_has_as_many_parameters_as_is_published() -> None:
    sd15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    base = unet_on_meta(architecture(sd15), Model(path=sd15))
    view = with_consistency(base, "latent-consistency/lcm-lora-sdv1-5")
    assert (parameters_of(view) - parameters_of(base)) / 1e6 == pytest.approx(67.5, rel=0.005)


def test_a_lora_here_has_the_shapes_of_its_file(tmp_path: Path) -> None:
    networks = Networks(_config("smoke-sqdf"))
    weights = load_file(PIPELINES / "lcm-lora" / "pytorch_lora_weights.safetensors")
    assert networks.consistency_params == sum(weight.size for weight in weights.values())
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no LoRA in safetensors"):
        with_consistency(networks.base, str(tmp_path))
