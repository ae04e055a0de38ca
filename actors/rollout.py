"""What a sampler runs: groups of prompts in, groups of latents out, and records of them.

A rollout depends on its group (prompt and seed) and on the policy's weights. Noise comes from
the seed alone, so the groups that share a batch change nothing but the last bits of a sum: run
one group a batch where runs must be equal bit by bit.
Shape suffixes: G members of a group, K kept latents, B rows of a batch, C H W latent channels,
height, width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actors.sampling import INITIAL_NOISE, Network, group_noise, sample_ddpm, sample_few_steps
from buffer.records import Record, record_id
from learner.diffusion.consistency import guidance_embedding
from learner.diffusion.schedule import NoiseSchedule

Weights = Mapping[str, np.ndarray]


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
        latents_GKCHW: float16.
    """

    steps: tuple[int, ...]
    scored: tuple[int, ...]
    latents_GKCHW: np.ndarray


class Policy(Protocol):
    """A policy that a sampler worker runs. `load` is called between batches only."""

    def load(self, weights: Weights) -> None:
        """Take new weights, all of them or none."""
        ...

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group, in one batched pass."""
        ...


class FewStepPolicy:
    """A consistency model: keeps the clean prediction of every call, labelled 1 … num_steps.

    Args:
        encode: prompts of all rows -> what the network takes for them.
        load: puts new weights into the network.
        guidance_dim: `time_cond_proj_dim` of a model that takes the guidance scale as an input.
        shared_initial_noise: the on-policy ablation: members differ by injected noise alone.
    """

    def __init__(
        self,
        network: Network,
        *,
        encode: Callable[[Sequence[str]], Any],
        load: Callable[[Weights], None],
        schedule: NoiseSchedule,
        latent_shape: Sequence[int],
        group_size: int,
        num_steps: int,
        guidance_scale: float = 1.0,
        guidance_dim: int | None = None,
        shared_initial_noise: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if shared_initial_noise and num_steps < 2 and group_size > 1:
            raise ValueError(
                "shared_initial_noise with 1 step makes all members equal; use 2 steps or more"
            )
        self.load = load
        self._network = network
        self._encode = encode
        self._schedule = schedule
        self._latent_shape = tuple(latent_shape)
        self._group_size = group_size
        self._num_steps = num_steps
        self._guidance_scale = guidance_scale
        self._guidance_dim = guidance_dim
        self._shared = shared_initial_noise
        self._device = torch.device(device)

    @torch.inference_mode()
    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group: all rows of all groups go through the network together."""
        clean = sample_few_steps(
            self._network,
            self._schedule,
            self._encode(_row_prompts(groups, self._group_size)),
            self._noise(groups, INITIAL_NOISE, shared=self._shared),
            [self._noise(groups, INITIAL_NOISE + k) for k in range(1, self._num_steps)],
            self._guidance(len(groups) * self._group_size),
        )
        steps = tuple(range(1, self._num_steps + 1))
        scored = tuple(range(self._num_steps))
        return _rollouts(clean, steps, scored, num_groups=len(groups))

    def _noise(self, groups: Sequence[Group], stream: int, *, shared: bool = False) -> Tensor:
        return _batch_noise(
            groups, self._group_size, self._latent_shape, stream, self._device, shared=shared
        )

    def _guidance(self, rows: int) -> Tensor | None:
        if self._guidance_dim is None:
            return None
        w_B = torch.full((rows,), self._guidance_scale - 1.0, device=self._device)
        return guidance_embedding(w_B, self._guidance_dim)


class ManyStepPolicy:
    """A guided DDIM chain: keeps the chosen states, and always the clean one, which is scored.

    State i is the latent before step i; state num_steps is the clean one.

    Args:
        encode: prompts of all rows, the empty ones of the unconditional half first -> what the
            network takes for them.
        keep: states to keep, of 0 … num_steps.
    """

    def __init__(
        self,
        network: Network,
        *,
        encode: Callable[[Sequence[str]], Any],
        load: Callable[[Weights], None],
        schedule: NoiseSchedule,
        latent_shape: Sequence[int],
        group_size: int,
        num_steps: int,
        guidance_scale: float,
        keep: Sequence[int],
        eta: float = 1.0,
        shared_initial_noise: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        outside = [state for state in keep if not 0 <= state <= num_steps]
        if outside:
            raise ValueError(f"keep has {outside}; states are 0 to {num_steps}")
        self.load = load
        self._network = network
        self._encode = encode
        self._schedule = schedule
        self._latent_shape = tuple(latent_shape)
        self._group_size = group_size
        self._num_steps = num_steps
        self._guidance_scale = guidance_scale
        self._steps = tuple(sorted({*keep, num_steps}))
        self._eta = eta
        self._shared = shared_initial_noise
        self._device = torch.device(device)

    @torch.inference_mode()
    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group: all rows of all groups, doubled for guidance, go together."""
        prompts = _row_prompts(groups, self._group_size)
        kept = sample_ddpm(
            self._network,
            self._schedule,
            self._encode([""] * len(prompts) + prompts),
            self._noise(groups, INITIAL_NOISE, shared=self._shared),
            (self._noise(groups, INITIAL_NOISE + 1 + i) for i in range(self._num_steps)),
            num_steps=self._num_steps,
            guidance_scale=self._guidance_scale,
            keep=self._steps,
            eta=self._eta,
        )
        latents = [kept[step] for step in self._steps]
        scored = (len(self._steps) - 1,)
        return _rollouts(latents, self._steps, scored, num_groups=len(groups))

    def _noise(self, groups: Sequence[Group], stream: int, *, shared: bool = False) -> Tensor:
        return _batch_noise(
            groups, self._group_size, self._latent_shape, stream, self._device, shared=shared
        )


def to_records(group: Group, rollout: Rollout, policy_version: int) -> list[Record]:
    """The records of a group, one a member.

    Raises:
        ValueError: a latent is not finite in float16, so its policy has diverged.
    """
    finite_G = np.isfinite(rollout.latents_GKCHW).all(axis=(1, 2, 3, 4))
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
        for member, latents_KCHW in enumerate(rollout.latents_GKCHW)
    ]


@torch.no_grad()
def load_weights(parameters: Mapping[str, Tensor], weights: Weights) -> None:
    """Copy named weights into a network's parameters, all of them or none.

    Raises:
        ValueError: other names or shapes than the parameters'.
    """
    missing = sorted(parameters.keys() - weights.keys())
    unknown = sorted(weights.keys() - parameters.keys())
    if missing or unknown:
        raise ValueError(f"weights do not fit: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != weights[name].shape:
            raise ValueError(
                f"{name} is {tuple(parameter.shape)}, its new weights are {weights[name].shape}"
            )
    for name, parameter in parameters.items():
        # Arrays out of the object store are read-only views, which torch will not wrap.
        parameter.copy_(torch.from_numpy(weights[name].copy()))


def _row_prompts(groups: Sequence[Group], group_size: int) -> list[str]:
    return [group.prompt for group in groups for _ in range(group_size)]


def _batch_noise(
    groups: Sequence[Group],
    group_size: int,
    shape: Sequence[int],
    stream: int,
    device: torch.device,
    *,
    shared: bool,
) -> Tensor:
    noise = [group_noise(group.seed, group_size, shape, stream, shared=shared) for group in groups]
    return torch.cat(noise).to(device)


def _rollouts(
    latents: Sequence[Tensor], steps: tuple[int, ...], scored: tuple[int, ...], *, num_groups: int
) -> list[Rollout]:
    latents_BKCHW = torch.stack(list(latents), dim=1).to(torch.float16).cpu().numpy()
    return [
        Rollout(steps, scored, latents_GKCHW)
        for latents_GKCHW in np.split(latents_BKCHW, num_groups)
    ]
