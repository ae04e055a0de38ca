"""Rewards that misbehave as foreign packages do, for a child process."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


class Mean:
    """Mean of a picture, and what the prompt asks for instead."""

    def __init__(self, greeting: str = "") -> None:
        if greeting == "refuse":
            raise FileNotFoundError("no weights at /nowhere.pt")
        print(greeting)  # noqa: T201  as packages do when they load

    @staticmethod
    def check(greeting: str = "") -> None:
        if greeting == "refuse":
            raise ValueError("no weights at /nowhere.pt")

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        (asked,) = set(prompts)
        if asked == "raise":
            raise RuntimeError("a bad picture")
        if asked == "die":
            os.write(2, b"out of memory, said the library\n")
            os._exit(9)
        if asked == "hang":
            time.sleep(600)
        if asked == "print":
            os.write(1, b"RWD1 as if it were an answer")
            print("as if it were an answer")  # noqa: T201
        if asked == "shape":
            return np.zeros(len(prompts) + 1, np.float32)
        if asked == "threads":
            return np.full(len(prompts), os.environ["OMP_NUM_THREADS"], dtype=np.float32)
        if asked == "path":
            beside = Path(__file__).parents[1].resolve() / "reward_servers"
            return np.full(len(prompts), str(beside) in sys.path, dtype=np.float32)
        return images_BHWC.mean(axis=(1, 2, 3)).astype(np.float32)


class Partial:
    """Says why a row has no score."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> object:
        from reward_servers.base import Scored

        return Scored(np.zeros(len(prompts), np.float32), {1: "not this one"})


class NoScore:
    """Is no reward."""


class Wanted:
    """What a prompt comes with."""

    def score(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, float]],
    ) -> np.ndarray:
        return np.array([each["wanted"] for each in metadata], np.float32)
