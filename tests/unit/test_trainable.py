"""Which weights are trained, how they travel, and that diffusers loads what was saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from deploy.shapes.models import (
    guided_pipeline,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
)
from learner.policy.trainable import (
    TARGETS,
    Kind,
    copied,
    load_arrays,
    make_trainable,
    save_for_diffusers,
    trainable_arrays,
)

every_kind = pytest.mark.parametrize("kind", ["lora", "full"])


def base() -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_unet().eval()


def trainable(kind: Kind, *, seed: int = 1, targets: Any = "attention") -> UNet2DConditionModel:
    unet = base()
    make_trainable(unet, kind, rank=2, alpha=2, targets=targets, seed=seed)
    return unet


def trained(kind: Kind) -> UNet2DConditionModel:
    """As if training had moved every trained tensor."""
    unet = trainable(kind)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return unet


@torch.no_grad()
def eps(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 64, generator=generator)
    return unet(x, torch.tensor([999, 20]), encoder_hidden_states=text).sample


@pytest.fixture(scope="module")
def new_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], StableDiffusionPipeline]:
    """Makes pipelines around the untouched UNet."""
    tokenizer = new_tokenizer(tmp_path_factory.mktemp("tokenizer"))

    return lambda: guided_pipeline(new_vae(), new_text_encoder(tokenizer), tokenizer, base())


# What is trained


def test_an_adapter_freezes_every_weight_of_the_unet_itself() -> None:
    names = {name for name, p in trainable("lora").named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)


def test_an_untrained_adapter_changes_nothing() -> None:
    assert torch.equal(eps(trainable("lora")), eps(base()))


def test_training_all_weights_leaves_none_frozen() -> None:
    assert all(parameter.requires_grad for parameter in trainable("full").parameters())


def test_the_returned_parameters_are_those_that_are_trained() -> None:
    unet = base()
    returned = make_trainable(unet, "lora", rank=2, alpha=2, targets="attention")
    expected = [p for p in unet.parameters() if p.requires_grad]
    assert [id(p) for p in returned] == [id(p) for p in expected]


@pytest.mark.parametrize("targets", TARGETS)
def test_every_named_target_is_found_in_the_unet(targets: str) -> None:
    names = [name for name, p in trainable("lora", targets=targets).named_parameters()]
    adapted = {name.split(".lora_")[0] for name in names if ".lora_" in name}
    missing = {
        target for target in TARGETS[targets] if not any(a.endswith(target) for a in adapted)
    }
    assert missing == set()


def test_a_list_of_modules_adapts_only_those() -> None:
    unet = trainable("lora", targets=("to_q",))
    names = [name for name, p in unet.named_parameters() if p.requires_grad]
    assert all(".to_q." in name for name in names)


def test_equal_seeds_give_equal_adapters() -> None:
    one, two = trainable_arrays(trainable("lora")), trainable_arrays(trainable("lora"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_another_seed_gives_another_adapter() -> None:
    one, two = trainable_arrays(trainable("lora")), trainable_arrays(trainable("lora", seed=9))
    assert not all(np.array_equal(one[name], two[name]) for name in one)


def test_adding_an_adapter_leaves_the_global_random_state_alone() -> None:
    unet, before = base(), torch.get_rng_state()
    make_trainable(unet, "lora", rank=2, alpha=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


# How weights travel


@every_kind
def test_arrays_carry_the_policy_over(kind: Kind) -> None:
    source, goal = trained(kind), trainable(kind)
    load_arrays(goal, trainable_arrays(source))
    assert torch.equal(eps(goal), eps(source))


def test_arrays_are_copies() -> None:
    unet = trainable("lora")
    arrays = trainable_arrays(unet)
    before = {name: array.copy() for name, array in arrays.items()}
    load_arrays(unet, trainable_arrays(trained("lora")))
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_an_array_is_its_own_and_in_c_order_whatever_it_is_made_of(kind: torch.dtype) -> None:
    value = torch.arange(24.0).reshape(1, 2, 3, 4).to(kind)
    value = value.contiguous(memory_format=torch.channels_last)
    array = copied(value)
    value.zero_()
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array.flatten(), np.arange(24, dtype=np.float32))


def test_arrays_that_cannot_be_written_to_are_loaded() -> None:
    arrays = trainable_arrays(trained("lora"))
    for array in arrays.values():
        array.flags.writeable = False
    goal = trainable("lora")
    load_arrays(goal, arrays)
    assert torch.equal(eps(goal), eps(trained("lora")))


def test_arrays_of_another_model_section_are_refused() -> None:
    arrays = trainable_arrays(trainable("lora", targets="all"))
    with pytest.raises(ValueError, match=r"names differ.*same model section"):
        load_arrays(trainable("lora"), arrays)


def test_an_adapter_of_another_rank_is_refused() -> None:
    other = base()
    make_trainable(other, "lora", rank=4, alpha=4, targets="attention")
    with pytest.raises(ValueError, match=r"shape.*same model section"):
        load_arrays(trainable("lora"), trainable_arrays(other))


def test_refused_arrays_leave_every_weight_as_it_was() -> None:
    goal, arrays = trainable("lora"), trainable_arrays(trained("lora"))
    last = list(arrays)[-1]
    arrays[last] = np.zeros((1, 1), np.float32)
    with pytest.raises(ValueError, match="shape"):
        load_arrays(goal, arrays)
    assert torch.equal(eps(goal), eps(trainable("lora")))


# What diffusers loads


def test_a_saved_adapter_gives_the_same_policy_in_diffusers(
    tmp_path: Path, new_pipeline: Callable[[], StableDiffusionPipeline]
) -> None:
    unet = trained("lora")
    pipe = new_pipeline()
    pipe.load_lora_weights(str(save_for_diffusers(unet, "lora", tmp_path)))
    assert torch.allclose(eps(pipe.unet), eps(unet), atol=1e-6)


def test_the_saved_adapter_is_not_the_base(
    tmp_path: Path, new_pipeline: Callable[[], StableDiffusionPipeline]
) -> None:
    pipe = new_pipeline()
    pipe.load_lora_weights(str(save_for_diffusers(trained("lora"), "lora", tmp_path)))
    assert not torch.allclose(eps(pipe.unet), eps(base()), atol=1e-3)


def test_a_saved_adapter_keeps_an_alpha_that_is_not_its_rank(
    tmp_path: Path, new_pipeline: Callable[[], StableDiffusionPipeline]
) -> None:
    unet = base()
    make_trainable(unet, "lora", rank=2, alpha=8, targets="attention")
    load_arrays(unet, trainable_arrays(trained("lora")))
    pipe = new_pipeline()
    pipe.load_lora_weights(str(save_for_diffusers(unet, "lora", tmp_path)))
    assert torch.allclose(eps(pipe.unet), eps(unet), atol=1e-6)


def test_a_saved_adapter_of_all_layers_gives_the_same_policy_in_diffusers(
    tmp_path: Path, new_pipeline: Callable[[], StableDiffusionPipeline]
) -> None:
    unet = trainable("lora", targets="all")
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    pipe = new_pipeline()
    pipe.load_lora_weights(str(save_for_diffusers(unet, "lora", tmp_path)))
    assert torch.allclose(eps(pipe.unet), eps(unet), atol=1e-5)


def test_a_saved_unet_gives_the_same_policy_in_diffusers(tmp_path: Path) -> None:
    unet = trained("full")
    loaded = UNet2DConditionModel.from_pretrained(save_for_diffusers(unet, "full", tmp_path))
    assert torch.allclose(eps(loaded.eval()), eps(unet), atol=1e-6)
