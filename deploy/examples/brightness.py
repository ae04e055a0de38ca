"""A reward of one's own, to copy: how near a picture's brightness is to the one that is wanted.

In a config it is named by module and class, and its arguments stand under `args`:

    rewards:
      brightness: {kind: "deploy.examples.brightness:Brightness", args: {target: 0.7}}

The module may lie anywhere that the reward servers can import it from: in this folder, in your
own package, or beside the config where the job's working directory is.
"""

from collections.abc import Sequence

import numpy as np

# How bright red, green and blue look to us (ITU-R BT.709).
_WEIGHTS = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


class Brightness:
    """1 for a picture of mean brightness `target`, less the further away it is; at least 0.

    A reward is a plain class with a `score` method; there is nothing to inherit from. It is made
    once in each reward server, so this is the place to load a model or open a connection.

    Args:
        target: wanted mean brightness, 0 is black and 1 is white.
    """

    def __init__(self, target: float = 0.5) -> None:
        # A ValueError is shown as it stands, so say what was given and what is allowed.
        if not 0 <= target <= 1:
            raise ValueError(f"target is {target}; brightness goes from 0 to 1")
        self._target = target

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """One float32 a picture; higher is better.

        Args:
            images_BHWC: uint8 [B, height, width, 3], RGB. B changes from call to call.
            prompts: the B texts that the pictures were made for; not needed here.

        Raise when the whole batch cannot be scored: its pictures are then tried one by one, and
        those that still fail are set aside with the reason. Where you know which ones fail, return
        `reward_servers.base.Scored(values, {row: reason})`. Never return a stand-in such as 0:
        the learner could not tell it from a verdict.
        """
        brightness_B = (images_BHWC / np.float32(255) @ _WEIGHTS).mean(axis=(1, 2))
        return (1 - np.abs(brightness_B - self._target)).astype(np.float32)
