"""DeepSpeed behind one small class: the only file that imports it.

A forward pass whose gradient is wanted goes through the engine, a step ends with equal
parameters on all ranks, and a loss is a mean over this rank's rows: ranks have equal shares.
"""

import logging
import math
import os
import pickle  # for the error of a refused load; nothing is unpickled here
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import groups
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn

from learner.settings.learner import LARGE, REDUCED_AT_ONCE

log = logging.getLogger(__name__)
MOST_LOST = 10
"""Updates in a row without a usable gradient, of which the last ends the run."""
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_PLAIN_PARTS = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
"""What DeepSpeed's own checkpoints hold beside tensors and numbers; none of it does anything."""


def join_ranks(rank: int, world_size: int, address: str, port: int, *, timeout_s: float) -> None:
    """Joins this process to the learner's ranks: NCCL with GPUs, gloo without."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Compiled at first use, for a minute, with a compiler that a cluster's image may lack.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        verbose=False,
        timeout=_seconds(timeout_s),
    )
    # DeepSpeed broadcasts and reduces on a group of its own, to which it would give torch's time.
    groups._WORLD_GROUP = dist.new_group(timeout=_seconds(timeout_s))  # pyright: ignore


def leave_ranks() -> None:
    """Ends this process' membership; safe to call twice."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _seconds(timeout_s: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=timeout_s)


class GradientError(RuntimeError):
    """Update after update has a gradient that is no number, and nothing is learned."""


class _AdamW(torch.optim.AdamW):
    """Leaves a step out where it is told to: without ZeRO, DeepSpeed steps whatever the gradient
    is."""

    leaves_out = False

    def step(self, closure: Any = None) -> Any:
        return None if self.leaves_out else super().step(closure)


class Engine:
    """One module and its optimizer, spread over the ranks.

    An update whose gradient is infinite or no number is left out: it would be the end of all
    weights, and of every checkpoint after it.

    Args:
        parameters: those that are trained; the rest is frozen.
        offload: keep the optimizer's state in the host's memory and update there; needs ZeRO.
        rows_per_rank: of a whole update, which DeepSpeed wants to know.
        micro_batches: losses that one update accumulates.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        zero_stage: int,
        grad_clip: float,
        rows_per_rank: int,
        micro_batches: int = 1,
        offload: bool = False,
    ) -> None:
        self._parameters = list(parameters)
        self._micro_batches = micro_batches
        # Without ZeRO, DeepSpeed clips by the gradient norm and does not tell it.
        self._measures_norm = zero_stage == 0
        trained = sum(parameter.numel() for parameter in self._parameters)
        # DeepSpeed's own AdamW for hosts is compiled at first use; torch's fused one is at hand.
        fused = True if offload or torch.cuda.is_available() else None
        self._options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
        self._optimizer = _AdamW(self._parameters, fused=fused, **self._options)
        self._lost = 0
        reduced = min(REDUCED_AT_ONCE, trained)
        zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": reduced}
        if offload:
            pinned = torch.cuda.is_available()
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
            if trained > LARGE and torch.get_num_threads() == 1:
                log.warning(
                    "%.0f M parameters are updated on the host by one thread: raise "
                    "learner.threads and learner.num_cpus",
                    trained / 1e6,
                )
        config = {
            "train_micro_batch_size_per_gpu": max(1, rows_per_rank // micro_batches),
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": grad_clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            # It would wait for the GPU before and after every micro-batch.
            "timers": {"throughput": {"enabled": False}},
        }
        # DeepSpeed broadcasts weights as the bytes of their rows.
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()
        engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=config)
        self._engine: Any = engine
        # With ZeRO its hooks would keep all networks alive when nobody holds it any more.
        weakref.finalize(self, engine.destroy).atexit = False
        # Convolutions are quicker so. What is trained stays as DeepSpeed has laid it out.
        for parameter in module.parameters():
            if parameter.dim() == 4 and not parameter.requires_grad:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def module(self) -> nn.Module:
        """The bare module, for calls without a gradient to its parameters."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        return self._engine.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def update(self, losses: Iterable[Tensor]) -> float:
        """Backward, all-reduce, clip and step; returns the gradient norm before clipping.

        Args:
            losses: of as many micro-batches as the engine was made for, equally large; the step
                is down their mean. Each is asked for when the one before has been differentiated.

        Raises:
            GradientError: it was left out, as were `MOST_LOST` in a row.
        """
        own = None
        for number, loss in enumerate(losses, start=1):
            self._engine.backward(loss)
            if self._measures_norm and number == self._micro_batches:
                own = self._gradient_norm()
                self._optimizer.leaves_out = not math.isfinite(own)
            # Until the last micro-batch DeepSpeed only counts.
            self._engine.step()
        norm = float(self._engine.get_global_grad_norm()) if own is None else own
        self._count_lost(norm)
        return norm

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _count_lost(self, norm: float) -> None:
        if math.isfinite(norm):
            self._lost = 0
            return
        self._lost += 1
        what = "the gradient is infinite or no number"
        if self._lost == MOST_LOST:
            raise GradientError(
                f"{what} in {MOST_LOST} updates in a row; none of them changed a weight. Look for "
                "what a reward's or a model's gradient divides by, or takes the root or logarithm "
                "of; half precision may be too small for it, then model.precision=fp32 helps"
            )
        if dist.get_rank() == 0:
            log.warning("%s: this update is left out and no weight changed", what)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Writes trained weights, optimizer and `state`; every rank must call it."""
        self._engine.save_checkpoint(
            str(folder), tag="state", client_state=state, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> dict[str, Any]:
        """Restores what `save` wrote; returns its `state`.

        Raises:
            ValueError: there is no such checkpoint, or it holds more than tensors and numbers.
        """
        try:
            with _tensors_only():
                path, state = self._engine.load_checkpoint(
                    str(folder), tag="state", load_module_strict=False
                )
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"the checkpoint in {folder} holds more than tensors and numbers and was not "
                f"loaded: {str(error).splitlines()[0]}"
            ) from error
        if path is None:
            raise ValueError(f"no checkpoint in {folder}")
        # What was saved with the optimizer is what the run was given then.
        for group in self._optimizer.param_groups:
            group.update(self._options)
        return state


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch refuses pickled code, though DeepSpeed asks it to run what a checkpoint says."""
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(_PLAIN_PARTS):
            yield
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before
