"""What the networks of rewards need of a device, by their shapes: of those on CLIP's features.

No sizes of other rewards are known here; `uncounted` names those that may hold networks.
Shape suffixes: B images, C H W pixels.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from deploy.doctor.meta_counts import Kept, kept_by, peak_of
from deploy.doctor.meta_networks import Device, Networks, clip_config, parameters_of
from deploy.doctor.scorers import Role, rewards_of
from deploy.settings.run_config import RunConfig
from reward_servers.clip import ClipFeatures, ClipReward
from reward_servers.registry import SHIPPED, class_of, default_args

_FLOAT = 4
_WITHOUT_NETWORKS = ("http", "jpeg-size", "shapes-")
"""Kinds, or how they begin: scored elsewhere, by no network, or by one of some thousand numbers."""


class ClipShapes(ClipFeatures):
    """CLIP without a tokenizer, on torch's meta device; on any other with random numbers."""

    def __init__(self, told: CLIPConfig, device: Device = "meta") -> None:
        nn.Module.__init__(self)
        with torch.device(device):
            self.model = CLIPModel(told)
            for name in ("mean", "std"):
                self.register_buffer(name, torch.full((1, 3, 1, 1), 0.5))
        vision: Any = told.vision_config
        self._shortest = vision.image_size
        self._crop = self._shortest, self._shortest
        self._fitted = self._cropped
        self.eval().requires_grad_(False)


def reward_weights(config: RunConfig, networks: Networks, role: Role) -> int:
    """Bytes of all that are known, each in float32."""
    shapes = _known(config, networks, role)
    return _FLOAT * sum(map(parameters_of, shapes))


def scoring_activations(config: RunConfig, networks: Networks, role: Role, rows: int) -> int:
    """Bytes of the largest of them while it looks at so many images, without a gradient."""
    images_BCHW = _images(networks, rows)
    return max(
        (
            networks.once(
                ("scoring", id(each), rows),
                lambda each=each: peak_of(lambda: each.images(images_BCHW)),
            )
            for each in _known(config, networks, role)
        ),
        default=0,
    )


def climbed_rewards(config: RunConfig, networks: Networks) -> Iterable[Kept]:
    """What each keeps of one image for the gradient to it."""
    for each in _known(config, networks, "learner"):
        yield networks.once(
            ("climbed", id(each)),
            lambda each=each: kept_by(
                each, lambda: each.images(_images(networks, 1).requires_grad_())
            ),
        )


def uncounted(config: RunConfig, role: Role) -> list[str]:
    """Names of rewards whose networks no plan counts."""
    return [
        name
        for name, each in rewards_of(config, role).items()
        if not each.kind.startswith(_WITHOUT_NETWORKS) and clip_of(each.kind, each.args) is None
    ]


def _known(config: RunConfig, networks: Networks, role: Role) -> list[ClipShapes]:
    found = []
    for each in rewards_of(config, role).values():
        if (told := clip_of(each.kind, each.args)) is not None:
            found.append(
                networks.once(("CLIP", told.to_json_string()), lambda told=told: ClipShapes(told))
            )
    return found


def clip_of(kind: str, args: Mapping[str, Any]) -> CLIPConfig | None:
    """Of a reward on CLIP's features; None for another, or where its sizes are not known."""
    try:
        make: Any = class_of("reward", kind, SHIPPED, args)
    except ValueError:  # that it cannot be had is a finding of another look
        return None
    if not (isinstance(make, type) and issubclass(make, ClipReward)):
        return None
    clip = {**default_args(kind), **args}.get("clip")
    if not isinstance(clip, str):
        return None
    if (Path(clip) / "config.json").is_file():
        return CLIPConfig.from_pretrained(clip)
    return clip_config(clip)


def _images(networks: Networks, rows: int) -> Tensor:
    return torch.empty((rows, 3, *networks.image_size), device="meta")
