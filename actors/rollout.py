"""What a sampler runs: groups of prompts in, groups of latents out, and records of them.

A rollout depends on its group (prompt and seed) and on the policy's weights. Noise comes from
the seed alone, so the groups that share a batch change nothing but the last bits of a sum: run
one group a batch where runs must be equal bit by bit.
Shape suffixes: G members of a group, K kept latents, B rows of a batch, C H W latent channels,
height, width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actors.sampling import INITIAL_NOISE, Network, group_noise, sample_ddpm, sample_few_steps
from buffer.records import Record, record_id
from learner.diffusion.consistency import guidance_embedding
from learner.diffusion.schedule import NoiseSchedule
from learner.policy.board import Weights


@dataclass(frozen=True)
class Group:
    """One ticket's work."""

    ticket: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Rollout:
    """What a policy made of one group.

    Args:
        steps: the label of every kept latent.
        scored: positions in `steps` of the clean latents that rewards score.
        latents: float16 [G, K, C, H, W].
    """

    steps: tuple[int, ...]
    scored: tuple[int, ...]
    latents: np.ndarray


class Policy(Protocol):
    """A policy that a sampler worker runs. `load` is called between batches only."""

    def load(self, weights: Weights, /) -> None:
        """Take new weights, all of them or none."""
        ...

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group, in one batched pass."""
        ...


@dataclass(frozen=True, kw_only=True)
class _GroupPolicy:
    """What both kinds of policy need.

    Args:
        encode: prompts of all rows -> what the network takes for them. Every prompt comes
            `group_size` times.
        take: puts new weights into the network.
        shared_initial_noise: the on-policy ablation: members differ by injected noise alone.
    """

    network: Network
    encode: Callable[[list[str]], Any]
    take: Callable[[Weights], None]
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    group_size: int
    num_steps: int
    guidance_scale: float
    shared_initial_noise: bool = False
    device: torch.device | str = "cpu"

    def load(self, weights: Weights, /) -> None:
        """Take new weights, all of them or none."""
        self.take(weights)

    def _prompts(self, groups: Sequence[Group]) -> list[str]:
        return [group.prompt for group in groups for _ in range(self.group_size)]

    def _initial(self, groups: Sequence[Group]) -> Tensor:
        return self._noise(groups, INITIAL_NOISE, shared=self.shared_initial_noise)

    def _injected(self, groups: Sequence[Group], step: int) -> Tensor:
        return self._noise(groups, INITIAL_NOISE + 1 + step)

    def _noise(self, groups: Sequence[Group], stream: int, *, shared: bool = False) -> Tensor:
        return torch.cat(
            [
                group_noise(group.seed, self.group_size, self.latent_shape, stream, shared=shared)
                for group in groups
            ]
        ).to(self.device)


@dataclass(frozen=True, kw_only=True)
class FewStepPolicy(_GroupPolicy):
    """A consistency model: keeps the clean prediction of every call, labelled 1 … num_steps.

    Args:
        guidance_dim: `time_cond_proj_dim` of a model that takes the guidance scale as an input;
            None for one that has its guidance distilled in.
    """

    guidance_dim: int | None = None

    def __post_init__(self) -> None:
        if self.shared_initial_noise and self.num_steps < 2:
            raise ValueError(
                "shared_initial_noise with 1 step makes all members equal; use 2 steps or more"
            )

    @torch.inference_mode()
    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group: all rows of all groups go through the network together."""
        clean = sample_few_steps(
            self.network,
            self.schedule,
            self.encode(self._prompts(groups)),
            self._initial(groups),
            [self._injected(groups, step) for step in range(self.num_steps - 1)],
            self._guidance(len(groups) * self.group_size),
        )
        labels = tuple(range(1, self.num_steps + 1))
        return _rollouts(clean, labels, tuple(range(self.num_steps)), num_groups=len(groups))

    def _guidance(self, rows: int) -> Tensor | None:
        if self.guidance_dim is None:
            return None
        w_B = torch.full((rows,), self.guidance_scale - 1.0, device=self.device)
        return guidance_embedding(w_B, self.guidance_dim)


@dataclass(frozen=True, kw_only=True)
class ManyStepPolicy(_GroupPolicy):
    """A guided DDIM chain: keeps the chosen states, and always the clean one, which is scored.

    State i is the latent before step i; state num_steps is the clean one. `encode` also gets
    the empty prompts of the unconditional half, first.

    Args:
        keep: states to keep of a group, by its seed: as many for one as for another, of
            0 … num_steps − 1.
    """

    keep: Callable[[int], tuple[int, ...]]
    eta: float = 1.0

    @torch.inference_mode()
    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group: all rows of all groups, doubled for guidance, go together."""
        prompts = self._prompts(groups)
        empty = [] if self.guidance_scale == 1 else [""] * len(prompts)
        states_of = [tuple(sorted({*self.keep(group.seed), self.num_steps})) for group in groups]
        kept = sample_ddpm(
            self.network,
            self.schedule,
            self.encode(empty + prompts),
            self._initial(groups),
            (self._injected(groups, step) for step in range(self.num_steps)),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            keep={state for states in states_of for state in states},
            eta=self.eta,
        )
        rollouts = []
        for i, states in enumerate(states_of):
            rows = slice(i * self.group_size, (i + 1) * self.group_size)
            latents = [kept[state][rows] for state in states]
            rollouts += _rollouts(latents, states, (len(states) - 1,), num_groups=1)
        return rollouts


def to_records(group: Group, rollout: Rollout, policy_version: int) -> list[Record]:
    """The records of a group, one a member.

    Raises:
        ValueError: a latent is not finite in float16, so its policy has diverged.
    """
    finite_G = np.isfinite(rollout.latents).all(axis=(1, 2, 3, 4))
    if not finite_G.all():
        raise ValueError(
            f"ticket {group.ticket}: members {np.flatnonzero(~finite_G).tolist()} have latents "
            f"that are not finite in float16; policy version {policy_version} has diverged"
        )
    return [
        Record(
            record_id=record_id(group.ticket, member),
            ticket=group.ticket,
            member=member,
            prompt=group.prompt,
            policy_version=policy_version,
            seed=group.seed,
            steps=rollout.steps,
            scored=rollout.scored,
            latents=tuple(latents_KCHW),
        )
        for member, latents_KCHW in enumerate(rollout.latents)
    ]


def _rollouts(
    latents: Sequence[Tensor], steps: tuple[int, ...], scored: tuple[int, ...], *, num_groups: int
) -> list[Rollout]:
    latents_BKCHW = torch.stack(list(latents), dim=1).to(torch.float16).cpu().numpy()
    return [
        Rollout(steps, scored, latents_GKCHW)
        for latents_GKCHW in np.split(latents_BKCHW, num_groups)
    ]
