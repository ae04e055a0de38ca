"""How different two pictures look: distances that evaluation measures diversity by.

`lpips` and `dreamsim` are shipped, anybody's own is a class as `module:Class` with a method
`distance(a_NHWC, b_NHWC) -> float32 [N]` on uint8 pictures. One that looks at each picture by
itself first may have `features` and `between` besides, as the shipped ones have: a picture is then
looked at once, not once for every pair that it is in. One that takes `device` is told where the
evaluator computes. Weights are files that are given.
Shape suffixes: N pictures or pairs, C channels, H W pixels.
"""

import inspect
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from reward_servers.registry import class_of

SHIPPED = {
    "lpips": "deploy.evaluation.distances:Lpips",
    "dreamsim": "deploy.evaluation.dream_sim:DreamSim",
}
_BATCH = 64
# Of ImageNet pictures in [-1, 1], as LPIPS normalises them.
_SHIFT = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
_SCALE = torch.tensor([0.458, 0.448, 0.450])[:, None, None]


class PictureDistance(Protocol):
    """A distance of pictures."""

    def distance(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> np.ndarray:
        """Of pairs, float32 [N]; 0 for pictures that are the same."""
        ...


@runtime_checkable
class FeatureDistance(PictureDistance, Protocol):
    """A distance of what is computed of each picture alone:

    `distance(images[first], images[second])` is `between(features(images), first, second)`.
    """

    def features(self, images_NHWC: np.ndarray) -> Any:
        """Of pictures of one size, in a form that `between` alone reads."""
        ...

    def between(self, features: Any, first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
        """Of pairs of these pictures, by their places; float32 [N]."""
        ...


class Lpips:
    """LPIPS with AlexNet, version 0.1 (Zhang et al., CVPR 2018, arXiv:1801.03924), of pictures of
    32 pixels or more.

    Args:
        backbone: torchvision's AlexNet, `alexnet-owt-7be5be79.pth`.
        heads: linear heads of the authors' package, `lpips/weights/v0.1/alex.pth`.
        device: where it computes.
    """

    def __init__(self, backbone: str, heads: str, device: str = "cpu") -> None:
        self._device = device
        self._layers = _alexnet()
        self._heads = nn.ModuleList(
            nn.Conv2d(width, 1, 1, bias=False) for width in (64, 192, 384, 256, 256)
        )
        of_features = {
            name.removeprefix("features."): weight
            for name, weight in _state(backbone).items()
            if name.startswith("features.")
        }
        of_heads = {
            name.removeprefix("lin").replace("model.1.", ""): weight
            for name, weight in _state(heads).items()
        }
        for module, state, path in (
            (self._layers, of_features, backbone),
            (self._heads, of_heads, heads),
        ):
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"{path} does not hold the weights of LPIPS: {error}") from None
            module.to(device)

    @staticmethod
    def check(backbone: str, heads: str, device: str = "cpu") -> None:
        """Raises ValueError if a file is not there."""
        for path in (backbone, heads):
            if not Path(path).is_file():
                raise ValueError(f"the weights {path} of lpips do not exist; give their files")

    @torch.no_grad()
    def distance(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> np.ndarray:
        """See `PictureDistance`."""
        parts = []
        for start in range(0, len(a_NHWC), _BATCH):
            rows = slice(start, start + _BATCH)
            maps = (self._maps(_pixels(images[rows], self._device)) for images in (a_NHWC, b_NHWC))
            parts.append(self._apart(zip(*maps, strict=True)))
        return torch.cat(parts).cpu().numpy()

    @torch.no_grad()
    def features(self, images_NHWC: np.ndarray) -> list[Tensor]:
        """See `FeatureDistance`; maps [N, C, H, W] of every convolution."""
        starts = range(0, len(images_NHWC), _BATCH)
        batches = (images_NHWC[start : start + _BATCH] for start in starts)
        parts = [self._maps(_pixels(batch, self._device)) for batch in batches]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    @torch.no_grad()
    def between(
        self, features: list[Tensor], first_N: np.ndarray, second_N: np.ndarray
    ) -> np.ndarray:
        """See `FeatureDistance`."""
        parts = []
        for start in range(0, len(first_N), _BATCH):
            first, second = (
                torch.as_tensor(places[start : start + _BATCH]) for places in (first_N, second_N)
            )
            parts.append(self._apart((maps[first], maps[second]) for maps in features))
        return torch.cat(parts).cpu().numpy()

    def _apart(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """[N], of the maps of both pictures, layer by layer."""
        layers = zip(self._heads, pairs, strict=True)
        apart = [head((a - b).square()).mean(dim=(1, 2, 3)) for head, (a, b) in layers]
        return torch.stack(apart).sum(dim=0)

    def _maps(self, x_NCHW: Tensor) -> list[Tensor]:
        """After each of the five convolutions, of unit length over the channels."""
        maps = []
        for layer in self._layers:
            x_NCHW = layer(x_NCHW)
            if isinstance(layer, nn.ReLU):
                maps.append(x_NCHW / (x_NCHW.norm(dim=1, keepdim=True) + 1e-10))
        return maps


def check_distance(kind: str, args: Mapping[str, Any]) -> None:
    """Looks for what `build_distance` would refuse, without loading a model.

    Raises:
        ValueError: the kind is unknown or cannot be imported, an argument is not one of its own, or
            a file is not there.
    """
    make = class_of("distance", kind, SHIPPED, args)
    if isinstance(make, type) and not callable(getattr(make, "distance", None)):
        raise ValueError(
            f"distance {kind!r} is a {make.__name__}, which has no method distance(a, b); see "
            "deploy.evaluation.distances.PictureDistance"
        )
    look = getattr(make, "check", None)
    if callable(look):
        look(**args)


def build_distance(kind: str, args: Mapping[str, Any], device: str = "cpu") -> PictureDistance:
    """The distance of a kind, with `args` as keyword arguments.

    Args:
        device: for one that takes it, where `args` do not name one.

    Raises:
        ValueError: as `check_distance`, or it refuses its arguments.
    """
    make = class_of("distance", kind, SHIPPED, args)
    takes_device = "device" in inspect.signature(make).parameters
    try:
        return make(**({"device": device, **args} if takes_device else args))
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"distance {kind!r} refuses its arguments: {error}") from error


def mean_distance(distance: PictureDistance, images_NHWC: np.ndarray, per_prompt: int) -> float:
    """Of all pairs of pictures of one prompt, mean over the prompts.

    Args:
        images_NHWC: prompt by prompt.
    """
    first, second = np.transpose(list(combinations(range(per_prompt), 2)))
    starts = range(0, len(images_NHWC) - per_prompt + 1, per_prompt)
    of_prompts = [images_NHWC[start : start + per_prompt] for start in starts]
    return float(np.mean([_of_pairs(distance, each, first, second) for each in of_prompts]))


def _of_pairs(
    distance: PictureDistance, images_NHWC: np.ndarray, first_N: np.ndarray, second_N: np.ndarray
) -> np.ndarray:
    if isinstance(distance, FeatureDistance):
        return distance.between(distance.features(images_NHWC), first_N, second_N)
    return distance.distance(images_NHWC[first_N], images_NHWC[second_N])


def _alexnet() -> nn.Sequential:
    """torchvision's AlexNet up to its last convolution, with its names."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ).eval()


def _pixels(images_NHWC: np.ndarray, device: str) -> Tensor:
    """As AlexNet reads them."""
    pixels = torch.from_numpy(images_NHWC).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return (pixels - _SHIFT.to(device)) / _SCALE.to(device)


def _state(path: str) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except Exception as error:  # whatever a file that holds something else makes of the loader
        raise ValueError(f"{path} holds no weights: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no weights but a {type(state).__name__}")
    return state
