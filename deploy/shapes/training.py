"""The loop that every training of the shapes world goes through."""

import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

log = logging.getLogger(__name__)


def fit(
    name: str,
    modules: Iterable[torch.nn.Module],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    save: Callable[[int], None],
    save_every: int = 0,
) -> None:
    """AdamW with warm-up and cosine decay; `save(step)` sees the averaged weights."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-2)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=200)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps - 200, eta_min=learning_rate * 0.02
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, decay], [200])
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75)
    started, recent = time.monotonic(), []
    for step in range(1, steps + 1):
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)
        recent.append(loss.item())
        if step % 250 == 0:
            rate = step / (time.monotonic() - started)
            log.info(
                "%s step %d/%d loss %.5f %.1f steps/s",
                name,
                step,
                steps,
                float(np.mean(recent)),
                rate,
            )
            recent.clear()
        if step == steps or (save_every and step % save_every == 0):
            ema.store(parameters)
            ema.copy_to(parameters)
            save(step)
            ema.restore(parameters)
