"""ZeRO with its state on the host, as far as a CPU can tell: the same weights, and a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import nn

from learner.engine import Engine


def _engine(stage: int, *, offload: bool) -> Engine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    return Engine(
        module,
        module.parameters(),
        learning_rate=1e-2,
        weight_decay=0.01,
        zero_stage=stage,
        grad_clip=1.0,
        rows_per_rank=4,
        offload=offload,
    )


def _steps(engine: Engine, count: int) -> torch.Tensor:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        engine.update([engine(rows).square().mean()])
    return torch.cat([p.detach().flatten().clone() for p in engine.module.parameters()])


# DeepSpeed compiles an optimiser that is not used here, and torch warns of its own parts.
@pytest.mark.filterwarnings("default:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_on_the_host_is_the_same_step(one_rank: None, stage: int, tmp_path: Path) -> None:
    plain, moved = _engine(stage, offload=False), _engine(stage, offload=True)
    before = _steps(moved, 0)
    torch.testing.assert_close(_steps(moved, 3), _steps(plain, 3), rtol=1e-5, atol=1e-6)
    moved.save(tmp_path, {"step": 3})
    after = _steps(moved, 2)
    assert (after - before).abs().max() > 1e-3
    again = _engine(stage, offload=True)
    assert again.load(tmp_path)["step"] == 3
    torch.testing.assert_close(_steps(again, 2), after, rtol=0, atol=0)
