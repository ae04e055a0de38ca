"""Rewards on a CLIP model's features: how a picture fits its prompt, and a head that judges it.

A gradient passes both. Weights are not shipped: `clip` is a folder that transformers'
`save_pretrained` wrote, or a hub id. OpenAI's ViT-L/14, and models trained on human choices that
have its structure, such as PickScore or HPSv2 in transformers' format, load alike.
Shape suffixes: B images, H W pixels, E embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ClipFeatures(nn.Module):
    """A frozen CLIP with its own preprocessing, differentiable in the image.

    Args:
        clip: folder or hub id of a `CLIPModel` with its tokenizer and image processor.

    Raises:
        ValueError: nothing there that loads as one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: str) -> None:
        super().__init__()
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        try:
            self.model: Any = CLIPModel.from_pretrained(clip, dtype=torch.float32)
            self._tokenizer = AutoTokenizer.from_pretrained(clip)
            pixels: Any = CLIPImageProcessorPil.from_pretrained(clip)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"no CLIP model at {clip!r}: {error}. Give a folder that save_pretrained of "
                "transformers' CLIPModel, tokenizer and image processor wrote, or a hub id"
            ) from error
        self._shortest = int(pixels.size["shortest_edge"])
        self._crop = int(pixels.crop_size["height"]), int(pixels.crop_size["width"])
        self.register_buffer("mean", torch.tensor(pixels.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(pixels.image_std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return self.model.config.projection_dim

    def images(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings of unit length [B, E] of images in [0, 1]."""
        pixels_BCHW = (self._resized(images_BCHW) - self.mean) / self.std
        states = self.model.vision_model(pixel_values=pixels_BCHW).pooler_output
        return nn.functional.normalize(self.model.visual_projection(states), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of unit length [B, E]; what is longer than the model reads is cut."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, return_tensors="pt"
        ).to(self.mean.device)
        states = self.model.text_model(**tokens).pooler_output
        return nn.functional.normalize(self.model.text_projection(states), dim=-1)

    def _resized(self, images_BCHW: Tensor) -> Tensor:
        """The shortest side to the model's size, bicubic with antialiasing, and its middle."""
        height, width = images_BCHW.shape[2:]
        size = [self._shortest * side // min(height, width) for side in (height, width)]
        resized_BCHW = nn.functional.interpolate(
            images_BCHW, size=size, mode="bicubic", antialias=True
        )
        top, left = ((side - crop) // 2 for side, crop in zip(size, self._crop, strict=True))
        return resized_BCHW[:, :, top : top + self._crop[0], left : left + self._crop[1]]


class _ClipReward(nn.Module):
    """What both rewards share: the features, and `score` of pictures by `forward`."""

    def __init__(self, clip: str) -> None:
        super().__init__()
        self.clip = ClipFeatures(clip)
        # Ray hides GPUs that are not booked.
        self.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Float32 [B] of pictures uint8 [B, H, W, 3]."""
        images_BHWC = np.ascontiguousarray(images_BHWC)
        images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).to(self.clip.mean) / 255
        return self(images_BCHW, prompts).float().cpu().numpy()


class ClipScore(_ClipReward):
    """Cosine of picture and prompt, in [-1, 1]; about 0.2 to 0.3 for pictures that fit.

    With OpenAI's CLIP this is CLIPScore without its factor (Hessel et al. 2021,
    arXiv:2104.08718); with a model trained on human choices, PickScore or HPSv2 without theirs.

    Args:
        clip: folder or hub id.
    """

    def __init__(self, clip: str) -> None:
        super().__init__(clip)

    @staticmethod
    def check(clip: str) -> None:
        """Looks whether the folder is there; a hub id is left to the hub.

        Raises:
            ValueError: it is not.
        """
        _check_folder(clip)

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        with torch.no_grad():
            texts_BE = self.clip.texts(prompts)
        return (self.clip.images(images_BCHW) * texts_BE).sum(dim=-1)


class ClipAesthetic(_ClipReward):
    """A head on the picture's embedding, such as LAION's aesthetic predictor; no prompt is asked.

    LAION's is five linear layers without anything between them, an affine function of the
    embedding of ViT-L/14; people's grades were 1 to 10, pictures of Stable Diffusion have 5 to 6.

    Args:
        clip: folder or hub id.
        head: its weights, a .safetensors or .pth file of linear layers in their order, as
            LAION's `sac+logos+ava1-l14-linearMSE.pth` is.

    Raises:
        ValueError: the file holds no such layers, or they do not fit the embedding.
    """

    def __init__(self, clip: str, head: str) -> None:
        super().__init__(clip)
        self.head = _linear_layers(Path(head), self.clip.width).to(self.clip.mean.device)

    @staticmethod
    def check(clip: str, head: str) -> None:
        """Looks whether folder and file are there; a hub id is left to the hub.

        Raises:
            ValueError: one is not.
        """
        _check_folder(clip)
        if not Path(head).is_file():
            raise ValueError(
                f"no head's weights at {head}: give a .safetensors or .pth file of linear layers"
            )

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.head(self.clip.images(images_BCHW))[:, 0]


def _check_folder(clip: str) -> None:
    is_path = clip.startswith((".", "/")) or clip.count("/") != 1
    if (is_path or Path(clip).exists()) and not (Path(clip) / "config.json").is_file():
        raise ValueError(
            f"no CLIP model at {clip!r}: give a folder that transformers' save_pretrained wrote, "
            "or a hub id such as openai/clip-vit-large-patch14"
        )


def _linear_layers(path: Path, width: int) -> nn.Sequential:
    """The layers of a state dict, in the order of their numbers."""
    try:
        state = _tensors(path)
    except Exception as error:
        raise ValueError(f"no weights of a head can be read from {path}: {error}") from error
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    layers, inputs = [], width
    for name in sorted(names, key=_number):
        weight, bias = state[f"{name}.weight"].float(), state.get(f"{name}.bias")
        if weight.dim() != 2 or weight.shape[1] != inputs or bias is None:
            raise ValueError(
                f"{path}: {name} is no linear layer with a bias that takes {inputs} numbers, its "
                f"weight is {list(weight.shape)}"
            )
        layer = nn.Linear(inputs, len(weight))
        layer.load_state_dict({"weight": weight, "bias": bias.float()})
        layers.append(layer)
        inputs = len(weight)
    if not layers or inputs != 1:
        raise ValueError(f"{path} ends in {inputs} numbers; a head ends in one score")
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _number(name: str) -> int:
    """Of a layer in a sequence, such as 4 of `layers.4`."""
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isdigit() else 0
