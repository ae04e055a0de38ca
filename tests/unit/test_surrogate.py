"""The surrogate reward: both backbones alone, and fitted to groups through its trainer."""

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.shapes.models import new_unet
from learner.group_batch import GroupBatch
from learner.policy.precision import computes_bf16
from learner.policy.text import Text
from learner.settings.surrogate import Surrogate
from learner.surrogate import Backbone, new_surrogate
from learner.surrogate_training import RewardMoments, SurrogateTrainer

BACKBONES: tuple[Backbone, ...] = ("unet_encoder", "unet", "conv")
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


class HandEngine:
    """A module and its optimizer, without ranks."""

    device = torch.device("cpu")

    def __init__(self, module: nn.Module, learning_rate: float) -> None:
        self.module = module
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)

    def __call__(self, *args: Any) -> Tensor:
        return self.module(*args)

    def update(self, losses: Iterable[Tensor]) -> float:
        self._optimizer.zero_grad()
        for loss in losses:
            loss.backward()
        self._optimizer.step()
        return 0.0


def encode(prompts: list[str]) -> Text:
    """Text states of a prompt: noise that it always gets again."""
    seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
    return Text(
        torch.stack(
            [torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
    )


def source() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_unet()


def untrained(backbone: Backbone, *, heads: int = 1, seed: int = 1, unet: Any = None) -> nn.Module:
    return new_surrogate(
        backbone, unet or source(), num_steps=2, heads=heads, timestep=0, seed=seed
    )


def awake(backbone: Backbone, *, heads: int = 1) -> nn.Module:
    """With scores that are not 0."""
    surrogate = untrained(backbone, heads=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        nn.init.normal_(surrogate.head.out.weight)  # pyright: ignore
    return surrogate


def inputs(rows: int = 3) -> tuple[Tensor, Text, Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    text = Text(torch.randn(rows, 5, 64, generator=generator))
    return latents, text, torch.arange(rows) % 2


def groups(count: int = 8, members: int = 3) -> GroupBatch:
    """Rewards that follow from the latents and from which group they are in."""
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(count, members, 2, 4, 8, 8, generator=generator)
    sign_G = torch.tensor([1.0, -1.0]).repeat(count // 2)
    rewards = latents[..., 0, :, :].mean(dim=(3, 4)) * sign_G[:, None, None]
    return GroupBatch(range(count), [f"prompt {i}" for i in range(count)], latents, rewards)


def fitted(
    backbone: Backbone, steps: int, **settings: Any
) -> tuple[SurrogateTrainer, HandEngine, list[dict[str, float]]]:
    options = Surrogate.model_validate({"backbone": backbone, "loss": "all_pairs", **settings})
    engine = HandEngine(untrained(backbone, heads=options.heads), learning_rate=1e-3)
    trainer = SurrogateTrainer(options, engine, encode)  # pyright: ignore[reportArgumentType]
    batch = groups()
    trainer.moments = RewardMoments.of(batch.rewards_GNK)
    return trainer, engine, [trainer.step(batch) for _ in range(steps)]


# The module


@every_backbone
def test_it_gives_one_score_a_row_and_head(backbone: Backbone) -> None:
    assert untrained(backbone, heads=4)(*inputs(3)).shape == (3, 4)


@every_backbone
def test_its_scores_are_those_of_the_convolution_that_its_last_layer_is(backbone: Backbone) -> None:
    head: Any = awake(backbone, heads=4).head
    nn.init.normal_(head.out.bias)
    with torch.no_grad():
        hidden_BF = torch.randn(5, head.hidden.out_features)
        expected = head.out(hidden_BF[:, :, None])[:, :, 0]
        torch.testing.assert_close(head._scores(hidden_BF), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["unet", "unet_encoder"])
def test_checkpointing_changes_what_is_kept_and_no_gradient(backbone: Backbone) -> None:
    kept: dict[bool, int] = {}
    gradients: dict[bool, list[Tensor]] = {}
    for checkpointing in (False, True):
        surrogate: Any = awake(backbone)
        if checkpointing:
            surrogate.enable_gradient_checkpointing()
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            score = surrogate(*inputs()).sum()
        kept[checkpointing] = sum(sizes)
        score.backward()
        gradients[checkpointing] = [p.grad for p in surrogate.parameters() if p.grad is not None]
    assert kept[True] < 0.5 * kept[False]
    assert len(gradients[True]) == len(gradients[False]) > 0
    for one, other in zip(gradients[True], gradients[False], strict=True):
        torch.testing.assert_close(one, other)


@every_backbone
def test_it_starts_at_exactly_zero(backbone: Backbone) -> None:
    assert bool((untrained(backbone, heads=2)(*inputs()) == 0).all())


@every_backbone
def test_its_gradient_reaches_the_latents(backbone: Backbone) -> None:
    latents, text, step = inputs()
    latents.requires_grad_(True)
    awake(backbone)(latents, text, step).sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad.flatten(1).norm(dim=1) > 0).all())


@every_backbone
def test_a_row_does_not_depend_on_its_neighbours(backbone: Backbone) -> None:
    surrogate, (latents, text, step) = awake(backbone), inputs()
    alone = surrogate(latents[1:2], text[1:2], step[1:2])
    assert torch.allclose(surrogate(latents, text, step)[1:2], alone, atol=1e-5)


@every_backbone
def test_bf16_changes_scores_little_and_keeps_them_and_gradients_in_float32(
    backbone: Backbone,
) -> None:
    latents, text, step = inputs(8)
    latents.requires_grad_(True)
    full, half = awake(backbone), awake(backbone)
    half.precision = "bf16"
    exact_BH, rounded_BH = full(latents, text, step), half(latents, text, step)
    assert rounded_BH.dtype == torch.float32
    assert not torch.equal(exact_BH, rounded_BH)
    assert float((exact_BH - rounded_BH).detach().abs().max() / exact_BH.detach().std()) < 0.1
    rounded_BH.sum().backward()
    assert latents.grad is not None
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in half.parameters())


@every_backbone
def test_heads_differ_after_a_step_on_one_loss(backbone: Backbone) -> None:
    surrogate = untrained(backbone, heads=2)
    HandEngine(surrogate, 1e-2).update([surrogate(*inputs()).sum()])
    scores_BH = surrogate(*inputs())
    assert not torch.allclose(scores_BH[:, 0], scores_BH[:, 1])


@every_backbone
def test_equal_seeds_give_equal_weights(backbone: Backbone) -> None:
    one, two = untrained(backbone, seed=5), untrained(backbone, seed=5)
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@every_backbone
def test_another_seed_gives_another_head(backbone: Backbone) -> None:
    one, two = untrained(backbone, seed=5), untrained(backbone, seed=6)
    assert not torch.equal(one.head.hidden.weight, two.head.hidden.weight)  # pyright: ignore


@every_backbone
def test_making_one_leaves_the_global_random_state_alone(backbone: Backbone) -> None:
    unet, before = source(), torch.get_rng_state()
    untrained(backbone, unet=unet)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [8, 7])
def test_the_whole_unets_maps_are_those_of_its_own_forward_pass(size: int) -> None:
    unet, own = source(), []
    whole = untrained("unet", unet=unet)
    for block in unet.up_blocks:  # after the copy, which would share the hooks
        block.register_forward_hook(lambda module, given, out: own.append(out))
    latents, text = torch.randn(2, 4, size, size), torch.randn(2, 5, 64)
    unet(latents, 0, encoder_hidden_states=text)
    read: list[Tensor] = []
    whole.head.register_forward_pre_hook(lambda module, given: read.extend(given[0]))  # pyright: ignore
    whole(latents, Text(text), torch.zeros(2, dtype=torch.int64))
    assert [torch.equal(a, b) for a, b in zip(read[1:], own, strict=True)] == [True, True]


@every_backbone
def test_a_frozen_source_gives_a_trainable_surrogate(backbone: Backbone) -> None:
    surrogate = untrained(backbone, unet=source().requires_grad_(False))
    assert all(parameter.requires_grad for parameter in surrogate.parameters())


@every_backbone
def test_a_frozen_source_stays_frozen(backbone: Backbone) -> None:
    unet = source().requires_grad_(False)
    untrained(backbone, unet=unet)
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_training_the_copy_does_not_move_the_source() -> None:
    unet = source()
    before = [parameter.detach().clone() for parameter in unet.parameters()]
    surrogate = untrained("unet_encoder", unet=unet)
    nn.init.ones_(surrogate.head.out.weight)  # pyright: ignore
    HandEngine(surrogate, 1e-2).update([surrogate(*inputs()).sum()])
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))


# Fitted


@every_backbone
def test_the_first_step_costs_ln_2(backbone: Backbone) -> None:
    _, _, metrics = fitted(backbone, 1)
    assert metrics[0]["ranking_loss"] == pytest.approx(0.693147, abs=1e-5)


@every_backbone
def test_before_the_first_step_accuracy_is_one_half(backbone: Backbone) -> None:
    _, _, metrics = fitted(backbone, 1)
    assert metrics[0]["train_accuracy"] == 0.5


@pytest.mark.parametrize(
    "backbone",
    [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("unet", "unet_encoder")), "conv"],
)
def test_it_overfits_eight_groups_within_sixty_steps(backbone: Backbone) -> None:
    trainer, _, _ = fitted(backbone, 60)
    assert trainer.accuracy(groups()) == [1.0, 1.0]


def changed_by(backbone: Backbone, change: Callable[..., tuple[Tensor, Text, Tensor]]) -> bool:
    """Whether a change of the inputs changes scores after a few steps."""
    _, engine, _ = fitted(backbone, 4)
    with torch.no_grad():
        before, after = engine.module(*inputs()), engine.module(*change(*inputs()))
    return bool(((before - after).abs() > 1e-6).all())


@every_backbone
def test_after_a_few_steps_the_sampling_step_matters(backbone: Backbone) -> None:
    assert changed_by(backbone, lambda latents, text, step: (latents, text, 1 - step))


@every_backbone
def test_after_a_few_steps_the_prompt_matters(backbone: Backbone) -> None:
    def of_others(latents: Tensor, text: Text, step: Tensor) -> tuple[Tensor, Text, Tensor]:
        return latents, Text(text.states_BLE.roll(1, 0)), step

    assert changed_by(backbone, of_others)


def test_regression_brings_the_scores_to_the_standardised_rewards() -> None:
    _, _, metrics = fitted("conv", 40, regression_weight=1.0)
    assert metrics[-1]["regression_loss"] < 0.5 * metrics[0]["regression_loss"]


def test_groups_whose_rewards_all_tie_give_a_ranking_no_gradient() -> None:
    trainer, engine, _ = fitted("conv", 2, regression_weight=0.0)
    batch = groups()
    tied = GroupBatch(
        batch.tickets, batch.prompts, batch.latents_GNKCHW, torch.ones_like(batch.rewards_GNK)
    )
    assert trainer.step(tied)["ranking_loss"] == 0.0
    assert not any(bool(p.grad.any()) for p in engine.module.parameters() if p.grad is not None)


def test_accuracy_is_measured_without_a_gradient() -> None:
    trainer, engine, _ = fitted("conv", 1)
    for parameter in engine.module.parameters():
        parameter.grad = None
    trainer.accuracy(groups())
    assert all(parameter.grad is None for parameter in engine.module.parameters())


def test_what_is_measured_goes_through_in_parts_of_a_step() -> None:
    whole, engine, _ = fitted("conv", 2)
    trainer = SurrogateTrainer(whole._settings, engine, encode, groups_at_once=3)  # pyright: ignore
    trainer.moments, rows = whole.moments, list[int]()
    hook = engine.module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    judged = trainer.judge([groups()])
    hook.remove()
    assert rows == [18, 18, 12]
    for name, expected in whole.judge([groups()[:1], groups()[1:]]).items():
        assert judged[name] == pytest.approx(expected, abs=1e-5)


class Promising(nn.Module):
    """Two heads that score every latent 2 and 3."""

    def forward(self, latents: Tensor, text: Text, step_B: Tensor) -> Tensor:
        return torch.tensor([[2.0, 3.0]]).expand(len(latents), 2)


def test_the_gap_is_what_the_scores_promise_beyond_the_reward() -> None:
    engine: Any = SimpleNamespace(module=Promising(), device=torch.device("cpu"))
    trainer = SurrogateTrainer(Surrogate(heads=2), engine, encode)
    trainer.standardise(groups().rewards_GNK)
    # Standardised rewards are 0 in the mean.
    assert trainer.judge([groups()])["gap"] == pytest.approx([2.5, 2.5], abs=1e-5)


# Moments


def test_standardised_rewards_have_mean_0_and_deviation_1_at_each_step() -> None:
    rewards_GNK = torch.randn(20, 3, 2) * torch.tensor([5.0, 0.1]) + torch.tensor([100.0, -3.0])
    flat = RewardMoments.of(rewards_GNK).standardise(rewards_GNK).flatten(0, 1)
    assert torch.allclose(flat.mean(dim=0), torch.zeros(2), atol=1e-3)
    assert torch.allclose(flat.std(dim=0), torch.ones(2), atol=1e-3)


def test_rewards_that_never_differ_standardise_to_zero() -> None:
    rewards_GNK = torch.full((3, 2, 2), 4.0)
    assert bool((RewardMoments.of(rewards_GNK).standardise(rewards_GNK) == 0).all())


def test_a_step_at_which_nothing_differed_yet_is_measured_by_the_others() -> None:
    rewards_GNK = torch.zeros(8, 2, 2)
    rewards_GNK[::2, :, 1] = 1.0
    moments = RewardMoments.of(rewards_GNK)
    later_GNK = torch.ones(1, 2, 2)
    first, second = moments.standardise(later_GNK)[0, 0].tolist()
    assert first == pytest.approx(1 / rewards_GNK.std().item())
    assert second == pytest.approx(0.5 / rewards_GNK[..., 1].std().item())


def test_auto_is_bf16_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert computes_bf16("cpu") == ("avx512_bf16" in flags or "amx_tile" in flags)
