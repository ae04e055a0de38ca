"""What work costs, counted by torch's formulas and without a change to any bit."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from learner.policy.flops import FlopMeter, Metered


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.SiLU(),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.Linear(512, 3),
    )


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    network(x).square().mean().backward()
    return [
        parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None
    ]


def test_a_product_of_matrices_costs_two_operations_for_each_of_its_terms() -> None:
    meter = FlopMeter()
    with meter.counted("product"):
        _ = torch.ones(3, 5) @ torch.ones(5, 7)
    assert meter.total == 2 * 3 * 5 * 7


def test_forward_and_backward_cost_what_torchs_own_counter_says(network: nn.Module) -> None:
    x, meter = torch.randn(2, 4, 8, 8), FlopMeter()
    with FlopCounterMode(display=False) as counter:
        gradients(network, x)
    with meter.counted("step"):
        gradients(network, x)
    assert meter.total == counter.get_total_flops() > 0


def test_a_metered_network_costs_its_forward_pass_and_gives_what_it_gave(
    network: nn.Module,
) -> None:
    x, meter, forward = torch.randn(2, 4, 8, 8), FlopMeter(), FlopMeter()
    metered = Metered(network, meter)
    with torch.inference_mode():
        drawn = [metered(x) for _ in range(3)]
        plain = network(x)
    with torch.no_grad(), forward.counted("pass"):
        network(x)
    assert meter.total == 3 * forward.total > 0
    assert all(torch.equal(each, plain) for each in drawn)


def test_two_networks_and_two_shapes_are_looked_at_by_themselves(network: nn.Module) -> None:
    x, meter = torch.randn(2, 4, 8, 8), FlopMeter()
    half = nn.Sequential(network[0])  # pyright: ignore
    with torch.inference_mode():
        Metered(network, meter)(x)
        whole = meter.total
        Metered(half, meter)(x)
        assert 0 < meter.total - whole < whole
        before = meter.total
        Metered(half, meter)(x[:1])
    assert 2 * (meter.total - before) == before - whole


def test_no_bit_of_a_gradient_changes_because_it_is_counted(network: nn.Module) -> None:
    x, meter = torch.randn(2, 4, 8, 8), FlopMeter()
    plain = gradients(network, x)
    with meter.counted("step"):
        counted = gradients(network, x)
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))


def test_work_of_a_known_kind_is_added_without_a_look(network: nn.Module) -> None:
    x, meter = torch.randn(2, 4, 8, 8), FlopMeter()
    for rows in (2, 2, 1):
        with torch.no_grad(), meter.counted(rows):
            network(x[:rows])
    once = FlopMeter()
    with torch.no_grad(), once.counted("one row"):
        network(x[:1])
    assert meter.total == (2 + 2 + 1) * once.total


def test_work_that_fails_costs_nothing_and_is_looked_at_again() -> None:
    meter = FlopMeter()
    with pytest.raises(RuntimeError), meter.counted("product"):
        _ = torch.ones(3, 5) @ torch.ones(7, 5)
    with meter.counted("product"):
        _ = torch.ones(3, 5) @ torch.ones(5, 7)
    assert meter.total == 2 * 3 * 5 * 7
