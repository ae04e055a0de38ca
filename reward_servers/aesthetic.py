"""A taste in shapes pictures, and a small network that learned it from few labels.

The taste is pictures full of clear things; its true score is a rule. The network is a
differentiable guess at it, right on pictures like those it saw and easily misled beyond: a policy
that climbs it too far gains by the network and loses by the rule, so over-optimisation can be seen.
Shape suffixes: B images, H W pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_servers.scene import BACKGROUND
from reward_servers.segmentation import Seen, look

WEIGHTS = Path(__file__).parent / "weights" / "shapes-aesthetic.safetensors"
_FULL_AREA = 400.0  # pixels; the two or three things of a drawn scene have 70 to 180


class ShapesTaste:
    """The true score, in [0, 1]: how much of a picture is covered by things that are things.

    min(1, area / 400 pixels) of all that is seen with a colour and a shape of the world; what has
    none, a smear or two things that touch, counts nothing. Does not ask the prompt.
    """

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Float32 [B]."""
        return np.array([taste(seen) for seen in look(images_BHWC)], dtype=np.float32)


def taste(seen: Sequence[Seen]) -> float:
    """See `ShapesTaste`."""
    return min(1.0, sum(each.area for each in seen if each.colour and each.shape) / _FULL_AREA)


class AestheticNet(nn.Module):
    """A few convolutions and the mean of their features: images [B, 3, H, W] -> scores [B]."""

    ground: Tensor

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        ground = torch.tensor(BACKGROUND).reshape(1, 3, 1, 1) / 255
        self.register_buffer("ground", ground, persistent=False)
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * width, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Scores [B] of images in [0, 1]."""
        features = self.features(4 * (images_BCHW - self.ground))
        return self.head(features.mean(dim=(2, 3)))[:, 0]


class ShapesAesthetic(nn.Module):
    """The learned guess at `ShapesTaste`; differentiable, and higher where the net says so.

    Trained by `python -m deploy.shapes.aesthetic`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = AestheticNet()
        self.net.load_state_dict(load_file(WEIGHTS))
        self.eval().requires_grad_(False)

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.net(images_BCHW)

    @torch.no_grad()
    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Float32 [B]."""
        bytes_BHWC = torch.tensor(np.ascontiguousarray(images_BHWC))
        images_BCHW = bytes_BHWC.permute(0, 3, 1, 2).float() / 255
        return self.net(images_BCHW).numpy().astype(np.float32)
