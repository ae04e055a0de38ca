"""bfloat16 inside the networks, float32 around them."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.rollout import Group, Policy
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import load_config
from deploy.shapes.models import new_unet
from learner.methods.parts import Parts
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.precision import computes_bf16, computing_in, round_frozen
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.policy.views import policy_over, shared_view
from learner.settings.learner import Learner
from learner.settings.model import Model
from learner.settings.types import Precision
from tests.unit.learner_fakes import HandEngine


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


def adapted(*, rounded: Precision | None = None, targets: str = "all") -> Any:
    """A UNet with an adapter that does something, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = new_unet()
    for i, weight in enumerate(make_trainable(network, "lora", rank=2, alpha=2, targets=targets)):
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(i))
    if rounded is not None:
        round_frozen(network, rounded)
    return network


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_frozen_weights_that_are_rounded_once_give_the_same_bits(
    targets: str, checkpointing: bool
) -> None:
    found = []
    for rounded in (None, "bf16"):
        network = adapted(rounded=rounded, targets=targets).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        output = predicted("bf16", network)
        output.square().mean().backward()
        found.append([output, *(p.grad for p in network.parameters() if p.requires_grad)])
    assert len(found[0]) > 30
    assert all(torch.equal(once, always) for once, always in zip(*found, strict=True))


def test_only_frozen_weights_of_products_are_rounded() -> None:
    plain, network = adapted(), adapted(rounded="bf16")
    kinds = {name: p.dtype for name, p in network.named_parameters()}
    assert kinds["conv_in.weight"] == kinds["time_embedding.linear_1.bias"] == torch.bfloat16
    for (name, before), after in zip(plain.named_parameters(), network.parameters(), strict=True):
        if "lora_" in name or "norm" in name:
            assert after.dtype == torch.float32
            assert torch.equal(after, before)
        else:
            assert torch.equal(after, before.to(torch.bfloat16)), name


def test_what_is_all_trained_is_rounded_only_where_nobody_trains_it(unet: torch.nn.Module) -> None:
    trained = copy.deepcopy(unet).requires_grad_(True)
    round_frozen(trained, "bf16")
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    with torch.no_grad():
        before = predicted("bf16", trained)
        round_frozen(trained, "bf16", trained=True)
        assert trained.conv_in.weight.dtype == torch.bfloat16  # pyright: ignore
        assert torch.equal(predicted("bf16", trained), before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_is_rounded_where_float32_is_computed_in(device: str) -> None:
    network = adapted().to(device)
    round_frozen(network, "bf16" if device == "meta" else "fp32")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    # Autocast is off, so an adapter's input has its weights' type anyway.
    layers = [m for m in network.modules() if hasattr(m, "cast_input_dtype_enabled")]
    assert layers
    assert all(layer.cast_input_dtype_enabled for layer in layers)


def test_a_view_of_rounded_weights_is_rounded_and_a_copy_made_before_is_not(
    unet: torch.nn.Module,
) -> None:
    base = copy.deepcopy(unet).requires_grad_(False)
    view, copied = shared_view(base), copy.deepcopy(base)
    round_frozen(base, "bf16")
    assert {p.data_ptr() for p in view.parameters()} == {p.data_ptr() for p in base.parameters()}
    assert {p.dtype for p in copied.parameters()} == {torch.float32}


def test_a_learner_rounds_what_it_places_and_its_policy_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("learner.methods.parts.Alternating", lambda *_, **__: "the method")
    model, base = Model(path="x", precision="bf16", lora_rank=2), new_unet().requires_grad_(False)
    policy = Denoiser.of(policy_over(base, model, seed=0), model)
    given: Any = SimpleNamespace(model=model, learner=Learner(), seat=None)
    nothing: Any = None
    engine: Any = HandEngine(policy)
    parts = Parts(given, nothing, engine, nothing, nothing, ["2step"], nothing)
    teacher: Any = new_unet().requires_grad_(False)
    assert parts.placed(teacher).precision == "bf16"
    assert teacher.conv_in.weight.dtype == torch.bfloat16
    # A surrogate may still copy blocks of the base.
    assert base.conv_in.weight.dtype == torch.float32
    assert str(parts.alternating(nothing, nothing)) == "the method"
    assert base.conv_in.weight.dtype == torch.bfloat16
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}


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
