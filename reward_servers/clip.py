"""Rewards on a CLIP model's features: how a picture fits its prompt, and a head that judges it.

A gradient passes both. Weights are not shipped: `clip` is a folder that transformers'
`save_pretrained` wrote, or a hub id, as OpenAI's ViT-L/14. `reward_servers.preferences` has models
of its structure that were trained on people's choices.
Shape suffixes: B images, H W pixels, E embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn


class ClipFeatures(nn.Module):
    """A frozen CLIP with its own preprocessing, differentiable in the image.

    Args:
        clip: folder or hub id of a `CLIPModel` with its tokenizer and image processor.
        processor: another folder or hub id, of tokenizer and image processor.
        state: weights to take instead of those of `clip`, of which only the configuration is read.
        fit: what becomes of a picture that is not square: its middle is cut out, or it is made
            square with black.

    Raises:
        ValueError: nothing there that loads as one, or weights that are not of its shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: str,
        *,
        processor: str | None = None,
        state: Mapping[str, Tensor] | None = None,
        fit: Literal["crop", "pad"] = "crop",
    ) -> None:
        super().__init__()
        from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

        try:
            if state is None:
                self.model: Any = CLIPModel.from_pretrained(clip, dtype=torch.float32)
            else:
                self.model = CLIPModel(CLIPConfig.from_pretrained(clip)).float()
            self._tokenizer = AutoTokenizer.from_pretrained(processor or clip)
            pixels: Any = CLIPImageProcessorPil.from_pretrained(processor or clip)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"no CLIP model at {clip!r}: {error}. Give a folder that save_pretrained of "
                "transformers' CLIPModel, tokenizer and image processor wrote, or a hub id"
            ) from error
        if state is not None:
            try:
                self.model.load_state_dict(state)
            except RuntimeError as error:
                why = " ".join(str(error).split())
                raise ValueError(f"the weights do not fit the model at {clip!r}: {why}") from error
        self._fitted = self._cropped if fit == "crop" else self._padded
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
        pixels_BCHW = (self._fitted(images_BCHW) - self.mean) / self.std
        states = self.model.vision_model(pixel_values=pixels_BCHW).pooler_output
        return nn.functional.normalize(self.model.visual_projection(states), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of unit length [B, E]; what is longer than the model reads is cut."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, return_tensors="pt"
        ).to(self.mean.device)
        states = self.model.text_model(**tokens).pooler_output
        return nn.functional.normalize(self.model.text_projection(states), dim=-1)

    def _cropped(self, images_BCHW: Tensor) -> Tensor:
        """The shortest side to the model's size, bicubic with antialiasing, and its middle."""
        height, width = images_BCHW.shape[2:]
        size = [self._shortest * side // min(height, width) for side in (height, width)]
        resized_BCHW = _resized(images_BCHW, size)
        top, left = ((side - crop) // 2 for side, crop in zip(size, self._crop, strict=True))
        return resized_BCHW[:, :, top : top + self._crop[0], left : left + self._crop[1]]

    def _padded(self, images_BCHW: Tensor) -> Tensor:
        """The longest side to the model's size, bicubic with antialiasing, and black around."""
        height, width = images_BCHW.shape[2:]
        size = [round(self._crop[0] * side / max(height, width)) for side in (height, width)]
        below, right = (self._crop[0] - side for side in size)
        return nn.functional.pad(
            _resized(images_BCHW, size),
            (right // 2, right - right // 2, below // 2, below - below // 2),
        )


def _resized(images_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """As Pillow does it, but for its bytes: first the rows, then the columns, each within [0, 1],
    beyond which a bicubic overshoots at edges."""
    for sides in ((images_BCHW.shape[2], size[1]), size):
        images_BCHW = nn.functional.interpolate(
            images_BCHW, size=list(sides), mode="bicubic", antialias=True
        ).clamp(0, 1)
    return images_BCHW


class ClipReward(nn.Module):
    """What rewards on these features share: the features, and `score` of pictures by `forward`."""

    def __init__(self, features: ClipFeatures) -> None:
        super().__init__()
        self.clip = features
        # It sees the GPU that its process has booked, and the whole of it if it is a part.
        self.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Float32 [B] of pictures uint8 [B, H, W, 3]."""
        # As bytes to the device, which converts them, and not one thread of a CPU.
        bytes_BHWC = np.ascontiguousarray(images_BHWC)
        on_device = torch.tensor(bytes_BHWC, device=self.clip.mean.device)
        images_BCHW = on_device.permute(0, 3, 1, 2).float() / 255
        return self(images_BCHW, prompts).float().cpu().numpy()

    def cosines(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [B] of pictures and prompts, with the gradient to the pictures."""
        with torch.no_grad():
            texts_BE = self.clip.texts(prompts)
        return (self.clip.images(images_BCHW) * texts_BE).sum(dim=-1)


class ClipScore(ClipReward):
    """Cosine of picture and prompt, in [-1, 1]; about 0.2 to 0.3 for pictures that fit.

    With OpenAI's CLIP this is the cosine that CLIPScore is made of (Hessel et al. 2021,
    arXiv:2104.08718).

    Args:
        clip: folder or hub id.
    """

    def __init__(self, clip: str) -> None:
        super().__init__(ClipFeatures(clip))

    @staticmethod
    def check(clip: str) -> None:
        """Looks whether the folder is there; a hub id is left to the hub.

        Raises:
            ValueError: it is not.
        """
        check_folder(clip)

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.cosines(images_BCHW, prompts)


class ClipAesthetic(ClipReward):
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
        super().__init__(ClipFeatures(clip))
        self.head = _linear_layers(Path(head), self.clip.width).to(self.clip.mean.device)

    @staticmethod
    def check(clip: str, head: str) -> None:
        """Looks whether folder and file are there; a hub id is left to the hub.

        Raises:
            ValueError: one is not.
        """
        check_folder(clip)
        if not Path(head).is_file():
            raise ValueError(
                f"no head's weights at {head}: give a .safetensors or .pth file of linear layers"
            )

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.head(self.clip.images(images_BCHW))[:, 0]


def check_folder(
    folder: str,
    file: str = "config.json",
    what: str = "CLIP model",
    example: str = "openai/clip-vit-large-patch14",
) -> None:
    """Looks for a file in a folder; what reads as a hub id is left to the hub.

    Raises:
        ValueError: it is not there.
    """
    is_path = folder.startswith((".", "/")) or folder.count("/") != 1
    if (is_path or Path(folder).exists()) and not (Path(folder) / file).is_file():
        raise ValueError(
            f"no {what} at {folder!r}: give a folder that transformers' save_pretrained wrote, "
            f"or a hub id such as {example}"
        )


def _linear_layers(path: Path, width: int) -> nn.Sequential:
    """The layers of a state dict, in the order of their numbers."""
    try:
        state = tensors(path)
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


def tensors(path: Path) -> dict[str, Any]:
    """What a file of weights holds; no code in it is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _number(name: str) -> int:
    """Of a layer in a sequence, such as 4 of `layers.4`."""
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isdigit() else 0
