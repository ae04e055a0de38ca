"""Which types a GPU's autocast to bf16 gives, for tensors on torch's meta device."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_IN_BF16 = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention,
    torch.addmm, torch.baddbmm, torch.bmm, torch.matmul, torch.mm,
    Tensor.__matmul__, Tensor.baddbmm, Tensor.bmm, Tensor.matmul, Tensor.mm,
}  # fmt: skip
_IN_FLOAT32 = {
    F.group_norm, F.interpolate, F.layer_norm, F.softmax,
    torch.exp, torch.softmax, Tensor.exp, Tensor.softmax,
    # On a GPU its products are bf16; only the smallest surrogate has it.
    F.multi_head_attention_forward,
}  # fmt: skip


class CudaAutocast(TorchFunctionMode):
    """Within it, meta tensors have the types that autocast to bf16 gives on a GPU.

    torch has no autocast for meta tensors, and a CPU's leaves in bf16 what normalises. Of its
    lists (docs.pytorch.org, "CUDA Op-Specific Behavior") this has what diffusers' networks call.

    Args:
        rounded: parameters that are bf16 already.

    Attributes:
        rounded: addresses of them.
        copied: of what has been made of other parameters.
    """

    def __init__(self, rounded: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self._rounded = {id(parameter): parameter.detach().bfloat16() for parameter in rounded}
        self._copies: dict[int, Tensor] = {}
        self.rounded = addresses(self._rounded.values())
        self.copied: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        if func in _IN_BF16:
            given = tree_map_only(Tensor, self._half, given)
        elif func in _IN_FLOAT32:
            given = tree_map_only(Tensor, Tensor.float, given)
        return func(*given[0], **given[1])

    def _half(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.bfloat16()
        if (own := self._rounded.get(id(tensor))) is not None:
            return own
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.bfloat16()
            self.copied |= addresses([self._copies[id(tensor)]])
        return self._copies[id(tensor)]


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Of their storages."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}
