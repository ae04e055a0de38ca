"""The size of a picture as JPEG: the plainest reward that is not differentiable."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


class JpegSize:
    """Kilobytes (1000 bytes) of each picture as JPEG; the prompt is not looked at.

    Args:
        quality: 1 to 95, as Pillow has it.
        sign: -1 rewards pictures that compress well, +1 those that do not.
    """

    def __init__(self, quality: int = 95, sign: int = -1) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"quality is {quality}; JPEG qualities go from 1 to 95")
        if sign not in (-1, 1):
            raise ValueError(f"sign is {sign}; -1 rewards small files, 1 rewards large ones")
        self._quality, self._sign = quality, sign

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Signed kilobytes, float32 [B]."""
        sizes = [self._size_bytes(image_HWC) for image_HWC in images_BHWC]
        return self._sign * np.array(sizes, dtype=np.float32) / np.float32(1000)

    def _size_bytes(self, image_HWC: np.ndarray) -> int:
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, format="JPEG", quality=self._quality)
        return file.tell()
