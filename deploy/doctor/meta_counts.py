"""What a call would cost and hold, from the shapes of meta tensors: nothing is computed.

A byte count is of what PyTorch itself allocates for tensors; work space of kernels, what an
allocator sets aside and a GPU's context come on top.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from deploy.doctor.meta_autocast import CudaAutocast, addresses


class FusedAttention(TorchFunctionMode):
    """Within it, scaled dot products are one kernel, as on a GPU, and keep no attention maps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args if args else (kwargs[name] for name in ("query", "key", "value"))
        assert (kwargs or {}).get("attn_mask") is None, "a mask would have to be counted too"
        keeps = torch.is_grad_enabled()
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, keeps
        )[0]


def flops_of(call: Callable[[], object]) -> int:
    """Floating-point operations of a call: products, convolutions and attention.

    A backward pass that the call makes counts as well.
    """
    with FusedAttention(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def computed_again(block: Callable[..., Any], *inputs: Any) -> Any:
    """A block whose activations the backward pass computes again, with fused attention.

    For `enable_gradient_checkpointing`: a mode of functions is off while a backward pass runs, and
    with its own default a block would not be what it was in the forward pass.
    """
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), FusedAttention()),
    )


@dataclass(frozen=True)
class Kept:
    """What the graph of a call holds until its backward pass, in bytes.

    Args:
        activations: every storage once, without parameters and copies of them.
        weights: copies of parameters in bf16.
        block_activations, block_weights: of the largest block that is computed again in the
            backward pass; 0 without checkpointing.
    """

    activations: int
    weights: int
    block_activations: int
    block_weights: int


@dataclass(frozen=True)
class Graph:
    """Bytes that a graph holds: for long, and those of the largest of blocks that take turns.

    Args:
        casts: of weights that are trained, copied to be multiplied in bf16.
    """

    kept: int = 0
    block: int = 0
    kept_casts: int = 0
    block_casts: int = 0

    @classmethod
    def of(cls, one_row: Kept, calls: Sequence[int]) -> "Graph":
        """Calls of so many rows each: what a row keeps grows with them, a weight's copy not."""
        return cls(
            one_row.activations * sum(calls),
            one_row.block_activations * max(calls),
            one_row.weights * len(calls),
            one_row.block_weights,
        )

    def __add__(self, other: "Graph") -> "Graph":
        return Graph(
            self.kept + other.kept,
            max(self.block, other.block),
            self.kept_casts + other.kept_casts,
            max(self.block_casts, other.block_casts),
        )

    @property
    def activations(self) -> int:
        return self.kept + self.block

    @property
    def casts(self) -> int:
        return self.kept_casts + self.block_casts

    @property
    def total(self) -> int:
        return self.activations + self.casts


class _Saved:
    """Counts what autograd saves; storages stay alive, else another could take their address."""

    def __init__(
        self, parameters: set[int], autocast: CudaAutocast | None, known: dict[int, Any]
    ) -> None:
        self._parameters = parameters
        self._autocast = autocast
        self._known = known
        self._seen: dict[int, Any] = {}
        self.activations = 0
        self.weights = 0

    @property
    def seen(self) -> dict[int, Any]:
        return {**self._known, **self._seen}

    def hold(self, tensor: Tensor) -> Tensor:
        """Counts a tensor's storage, once, as kept for the backward pass."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._seen or address in self._known or address in self._parameters:
            return tensor
        self._seen[address] = storage
        if self._autocast is not None and address in self._autocast.copied:
            self.weights += storage.nbytes()
        else:
            self.activations += storage.nbytes()
        return tensor

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self.hold, lambda tensor: tensor)


def kept_by(
    network: nn.Module,
    call: Callable[[], object],
    *,
    checkpointed: Any = None,
    autocast: CudaAutocast | None = None,
) -> Kept:
    """What a call of a network keeps for its backward pass.

    Args:
        network: whose parameters are told apart.
        checkpointed: a part of it of whose blocks only the inputs are kept; in the backward pass
            there is one block at a time besides.
        autocast: of this call alone; without, all is as the tensors are.
    """
    parameters = addresses(network.parameters())
    if autocast is not None:
        parameters |= autocast.rounded
    outer = _Saved(parameters, autocast, {})
    blocks = [_Saved(parameters, autocast, {})]

    def run_block(block: Callable[..., Any], *inputs: Any) -> Any:
        tree_map_only(Tensor, outer.hold, inputs)
        own = _Saved(parameters, autocast, outer.seen)
        with own.counting():
            outputs = block(*inputs)
        blocks.append(own)
        return outputs

    if checkpointed is not None:
        checkpointed.enable_gradient_checkpointing(run_block)
    try:
        with FusedAttention(), autocast or nullcontext(), outer.counting():
            call()
    finally:
        if checkpointed is not None:
            checkpointed.disable_gradient_checkpointing()
    return Kept(
        outer.activations,
        outer.weights,
        max(block.activations for block in blocks),
        max(block.weights for block in blocks),
    )


class _Living(TorchDispatchMode):
    """Counts the bytes of all results that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in args:
            if isinstance(tensor, Tensor):
                # What was there before is none of the results.
                self._alive.setdefault(tensor.untyped_storage()._cdata, 0)
        results = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._born, results)
        return results

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return
        self._alive[address] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._died, address)

    def _died(self, address: int) -> None:
        self._now -= self._alive.pop(address, 0)


def peak_of(call: Callable[[], object], autocast: CudaAutocast | None = None) -> int:
    """Most bytes of results that are alive at once in a call without autograd."""
    with torch.no_grad(), FusedAttention(), autocast or nullcontext(), _Living() as living:
        call()
    return living.peak
