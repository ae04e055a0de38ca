"""An engine in a process alone: gradients that are no numbers, and what a checkpoint restores."""

import gc
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.engine import MOST_LOST, Engine, GradientError

pytestmark = [
    # DeepSpeed compiles an optimiser that is not used here, and torch warns of its own parts.
    pytest.mark.filterwarnings("default:.*script_method.*:DeprecationWarning"),
    pytest.mark.usefixtures("one_rank"),
]
STAGES = [(0, False), (1, False), (2, False), (1, True)]


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def _engine(stage: int = 0, **changes: Any) -> Engine:
    module = _module()
    options: dict[str, Any] = {
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "zero_stage": stage,
        "grad_clip": 1.0,
        "rows_per_rank": 4,
        **changes,
    }
    return Engine(module, module.parameters(), **options)


def _loss(engine: Engine | nn.Module, rows: slice = slice(None)) -> Tensor:
    whole = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    return engine(whole[rows]).square().mean()


def _weights(engine: Engine) -> Tensor:
    return _flat(engine.module)


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def _root_at_zero(engine: Engine) -> Tensor:
    """Finite, with a gradient that is not: that of a root at 0."""
    return (0 * _loss(engine)).sqrt()


@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_an_engine_that_nobody_holds_lets_its_network_go(stage: int, offload: bool) -> None:
    engine = _engine(stage, offload=offload)
    engine.update([_loss(engine)])
    kept = [weakref.ref(parameter) for parameter in engine.module.parameters()]
    del engine
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


@pytest.mark.parametrize("broken", [_root_at_zero, lambda engine: _loss(engine) * math.nan])
@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_an_update_without_a_usable_gradient_changes_nothing(
    stage: int, offload: bool, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine, straight = _engine(stage, offload=offload), _engine(stage, offload=offload)
    for each in (engine, straight):
        each.update([_loss(each)])
    before = _weights(engine)
    with caplog.at_level(logging.WARNING, "learner.engine"):
        norm = engine.update([broken(engine)])
    assert not math.isfinite(norm)
    assert "left out" in caplog.text
    assert torch.equal(_weights(engine), before)
    # Its moments are those from before, too.
    for each in (engine, straight):
        each.update([_loss(each)])
    assert torch.equal(_weights(engine), _weights(straight))
    assert not torch.equal(_weights(engine), before)


@pytest.mark.parametrize("stage", [1, 2])
def test_no_more_room_is_made_to_reduce_gradients_than_they_take(stage: int) -> None:
    engine = _engine(stage)
    assert engine._engine.zero_reduce_bucket_size() == 6 * 8 + 8 + 8 + 1


@pytest.mark.parametrize(("threads", "told"), [(1, True), (2, False)])
def test_one_thread_for_a_large_update_on_the_host_is_told(
    threads: int, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("learner.engine.LARGE", 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with caplog.at_level(logging.WARNING, "learner.engine"):
        _engine(1, offload=True)
    assert ("raise learner.threads" in caplog.text) == told


def test_one_broken_part_of_a_batch_loses_all_of_it() -> None:
    engine = _engine(micro_batches=2)
    before = _weights(engine)
    engine.update([_loss(engine), _root_at_zero(engine)])
    assert torch.equal(_weights(engine), before)


@pytest.mark.parametrize("stage", [0, 1])
def test_many_of_them_in_a_row_end_the_run_and_say_why(stage: int) -> None:
    engine = _engine(stage)
    for _ in range(MOST_LOST - 1):
        engine.update([_root_at_zero(engine)])
    engine.update([_loss(engine)])  # one that counts begins the row anew
    for _ in range(MOST_LOST - 1):
        engine.update([_root_at_zero(engine)])
    with pytest.raises(GradientError, match=f"{MOST_LOST} updates in a row"):
        engine.update([_root_at_zero(engine)])


@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_a_checkpoint_does_not_bring_back_the_rates_that_it_was_written_with(
    stage: int, offload: bool, tmp_path: Path
) -> None:
    first = _engine(stage, offload=offload)
    first.update([_loss(first)])
    first.save(tmp_path, {})
    for rates in ({"learning_rate": 1e-2}, {"learning_rate": 1e-4, "weight_decay": 0.0}):
        again = _engine(stage, offload=offload, **rates)
        again.load(tmp_path)
        before = _weights(again)
        again.update([_loss(again)])
        moved = float((_weights(again) - before).abs().max())
        assert moved <= 1.1 * rates["learning_rate"]
        assert moved > 0.2 * rates["learning_rate"]


@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_halves_of_a_batch_have_the_step_of_the_whole(stage: int, offload: bool) -> None:
    whole = _engine(stage, offload=offload)
    halves = _engine(stage, offload=offload, micro_batches=2)
    for _ in range(3):
        norm = whole.update([_loss(whole)])
        parts = (_loss(halves, rows) for rows in (slice(0, 2), slice(2, 4)))
        assert halves.update(parts) == pytest.approx(norm, rel=1e-4)
    torch.testing.assert_close(_weights(halves), _weights(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad_clip", [0.5, 1e9])
@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_steps_are_those_of_torchs_own_clip_and_adamw(
    stage: int, offload: bool, grad_clip: float
) -> None:
    """Among them one of a huge gradient, which without a clip stays in the moments."""
    engine, module = _engine(stage, offload=offload, grad_clip=grad_clip), _module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.01)
    for scale in (1.0, 1e6, 1.0):
        norm = engine.update([scale * _loss(engine)])
        optimizer.zero_grad()
        (scale * _loss(module)).backward()
        assert norm == pytest.approx(
            float(nn.utils.clip_grad_norm_(module.parameters(), grad_clip)), rel=1e-3
        )
        optimizer.step()
    torch.testing.assert_close(_weights(engine), _flat(module), rtol=1e-3, atol=1e-5)
