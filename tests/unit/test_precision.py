"""bfloat16 inside the networks, float32 around them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.rollout import Group, Policy
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import load_config
from deploy.shapes.models import new_unet
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.precision import computes_bf16, computing_in
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.settings.types import Precision


def predicted(precision: Precision, unet: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = Text(torch.randn(2, 5, 64, generator=generator))
    return Denoiser(unet, precision)(x, torch.full((2,), 500), text)  # pyright: ignore


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_unet()


def test_bf16_computes_otherwise_and_what_leaves_the_network_is_float32(
    unet: torch.nn.Module,
) -> None:
    with torch.no_grad():
        whole, half = predicted("fp32", unet), predicted("bf16", unet)
    assert half.dtype == torch.float32
    assert not torch.equal(whole, half)
    assert (whole - half).norm() < 0.05 * whole.norm()


def test_auto_is_bf16_where_the_device_has_it(unet: torch.nn.Module) -> None:
    same = "bf16" if computes_bf16("cpu") else "fp32"
    with torch.no_grad():
        torch.testing.assert_close(predicted("auto", unet), predicted(same, unet), rtol=0, atol=0)
    with computing_in("auto", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == computes_bf16("cpu")


def test_adapters_and_their_gradients_are_float32(unet: torch.nn.Module) -> None:
    trained = make_trainable(unet, "lora", rank=2, alpha=2)  # pyright: ignore
    gradients = []
    for precision in ("fp32", "bf16"):
        for weight in trained:
            weight.grad = None
        predicted(precision, unet).square().mean().backward()
        assert {w.dtype for w in trained} == {torch.float32}
        assert {w.grad.dtype for w in trained if w.grad is not None} == {torch.float32}
        gradients.append(torch.cat([w.grad.flatten() for w in trained if w.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@pytest.mark.parametrize("preset", ["smoke", "smoke-sqdf"])
def test_samplers_compute_in_it(pipelines: Path, preset: str) -> None:
    def sampled(precision: str) -> Tensor:
        path = pipelines / ("lcm" if preset == "smoke" else "base")
        values = [f"model.path={path}", f"model.precision={precision}"]
        if preset == "smoke":
            values.append(f"model.teacher={pipelines}/base")
        config = load_config(f"deploy/configs/{preset}.yaml", values)
        policy: Policy = policy_of(config, PipelineFolder.locate(str(path)), 1, only_clean=True)
        (rollout,) = policy.sample([Group(0, "a red circle", 7)])
        return torch.from_numpy(rollout.latents).float()

    whole, half = sampled("fp32"), sampled("bf16")
    assert not torch.equal(whole, half)
    assert (whole - half).norm() < 0.2 * whole.norm()
