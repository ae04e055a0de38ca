"""Where the chains of `deploy.bench.sqdf_schemes` wait: whole in files, or in part in the replay.

Shape suffixes: B chains, K kept latents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from buffer.records import Record, Scores, record_id
from buffer.redis_replay import RedisReplay, ReplaySettings
from learner.diffusion.strata import Strata

CAPACITY = 1024
"""Chains that are kept, as in the reference's script."""


class Store(Protocol):
    """Where chains wait to be stepped from."""

    keeps: Strata
    """What a chain keeps."""

    def put(self, first: int, prompts: Sequence[str], latents: np.ndarray) -> None:
        """Float16 [B, K, C, H, W]: the states and, behind them, what else is kept."""
        ...

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Latents by chain and place."""
        ...


class Files:
    """One file a chain, read as a whole for every state that is drawn."""

    def __init__(self, folder: Path, keeps: Strata) -> None:
        self.keeps = keeps
        self._folder = folder

    def put(self, first: int, prompts: Sequence[str], latents: np.ndarray) -> None:
        for row, prompt in enumerate(prompts):
            content = {"prompt": prompt, "latents": torch.from_numpy(latents[row].copy())}
            torch.save(content, self._path(first + row))

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        return [
            torch.load(self._path(number), weights_only=True)["latents"][place].numpy()
            for number, place in wanted
        ]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number % CAPACITY}.pt"


class Slices:
    """The replay: few states a chain, scored records, single latents read."""

    def __init__(self, url: str, keeps: Strata) -> None:
        self.keeps = keeps
        self._replay = RedisReplay.connect(
            ReplaySettings(url=url, run="schemes", capacity_records=CAPACITY)
        )

    def put(self, first: int, prompts: Sequence[str], latents: np.ndarray) -> None:
        """Tickets are leased, groups put and scores committed, as a run does it."""
        replay = self._replay
        replay.admit(limit=first + len(prompts), policy_version=0)
        for row, prompt in enumerate(prompts):
            ticket = replay.lease_ticket("bench", lease_s=60.0)
            assert ticket is not None
            assert ticket.number == first + row
            record = Record(
                record_id=record_id(ticket.number, 0),
                ticket=ticket.number,
                member=0,
                prompt=prompt,
                policy_version=0,
                seed=ticket.number,
                steps=tuple(range(latents.shape[1])),
                scored=(latents.shape[1] - 1,),
                latents=tuple(latents[row]),
            )
            replay.put_group(ticket.number, [record])
        claimed = replay.claim("bench", max_records=len(prompts), block_s=1.0, lease_s=60.0)
        replay.commit([(record.record_id, Scores({"reward": (0.0,)})) for record in claimed])

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        found = self._replay.read_latents([(record_id(n, 0), place) for n, place in wanted])
        return [latent for latent in found if latent is not None]
