"""How a surrogate's doubt counts in what the policy climbs."""

import numpy as np
import pytest
import torch
from torch import nn

from deploy.shapes.models import new_unet
from learner.exploration import Climb, confidence_width, gram, optimistic
from learner.policy.text import Text
from learner.settings.surrogate import Surrogate
from learner.surrogate import Backbone, new_surrogate

TEXT = Text(torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)))
STEP = torch.zeros(3, dtype=torch.long)


def features(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def latents() -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def surrogate(heads: int) -> nn.Module:
    made = new_surrogate("conv", new_unet(), num_steps=1, heads=heads, timestep=0, seed=1)
    nn.init.normal_(made.head.out.weight, generator=torch.Generator().manual_seed(0))  # pyright: ignore
    return made


def test_the_width_is_that_of_a_float64_inverse() -> None:
    labelled, asked = features(30), features(5, seed=1)
    matrix = labelled.double().numpy().T @ labelled.double().numpy() + 0.7 * np.eye(4)
    expected = np.sqrt(np.einsum("bf,fg,bg->b", asked, np.linalg.inv(matrix), asked))
    width = confidence_width(asked, gram(labelled), ridge=0.7)
    np.testing.assert_allclose(width.numpy(), expected, rtol=1e-5)


def test_ten_times_the_labels_narrow_the_width_by_the_root_of_ten() -> None:
    labelled, asked = features(50), features(5, seed=1)
    few = confidence_width(asked, gram(labelled), ridge=1e-6)
    many = confidence_width(asked, gram(labelled.repeat(10, 1)), ridge=1e-6)
    torch.testing.assert_close(few / many, torch.full((5,), 10**0.5), rtol=1e-3, atol=0)


def test_what_no_label_is_like_is_the_widest() -> None:
    labelled = features(50)
    labelled[:, 3] = 0
    known, unknown = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1.0]])
    matrix = gram(labelled)
    assert float(confidence_width(unknown, matrix, 1.0)) == pytest.approx(1.0)
    assert float(confidence_width(known, matrix, 1.0)) < 0.2


def test_the_optimist_takes_the_largest_head() -> None:
    assert optimistic(torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]])).tolist() == [3.0, 5.0]


@pytest.mark.parametrize("backbone", ["unet", "unet_encoder"])
def test_a_block_that_is_computed_again_is_as_frozen_as_it_was(backbone: Backbone) -> None:
    """A climb's graph is walked twice where its share is measured, and freezes only its making."""
    unet, found = new_unet(), dict[bool, list[torch.Tensor]]()
    for checkpointing in (False, True):
        network = new_surrogate(backbone, unet, num_steps=1, heads=1, timestep=0, seed=1)
        nn.init.normal_(network.head.out.weight, generator=torch.Generator().manual_seed(0))  # pyright: ignore
        if checkpointing:
            network.enable_gradient_checkpointing()
        asked = latents().requires_grad_(True)
        value = Climb(network, Surrogate())(asked, TEXT, STEP).sum()
        found[checkpointing] = [
            torch.autograd.grad(value, asked, retain_graph=True)[0] for _ in range(2)
        ]
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
    for one, other in zip(found[False], found[True], strict=True):
        assert bool(one.norm() > 0)
        torch.testing.assert_close(one, other)


def test_the_three_rules_order_as_their_names_say() -> None:
    network = surrogate(heads=4)
    wary = Climb(network, Surrogate(heads=4, pessimism=1.0))(latents(), TEXT, STEP)
    plain = Climb(network, Surrogate(heads=4))(latents(), TEXT, STEP)
    bold = Climb(network, Surrogate(heads=4, confidence="bootstrap"))(latents(), TEXT, STEP)
    assert bool(((wary < plain) & (plain < bold)).all())


def test_the_bonus_of_ucb_begins_with_the_first_labels_and_has_a_gradient() -> None:
    network = surrogate(heads=1)
    climb = Climb(network, Surrogate(confidence="ucb", ucb_bonus=2.0))
    mean = climb(latents(), TEXT, STEP)
    with torch.no_grad():
        labelled = network.read(latents(), TEXT, STEP)[1]  # pyright: ignore
    climb.gram_FF = gram(labelled)
    x = latents().requires_grad_()
    value = climb(x, TEXT, STEP)
    width = confidence_width(labelled, climb.gram_FF, 1.0)
    torch.testing.assert_close(value.detach(), mean.detach() + 2 * width)
    value.sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": "bootstrap"}, "at least 2 heads"),
        ({"confidence": "ucb", "heads": 2, "pessimism": 1.0}, "contradict each other"),
        ({"confidence": "ucb", "regression_weight": 0}, "a zero and a unit of its own"),
        ({"confidence": "bootstrap", "heads": 2, "regression_weight": 0}, "a unit of its own"),
        ({"pessimism": 1.0, "heads": 2, "regression_weight": 0}, "a unit of its own"),
    ],
)
def test_rules_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Surrogate.model_validate(settings)
