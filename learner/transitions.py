"""Steps of on-policy trajectories: the states, the noise that was added, and what they earned.

A step's noise is a function of its group's seed and a step's state is kept or follows from what is
kept, so a record of an on-policy run holds no more than one of an off-policy run.
Shape suffixes: B rows, C H W latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from buffer.records import IndexEntry
from buffer.replay import Replay
from learner.diffusion.few_steps import FewStepChain
from learner.diffusion.noise import INITIAL_NOISE, member_noise
from learner.diffusion.strata import Strata
from learner.settings.on_policy import OnPolicy


@dataclass(frozen=True)
class Transitions:
    """Steps that were taken.

    Args:
        latents_BCHW: float32, scaled; the latents that the network was asked about.
        step_B: number of the step, int64 [B].
        noise_BCHW: standard normal, float32; what the step added, in deviations.
        weight_B: float32, of mean 1 over a trajectory's steps.
        old_eps_BCHW: the guided noise that the sampling version tells, once it was asked.
    """

    latents_BCHW: Tensor
    step_B: Tensor
    noise_BCHW: Tensor
    prompts: Sequence[str]
    advantage_B: Tensor
    weight_B: Tensor
    old_eps_BCHW: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, rows: Sequence[int]) -> "Transitions":
        """Some of them, in that order."""
        at = torch.tensor(rows)
        old = None if self.old_eps_BCHW is None else self.old_eps_BCHW[at]
        return Transitions(
            self.latents_BCHW[at],
            self.step_B[at],
            self.noise_BCHW[at],
            [self.prompts[row] for row in rows],
            self.advantage_B[at],
            self.weight_B[at],
            old,
        )

    def remembering(self, old_eps_BCHW: Tensor) -> "Transitions":
        """With the noise that the sampling version tells."""
        return replace(self, old_eps_BCHW=old_eps_BCHW)


class Steps(Protocol):
    """Which of a trajectory's steps are trained on, and how they are read again."""

    weights: tuple[float, ...]
    """Of each of them, of mean 1."""

    def step_of(self, entry: IndexEntry, slot: int) -> int:
        """Number of the step in a slot."""
        ...

    def states(
        self, replay: Replay, wanted: Sequence[tuple[IndexEntry, int]]
    ) -> list[Tensor | None]:
        """Latents [C, H, W] before (trajectory, slot); None: not in the replay any more."""
        ...


def trained_strata(settings: OnPolicy, num_steps: int) -> Strata:
    """Which states of a chain of many steps samplers keep and the learner trains on."""
    return Strata.spread(num_steps, settings.steps_trained(num_steps))


class KeptSteps:
    """Steps of a many-step chain whose states its trajectories keep."""

    def __init__(self, strata: Strata) -> None:
        shares = strata.shares
        self.weights = tuple((shares * len(shares)).tolist())

    def step_of(self, entry: IndexEntry, slot: int) -> int:
        return entry.steps[slot]

    def states(
        self, replay: Replay, wanted: Sequence[tuple[IndexEntry, int]]
    ) -> list[Tensor | None]:
        read = replay.read_latents([(entry.record_id, slot) for entry, slot in wanted])
        return [None if x is None else _float32(x) for x in read]


class Renoised:
    """Calls of a few-step sampler whose clean latent is noised again.

    Args:
        num_calls: the first so many calls; with the last call, whose picture gets no noise, an
            action is made up that nothing depends on.
        shared_initial_noise: as the samplers have it.
    """

    def __init__(
        self,
        chain: FewStepChain,
        latent_shape: tuple[int, int, int],
        num_calls: int,
        *,
        shared_initial_noise: bool,
    ) -> None:
        self.weights = (1.0,) * num_calls
        self._chain = chain
        self._shape = latent_shape
        self._shared = shared_initial_noise

    def step_of(self, entry: IndexEntry, slot: int) -> int:
        return slot

    def states(
        self, replay: Replay, wanted: Sequence[tuple[IndexEntry, int]]
    ) -> list[Tensor | None]:
        """Noise at first; later what the clean latents of the calls before were noised to."""
        read = iter(
            replay.read_latents(
                [(entry.record_id, k) for entry, slot in wanted for k in self._needed(slot)]
            )
        )
        return [
            self._state(entry, slot, [next(read) for _ in self._needed(slot)])
            for entry, slot in wanted
        ]

    def _needed(self, slot: int) -> range:
        """Calls whose clean latents a state depends on, beside the noise."""
        return range(0 if self._chain.keeps_noise else max(0, slot - 1), slot)

    def _state(
        self, entry: IndexEntry, slot: int, clean: Sequence[np.ndarray | None]
    ) -> Tensor | None:
        member = 0 if self._shared else entry.member
        x = self._chain.initial(member_noise(entry.seed, member, self._shape, INITIAL_NOISE)[None])
        for k, latent in zip(self._needed(slot), clean, strict=True):
            if latent is None:
                return None
            noise = step_noise(entry, k, self._shape)[None]
            x = self._chain.noised(x, _float32(latent)[None], k, noise)
        return x[0]


def step_noise(entry: IndexEntry, step: int, shape: Sequence[int]) -> Tensor:
    """What a sampler added after a step, in deviations, float32."""
    return member_noise(entry.seed, entry.member, shape, INITIAL_NOISE + 1 + step)


def read_transitions(
    replay: Replay,
    steps: Steps,
    entries: Sequence[IndexEntry],
    advantages: Sequence[float],
    rows: Sequence[int],
    *,
    replaces: bool = True,
) -> Transitions:
    """Steps by row number: of trajectory `row // K`, its slot `row % K`.

    Args:
        advantages: of the trajectories.
        replaces: whether those that are gone from the replay are replaced by others of the rows.

    Raises:
        LookupError: all of them are gone, or one that may not be replaced.
    """
    slots = len(steps.weights)
    wanted = [(entries[row // slots], row % slots) for row in rows]
    states = steps.states(replay, wanted)
    there = [i for i, x in enumerate(states) if x is not None]
    if not there or (len(there) < len(rows) and not replaces):
        raise LookupError(
            f"{len(rows) - len(there)} of {len(rows)} steps of the newest groups are not in the "
            "replay any more: its capacity is too small for what a cycle samples, or another run "
            "evicts it"
        )
    kept = np.resize(there, len(rows)).tolist()
    latents = torch.stack([x for i in kept if (x := states[i]) is not None])
    taken = [(*wanted[i], steps.step_of(*wanted[i])) for i in kept]
    return Transitions(
        latents_BCHW=latents,
        step_B=torch.tensor([step for _, _, step in taken]),
        noise_BCHW=torch.stack([step_noise(e, step, latents.shape[1:]) for e, _, step in taken]),
        prompts=[entry.prompt for entry, _, _ in taken],
        advantage_B=torch.tensor([advantages[rows[i] // slots] for i in kept]),
        weight_B=torch.tensor([steps.weights[slot] for _, slot, _ in taken]),
    )


def shuffled_batches(num_rows: int, batches: int, size: int, rng: Generator) -> np.ndarray:
    """Row numbers, int64 [batches, size]: every row once before any comes again.

    Raises:
        LookupError: there are no rows.
    """
    if num_rows < 1:
        raise LookupError("there is no step to train on")
    passes = -(-batches * size // num_rows)
    order = np.concatenate([rng.permutation(num_rows) for _ in range(passes)])
    return order[: batches * size].reshape(batches, size)


def _float32(latent: np.ndarray) -> Tensor:
    return torch.from_numpy(latent.astype(np.float32))
