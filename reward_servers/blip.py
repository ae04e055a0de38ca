"""What rewards on a BLIP share: its files, and pictures as it sees them.

Weights are not shipped: a folder that transformers' `save_pretrained` wrote, or a hub id.
Shape suffixes: B images, H W pixels.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


class BlipParts:
    """A frozen BLIP with its tokenizer and preprocessing, float32, on the GPU if one is booked.

    Args:
        model_class: name of the class in transformers, such as `BlipForQuestionAnswering`.
        blip: folder or hub id.
        side: pixels that pictures are resized to, both ways; null: as the image processor says.

    Raises:
        ValueError: nothing there that loads as one.
    """

    def __init__(self, model_class: str, blip: str, side: int | None = None) -> None:
        import transformers

        try:
            model: Any = getattr(transformers, model_class)
            self.model: Any = model.from_pretrained(blip, dtype=torch.float32)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(blip)
            processor: Any = transformers.BlipImageProcessorPil
            self._pixels: Any = processor.from_pretrained(blip)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"no {model_class} at {blip!r}: {error}. Give a folder that save_pretrained of "
                "transformers' model, tokenizer and image processor wrote, or a hub id"
            ) from error
        if side is not None:
            self._pixels.size = {"height": side, "width": side}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval().requires_grad_(False).to(self.device)
        # Positions were learned at one size; at another they are interpolated, as BLIP's own code
        # does.
        trained = self.model.config.vision_config.image_size
        size = self._pixels.size
        self.interpolate = (size["height"], size["width"]) != (trained, trained)

    def pixels(self, images_BHWC: np.ndarray) -> Tensor:
        """Pictures uint8 [B, H, W, 3], resized and normalised by BLIP's own processor."""
        from PIL import Image

        pictures = [Image.fromarray(image) for image in images_BHWC]
        return self._pixels(pictures, return_tensors="pt")["pixel_values"].to(self.device)
