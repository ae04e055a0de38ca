"""Networks that share base tensors: what is shared, what is not, and whose gradient flows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from deploy.shapes.models import PIPELINES, new_unet
from learner.policy.denoiser import Denoiser
from learner.policy.precision import round_frozen
from learner.policy.text import Text
from learner.policy.trainable import make_trainable, trainable_arrays
from learner.policy.views import SamplingPolicy, policy_over, shared_view, with_lora
from learner.settings.model import Model

LORA = str(PIPELINES / "lcm-lora")


def unet(seed: int = 0) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_unet().requires_grad_(False).eval()


def trained(view: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    return make_trainable(view, "lora", rank=2, alpha=2, targets="attention", seed=3)


def call(network: UNet2DConditionModel, x: Tensor) -> Tensor:
    t_B, text = torch.tensor([481, 21]), torch.ones(2, 18, 64)
    return network(x, t_B, encoder_hidden_states=text).sample


def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_view_costs_no_memory_for_the_base() -> None:
    base = unet()
    view = shared_view(base)
    assert view is not base
    own = {p.data_ptr() for p in view.parameters()}
    assert own == {p.data_ptr() for p in base.parameters()}


def test_an_adapter_on_one_view_changes_no_other() -> None:
    base = unet()
    before = call(base, latents())
    policy, reference = shared_view(base), shared_view(base)
    for parameter in trained(policy):
        torch.nn.init.normal_(parameter)
    assert not torch.allclose(call(policy, latents()), before)
    torch.testing.assert_close(call(reference, latents()), before, rtol=0, atol=0)
    assert not any("lora" in name for name, _ in reference.named_parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_three_views_are_those_of_three_copies(checkpointing: bool) -> None:
    shared, lone = unet(), [unet(), unet(), unet()]
    views = [shared_view(shared), shared_view(shared), with_lora(shared, LORA)]
    copies = [lone[0], lone[1], with_lora(lone[2], LORA)]
    gradients = []
    for policy, reference, consistency in (views, copies):
        parameters = trained(policy)
        for i, parameter in enumerate(parameters):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
        if checkpointing:
            policy.train()
            policy.enable_gradient_checkpointing()
        x = call(policy, latents()) - call(reference, latents())
        call(consistency, x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
        gradients.append([p.grad for p in parameters])
        assert not any(p.grad is not None for p in [*reference.parameters()])
        assert not any(p.grad is not None for p in [*consistency.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_consistency_view_is_the_base_with_the_adapter_as_diffusers_loads_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINES / "base", dtype=torch.float32)
    view = with_lora(pipeline.unet, LORA)
    plain = call(pipeline.unet, latents())
    got = call(view, latents())
    pipeline.load_lora_weights(LORA)
    torch.testing.assert_close(got, call(pipeline.unet, latents()))
    assert not torch.allclose(got, plain)


def test_a_lora_in_the_names_of_the_first_trainers_is_understood(tmp_path: Path) -> None:
    # As latent-consistency/lcm-lora-sdv1-5 on the hub is named, its scale beside the weights.
    layers = load_file(Path(LORA) / "pytorch_lora_weights.safetensors")
    renamed = {}
    for name, tensor in layers.items():
        module, _, part = name.removeprefix("unet.").rpartition(".lora_")
        module = f"lora_unet_{module.replace('.', '_')}"
        down = part == "A.weight"
        renamed[f"{module}.lora_{'down' if down else 'up'}.weight"] = tensor
        if down:
            renamed[f"{module}.alpha"] = torch.tensor(float(len(tensor)))
    save_file(renamed, tmp_path / "pytorch_lora_weights.safetensors")
    own = with_lora(unet(), LORA)
    torch.testing.assert_close(
        call(with_lora(unet(), str(tmp_path)), latents()), call(own, latents())
    )


def test_a_folder_without_a_lora_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no LoRA for this UNet"):
        with_lora(unet(), str(tmp_path))


def test_a_lora_of_another_network_is_an_error(tmp_path: Path) -> None:
    network = unet()
    trained(network)
    layers = {name: t.repeat(2, 2) for name, t in get_peft_model_state_dict(network).items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    with pytest.raises(ValueError, match="holds no LoRA for this UNet"):
        with_lora(unet(), str(tmp_path))


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_policy_to_sample_from_draws_what_the_learners_would(trainable: str) -> None:
    model = Model.model_validate(
        {
            "path": "x",
            "trainable": trainable,
            "lora_rank": 2,
            "lora_alpha": 6,
            "lora_targets": "all",
        }
    )
    base, learners = unet(), policy_over(unet(), model, seed=3)
    with torch.no_grad():
        for i, parameter in enumerate(p for p in learners.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.05 * noise)
    untouched = call(base, latents())
    sampler = SamplingPolicy(base, model, seed=3)
    torch.testing.assert_close(call(sampler.unet, latents()), untouched)
    # Twice: what was added before must not be added again.
    for _ in range(2):
        sampler.load(trainable_arrays(learners))
    torch.testing.assert_close(
        call(sampler.unet, latents()), call(learners, latents()), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(call(sampler.unet, latents()), untouched)
    torch.testing.assert_close(call(base, latents()), untouched, rtol=0, atol=0)


def small_adapter(learners: UNet2DConditionModel, size: float) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(p for p in learners.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.copy_(size * noise)


@pytest.mark.parametrize("grid", [torch.float16, torch.bfloat16])
def test_on_weights_from_half_precision_a_small_adapter_draws_in_bf16_what_the_learners_does(
    grid: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = Model(path="x", precision="bf16", lora_rank=2, lora_alpha=2, lora_targets="all")
    base = unet().to(memory_format=torch.channels_last)  # as the sampler has it
    for parameter in base.parameters():
        parameter.data = parameter.data.to(grid).float()
    learners = policy_over(base, model, seed=3)
    small_adapter(learners, 1e-3)  # products of two are about 1e-6
    sampler = SamplingPolicy(base, model, seed=3)
    assert [r for r in caplog.messages if "most weights have been half precision" in r]
    sampler.load(trainable_arrays(learners))
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    round_frozen(learners, "bf16")
    x, t_B, text = latents(), torch.tensor([481, 21]), Text(torch.ones(2, 18, 64))
    with torch.inference_mode():
        drawn = Denoiser(sampler.unet, "bf16")(x, t_B, text)
        expected = Denoiser(learners, "bf16")(x, t_B, text)
    assert torch.equal(drawn, expected)


def test_where_float32_is_computed_in_or_trained_in_an_adapter_is_merged() -> None:
    on_grid = unet()
    for parameter in on_grid.parameters():
        parameter.data = parameter.data.half().float()
    for base, precision in ((unet(), "bf16"), (on_grid, "fp32"), (on_grid, "bf16")):
        model = Model.model_validate({"path": "x", "precision": precision, "lora_rank": 2})
        sampler = SamplingPolicy(base, model, seed=3)
        beside = any("lora_" in name for name, _ in sampler.unet.named_parameters())
        assert beside == (base is on_grid and precision == "bf16")
        kept = torch.bfloat16 if precision == "bf16" else torch.float32
        assert sampler.unet.conv_in.weight.dtype == kept


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_new_weights_are_rounded_as_autocast_would(trainable: str) -> None:
    model = Model.model_validate({"path": "x", "trainable": trainable, "lora_rank": 2})
    base = unet()
    learners = policy_over(base, model, seed=3)
    small_adapter(learners, 0.05)
    in_float32 = SamplingPolicy(base, model, seed=3)
    rounded = SamplingPolicy(base, model.model_copy(update={"precision": "bf16"}), seed=3)
    for sampler in (in_float32, rounded):
        sampler.load(trainable_arrays(learners))
    x, t_B, text = latents(), torch.tensor([481, 21]), Text(torch.ones(2, 18, 64))
    with torch.inference_mode():
        drawn, expected = (
            Denoiser(sampler.unet, "bf16")(x, t_B, text) for sampler in (rounded, in_float32)
        )
    assert torch.equal(drawn, expected)


def test_weights_of_another_model_are_refused_and_change_nothing() -> None:
    model = Model(path="x", lora_rank=2, lora_alpha=2)
    sampler = SamplingPolicy(unet(), model, seed=3)
    before = call(sampler.unet, latents())
    with pytest.raises(ValueError, match="do not fit this model"):
        sampler.load({"odd": np.zeros(3, np.float32)})
    torch.testing.assert_close(call(sampler.unet, latents()), before, rtol=0, atol=0)
