"""Several networks over one set of base weights: a policy, its reference and a consistency model.

Switching adapters of a single network turns the gradient of the policy's adapter off, and
gradient checkpointing then recomputes under the wrong one. Trees of their own that share their
base tensors cost no memory and know nothing of each other.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn

from learner.policy.lora import add_lora
from learner.policy.precision import resolves_to_bf16, round_frozen, roundable
from learner.policy.trainable import load_arrays, make_policy_trainable
from learner.settings.model import Model

log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


def shared_view(module: M) -> M:
    """A copy of the module tree whose parameters and buffers are the module's own tensors.

    Adapters that are added to one tree later are not in the other. Make it before anything is
    added, and do not move one of them to another device alone.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def policy_over(base: UNet2DConditionModel, model: Model, *, seed: int) -> UNet2DConditionModel:
    """A policy as the run config's `model` section asks: an adapter over the base's tensors.

    Where all weights are trained, they are copies, and the base stays as it is.
    """
    view = shared_view(base) if model.trainable == "lora" else copy.deepcopy(base)
    make_policy_trainable(view, model, seed=seed)
    return view


class SamplingPolicy:
    """A policy to sample from: its adapter is added to weights of its own when new ones come.

    An adapter that is added once costs a forward pass nothing; beside the layers it can cost more
    than they do. It stays beside them all the same where bf16 is computed in and the base's
    weights come from half precision: they lie on a grid, adding less than one grid step is rounded
    away, or up to a whole step, and the samples would be those of another policy than the
    learner's. The base that it is made over stays as it is.

    Attributes:
        unet: the policy, to be called in the model's precision: its weights are rounded to that.
    """

    def __init__(self, base: UNet2DConditionModel, model: Model, *, seed: int) -> None:
        self.unet: Any = copy.deepcopy(base)
        self.unet.to(memory_format=torch.channels_last)  # quicker
        # Only an adapter that is added to weights needs a tree of its own.
        self._adapted: UNet2DConditionModel | None = None
        if model.trainable == "lora" and not _sums_are_lost(base, model):
            self._adapted = policy_over(base, model, seed=seed)
        else:
            make_policy_trainable(self.unet, model, seed=seed)
        round_frozen(self.unet, model.precision, trained=True)

    @torch.no_grad()
    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes new weights, as `trainable_arrays` of the learner's policy has them.

        Raises:
            ValueError: they do not fit this model; nothing has changed.
        """
        if self._adapted is None:
            load_arrays(self.unet, dict(arrays))
            return
        load_arrays(self._adapted, dict(arrays))
        for name, layer in self._adapted.named_modules():
            if isinstance(layer, LoraLayer):
                plain: Any = self.unet.get_submodule(name)
                weight = layer.get_base_layer().weight
                plain.weight.copy_(weight + layer.get_delta_weight("default"))  # pyright: ignore


def _sums_are_lost(base: UNet2DConditionModel, model: Model) -> bool:
    """Whether bf16 weights cannot hold what a small adapter adds to the base's."""
    if not resolves_to_bf16(model.precision, base.device) or not lies_on_half_grid(base):
        return False
    log.info(
        "%s: most weights have been half precision, and bf16 would round a small adapter away if "
        "it were added to them: it stays beside the layers, which takes more time a call",
        model.unet or model.path,
    )
    return True


@torch.no_grad()
def lies_on_half_grid(network: nn.Module) -> bool:
    """Whether most weights of products and convolutions are numbers of float16, or of bfloat16.

    Of weights that were trained in float32, one in thousands is.
    """
    weights = [weight.detach() for weight in roundable(network, trained=True)]
    most = sum(weight.numel() for weight in weights) / 2
    return any(
        sum((weight.to(half).to(weight.dtype) == weight).sum() for weight in weights) > most
        for half in (torch.float16, torch.bfloat16)
    )


def with_lora(unet: UNet2DConditionModel, path_or_id: str) -> UNet2DConditionModel:
    """A view of a UNet with a frozen LoRA on it, as an LCM-LoRA over its base.

    Args:
        path_or_id: a local folder, or a hub id that is downloaded.

    Raises:
        ValueError: it holds no LoRA that fits.
    """
    view = shared_view(unet)
    add_lora(view, path_or_id)
    return view.eval()
