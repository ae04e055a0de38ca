"""Types that the plan has meta tensors take, held against torch's own autocast for a GPU.

The GPU's tensors are fake ones, which carry shapes, types and a device, and need none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from deploy.doctor.meta_autocast import CudaAutocast
from deploy.doctor.meta_counts import kept_by, peak_of
from deploy.doctor.meta_networks import architecture, unet_on_meta, vae_of
from deploy.shapes.models import PIPELINES
from learner.policy.components import Attention, decode_images
from learner.policy.precision import leave_casts_to_autocast, roundable
from learner.policy.trainable import make_trainable
from learner.settings.model import Model

BASE = str(PIPELINES / "base")


@dataclass
class _Called:
    """A function that a network called, on what, and the types of what it gave."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    types: list[torch.dtype]


class _Calls(TorchFunctionMode):
    """Notes one call of each function for each set of types that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, _Called] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tuple(_types((args, kwargs)))
        results = func(*args, **kwargs)
        if given and (out := _types(results)):
            self.found[func, given] = _Called(func, args, kwargs, out)
        return results


def _types(values: Any) -> list[torch.dtype]:
    return [leaf.dtype for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def _cuda_autocast() -> Iterator[None]:
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def _types_on_cuda(called: _Called) -> list[torch.dtype]:
    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    with torch.no_grad(), FakeTensorMode():
        args, kwargs = tree_map_only(Tensor, fake, (called.args, called.kwargs))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "cuda"}
        with _cuda_autocast():
            return _types(called.func(*args, **kwargs))


def _called_by(network: nn.Module, call: Callable[[], object]) -> list[_Called]:
    with torch.no_grad(), CudaAutocast(roundable(network)), _Calls() as calls:
        call()
    # Indexing fake tensors needs a GPU, and changes no type.
    return [called for (func, _), called in calls.found.items() if func is not Tensor.__getitem__]


def _empty(*shape: int, **kwargs: Any) -> Tensor:
    return torch.empty(*shape, device="meta", **kwargs)


def _calls_of_unet(attention: Attention, *, adapted: bool) -> list[_Called]:
    unet: Any = unet_on_meta(architecture(BASE), Model(path=BASE, attention=attention))
    if adapted:
        with torch.device("meta"):
            make_trainable(unet, "lora", rank=2, alpha=2, targets="all")
        leave_casts_to_autocast(unet)
    x, t_B, text = _empty(2, 4, 8, 8), _empty(2, dtype=torch.long), _empty(2, 18, 64)
    return _called_by(unet, lambda: unet(x, t_B, encoder_hidden_states=text))


def _calls_of_vae() -> list[_Called]:
    vae = vae_of(architecture(BASE), "meta")
    return _called_by(vae, lambda: decode_images(vae, _empty(2, 4, 8, 8)))


@pytest.mark.parametrize(
    ("calls", "besides"),
    [
        (lambda: _calls_of_unet("plain", adapted=True), {F.linear, F.layer_norm}),
        (lambda: _calls_of_unet("sdpa", adapted=False), {F.linear, F.layer_norm}),
        (_calls_of_vae, set()),
    ],
    ids=["plain attention, adapter", "fused attention", "decoder"],
)
def test_all_that_a_network_calls_gives_the_types_that_it_gives_on_a_gpu(
    calls: Callable[[], list[_Called]], besides: set[Any]
) -> None:
    found = calls()
    expected = {F.conv2d, F.group_norm, F.interpolate, *besides}
    assert expected <= {called.func for called in found}
    assert [(c.func, c.types) for c in found] == [(c.func, _types_on_cuda(c)) for c in found]


def test_a_graph_keeps_what_is_cast_and_no_copy_of_what_is_rounded() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2))
    for parameter in network[3].parameters():
        parameter.requires_grad_(False)
    x = _empty(3, 4)
    kept = kept_by(network, lambda: network(x), autocast=CudaAutocast(roundable(network)))
    # The input in bf16, what is normalised and what is made of it in float32, with a mean and a
    # deviation for each row; the last layer's input is not needed again.
    assert kept.activations == 3 * (2 * 4 + 4 * 8 + 4 * 8 + 4 + 4)
    assert kept.weights == 0
    trained = kept_by(network, lambda: network(x), autocast=CudaAutocast())
    assert trained.activations == kept.activations
    assert trained.weights == 2 * 8 * 2


def test_a_copy_of_a_trained_weight_is_made_once_a_call() -> None:
    with torch.device("meta"):
        layer = nn.Linear(4, 4, bias=False)
    x = _empty(3, 4, requires_grad=True)
    kept = kept_by(layer, lambda: layer(layer(x)), autocast=CudaAutocast())
    assert kept.weights == 2 * 4 * 4


def test_without_autograd_a_cast_lives_beside_what_it_is_made_of() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(64, 64, bias=False), nn.LayerNorm(64))
    network.requires_grad_(False)
    x = _empty(3, 64)
    peak = peak_of(lambda: network(x), CudaAutocast(roundable(network)))
    # What the product gave, the same in float32, what is normalised, and its two moments.
    assert peak == 3 * 64 * (2 + 4 + 4) + 3 * 2 * 4
