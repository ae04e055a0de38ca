"""What pictures look like as a whole, whatever was asked for: signs that a reward is exploited.

A policy that has found what a reward overrates tends to draw the same colours everywhere, or
noise, or a blur; none of that needs a reference to be seen.
Shape suffixes: N pictures, H W pixels; the last axis is red, green, blue, uint8.
"""

import numpy as np

_LEVELS = 8
"""Of each channel in the histogram: fine enough to tell tints, coarse enough for few pixels."""
# Rec. 601, as grey pictures are made from colour ones.
_LUMA = np.array([0.299, 0.587, 0.114])


def colour_entropy(images_NHWC: np.ndarray) -> float:
    """Shannon entropy in bits of the colours of all pixels of all pictures, in 8 × 8 × 8 bins.

    0: one colour everywhere; 9, the most: every bin equally often.
    """
    counts = np.zeros(_LEVELS**3, np.int64)
    for image_HWC in images_NHWC:  # one at a time: large ones take eight times their size
        levels = image_HWC.reshape(-1, 3).astype(np.int64) * _LEVELS // 256
        counts += np.bincount(levels @ np.array([_LEVELS**2, _LEVELS, 1]), minlength=_LEVELS**3)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() + 0.0)  # no −0


def sharpness(images_NHWC: np.ndarray) -> float:
    """Variance of the Laplacian of a picture's grey levels (0 to 255), mean over the pictures.

    The Laplacian is that of four neighbours, at pixels that have all four. A blur lowers it,
    noise and hard edges raise it.
    """
    return float(np.mean([_laplacian_of(image_HWC).var() for image_HWC in images_NHWC]))


def _laplacian_of(image_HWC: np.ndarray) -> np.ndarray:
    grey = image_HWC.astype(np.float64) @ _LUMA
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return neighbours - 4 * grey[1:-1, 1:-1]
