"""DreamSim, a distance of pictures as people judge it (Fu et al., NeurIPS 2023, arXiv:2306.09344).

By its authors' package, `pip install dreamsim` (MIT), on weights that are given.
Shape suffixes: N pictures or pairs, C channels, H W pixels.
"""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_BATCH = 32
# What the package looks for in its folder, by model.
_FILES = {
    "clip_vitb32": ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora"),
    "open_clip_vitb32": ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora"),
    "ensemble": (
        "dino_vitb16_pretrain.pth",
        "open_clip_vitb16_pretrain.pth.tar",
        "clip_vitb16_pretrain.pth.tar",
        "ensemble_lora",
    ),
}


class DreamSim:
    """1 − cosine of two pictures' embeddings, in [0, 2].

    Args:
        folder: what the package's checkpoint was unpacked to, `dreamsim_<model>_checkpoint.zip` of
            its releases.
        model: `ensemble`, the paper's own, whose DINO torch.hub takes from the folder if it was
            loaded there before, else from the network; or `clip_vitb32` or `open_clip_vitb32`.
        device: where it computes.

    Raises:
        ValueError: the package or a file is not there.
    """

    def __init__(self, folder: str, model: str = "ensemble", device: str = "cpu") -> None:
        self.check(folder, model)
        from dreamsim import dreamsim  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(io.StringIO()):  # it tells where its files are
            found = dreamsim(cache_dir=folder, dreamsim_type=model, device=device)
        self._model, self._prepare = found
        self._device = device

    @staticmethod
    def check(folder: str, model: str = "ensemble", device: str = "cpu") -> None:
        """Raises ValueError if the package or a file is not there."""
        if importlib.util.find_spec("dreamsim") is None:
            raise ValueError("dreamsim is not installed here; install it: pip install dreamsim")
        if model not in _FILES:
            raise ValueError(f"model is {model!r}; dreamsim has {', '.join(_FILES)}")
        if lacking := [name for name in _FILES[model] if not (Path(folder) / name).exists()]:
            raise ValueError(
                f"{folder} lacks {', '.join(lacking)} of dreamsim's {model}; unpack "
                f"dreamsim_{model}_checkpoint.zip of its releases there"
            )

    @torch.no_grad()
    def distance(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> np.ndarray:
        """See `PictureDistance`."""
        parts = []
        for start in range(0, len(a_NHWC), _BATCH):
            rows = slice(start, start + _BATCH)
            told: Any = self._model(self._pixels(a_NHWC[rows]), self._pixels(b_NHWC[rows]))
            parts.append(told.reshape(-1))
        return torch.cat(parts).float().cpu().numpy()

    @torch.no_grad()
    def features(self, images_NHWC: np.ndarray) -> Tensor:
        """See `FeatureDistance`; an embedding each."""
        starts = range(0, len(images_NHWC), _BATCH)
        batches = (self._pixels(images_NHWC[start : start + _BATCH]) for start in starts)
        return torch.cat([self._model.embed(batch) for batch in batches])

    def between(self, features: Tensor, first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
        """See `FeatureDistance`."""
        first, second = features[torch.as_tensor(first_N)], features[torch.as_tensor(second_N)]
        return (1 - F.cosine_similarity(first, second, dim=-1)).float().cpu().numpy()

    def _pixels(self, images_NHWC: np.ndarray) -> Tensor:
        prepared = [self._prepare(Image.fromarray(image)) for image in images_NHWC]
        return torch.cat(prepared).to(self._device)
