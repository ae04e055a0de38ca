"""Several networks over one set of base weights: a policy, its reference and a consistency model.

Switching adapters of a single network turns the gradient of the policy's adapter off, and
gradient checkpointing then recomputes under the wrong one. Trees of their own that share their
base tensors cost no memory and know nothing of each other.
"""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn

from learner.policy.lora import add_lora
from learner.policy.trainable import load_arrays, make_policy_trainable
from learner.settings.model import Model

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
    than they do. The base that it is made over stays as it is.

    Attributes:
        unet: the policy as a plain UNet.
    """

    def __init__(self, base: UNet2DConditionModel, model: Model, *, seed: int) -> None:
        self.unet: Any = copy.deepcopy(base)
        self.unet.to(memory_format=torch.channels_last)  # quicker
        # Of a fully trained policy the weights come as they are; an adapter needs its own tree.
        self._adapted: UNet2DConditionModel | None = None
        if model.trainable == "lora":
            self._adapted = policy_over(base, model, seed=seed)
        else:
            make_policy_trainable(self.unet, model, seed=seed)

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
