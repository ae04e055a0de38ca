"""What a sampler runs: groups of prompts in, groups of latents out, and records of them.

A rollout depends on its group (prompt and seed) and on the policy's weights. Noise comes from
the seed alone, so the groups that share a batch change nothing but the last bits of a sum: run
one group a batch where runs must be equal bit by bit.
Shape suffixes: G members of a group, K kept latents, B rows of a batch, C H W latent channels,
height, width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actors.drift import few_step_drift, many_step_kl
from actors.sampling import Network, guided_noise, sample_ddpm, sample_few_steps
from buffer.records import Record, record_id
from learner.diffusion.chain import Chain
from learner.diffusion.few_steps import FewStepChain, FewSteps, few_step_chain
from learner.diffusion.noise import INITIAL_NOISE, group_noise
from learner.diffusion.schedule import NoiseSchedule
from learner.policy.board import Weights
from learner.policy.denoiser import guidance_rows
from learner.policy.flops import FlopMeter


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
        flops: this group's share of the floating-point operations that its batch took.
    """

    steps: tuple[int, ...]
    scored: tuple[int, ...]
    latents: np.ndarray
    flops: float = 0.0


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
        meter: what networks that are `Metered` by it cost is told with every rollout.
        base: the untouched network, for `drift`.
    """

    network: Network
    encode: Callable[[list[str]], Any]
    take: Callable[[Mapping[str, np.ndarray]], None]
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    group_size: int
    num_steps: int
    guidance_scale: float
    shared_initial_noise: bool = False
    device: torch.device | str = "cpu"
    meter: FlopMeter = field(default_factory=FlopMeter)
    base: Network | None = None

    def load(self, weights: Mapping[str, np.ndarray], /) -> None:
        """Take new weights, all of them or none."""
        self.take(weights)

    @torch.inference_mode()
    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group: all rows of all groups go through the network together."""
        before = self.meter.total
        rollouts = self._drawn(groups)
        flops = (self.meter.total - before) / len(groups)
        return [replace(rollout, flops=flops) for rollout in rollouts]

    def _drawn(self, groups: Sequence[Group]) -> list[Rollout]:
        raise NotImplementedError

    def _prompts(self, groups: Sequence[Group]) -> list[str]:
        return [group.prompt for group in groups for _ in range(self.group_size)]

    def _initial(self, groups: Sequence[Group]) -> Tensor:
        return self._noise(groups, INITIAL_NOISE, shared=self.shared_initial_noise)

    def _injected(self, groups: Sequence[Group], step: int) -> Tensor:
        return self._noise(groups, INITIAL_NOISE + 1 + step)

    def _noise(self, groups: Sequence[Group], stream: int, *, shared: bool = False) -> Tensor:
        noise = torch.cat(
            [
                group_noise(group.seed, self.group_size, self.latent_shape, stream, shared=shared)
                for group in groups
            ]
        )
        if torch.device(self.device).type == "cuda":
            # From pinned memory nobody waits for the copy, which waits for the network.
            return noise.pin_memory().to(self.device, non_blocking=True)
        return noise.to(self.device)


@dataclass(frozen=True, kw_only=True)
class FewStepPolicy(_GroupPolicy):
    """A model of few steps: keeps the clean prediction of every call, labelled 1 … num_steps.

    Args:
        kind: of its sampler.
        guidance_dim: `time_cond_proj_dim` of a model that takes the guidance scale as an input;
            None for one that has its guidance distilled in.
        num_scored: how many of these predictions rewards score, the last ones; None: all.
    """

    kind: FewSteps = "consistency"
    guidance_dim: int | None = None
    num_scored: int | None = None

    def __post_init__(self) -> None:
        if self.shared_initial_noise and self.num_steps < 2:
            raise ValueError(
                "shared_initial_noise with 1 step makes all members equal; use 2 steps or more"
            )

    def _drawn(self, groups: Sequence[Group]) -> list[Rollout]:
        clean = sample_few_steps(
            self.network,
            self._chain,
            self.encode(self._prompts(groups)),
            self._initial(groups),
            [self._injected(groups, step) for step in range(self.num_steps - 1)],
            self._guidance(len(groups) * self.group_size),
        )
        labels = tuple(range(1, self.num_steps + 1))
        scored = tuple(range(self.num_steps))[-(self.num_scored or self.num_steps) :]
        return _rollouts(clean, labels, scored, num_groups=len(groups))

    @torch.inference_mode()
    def drift(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """What tells the policy from its base, by name, a number for every row.

        `kl_nats`, a step's KL, mean over those that have a density, and `clean_distance`, as in
        `actors.drift.few_step_drift`; a policy of one step has no KL.
        """
        assert self.base is not None
        kl_BS, distance_B = few_step_drift(
            self.network,
            self.base,
            self._chain,
            self.encode(self._prompts(groups)),
            self._initial(groups),
            [self._injected(groups, step) for step in range(self.num_steps - 1)],
            self._guidance(len(groups) * self.group_size),
        )
        told = {"clean_distance": distance_B}
        if kl_BS.shape[1]:
            told["kl_nats"] = kl_BS.mean(dim=1)
        return {name: values_B.cpu().numpy() for name, values_B in told.items()}

    @property
    def _chain(self) -> FewStepChain:
        return few_step_chain(self.kind, self.schedule, self.num_steps)

    def _guidance(self, rows: int) -> Tensor | None:
        return guidance_rows(self.guidance_scale, self.guidance_dim, rows, self.device)


@dataclass(frozen=True, kw_only=True)
class ManyStepPolicy(_GroupPolicy):
    """A guided DDIM chain: keeps the chosen states, and always the clean one, which is scored.

    Its rows are doubled for guidance.

    A state's label is its number, as in `learner.diffusion.chain`. `encode` also gets the empty
    prompts of the unconditional half, first.

    Args:
        keep: states to keep of a group, by its seed: as many for one as for another, of
            0 … num_steps − 1, increasing.
        consistency: tells a clean latent of every kept state, which is kept and scored too.
        reference: the untouched model, whose noise at every kept state is kept too.
    """

    keep: Callable[[int], tuple[int, ...]]
    consistency: Network | None = None
    reference: Network | None = None

    def _drawn(self, groups: Sequence[Group]) -> list[Rollout]:
        prompts = self._prompts(groups)
        empty = [] if self.guidance_scale == 1 else [""] * len(prompts)
        states_of = [(*self.keep(group.seed), self.num_steps) for group in groups]
        text = self.encode(empty + prompts)
        kept = sample_ddpm(
            self.network,
            self.schedule,
            text,
            self._initial(groups),
            (self._injected(groups, step) for step in range(self.num_steps)),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            keep={state for states in states_of for state in states},
        )
        rows_of = [slice(i, i + self.group_size) for i in range(0, len(prompts), self.group_size)]
        latents = [
            torch.cat([kept[s[k]][rows] for s, rows in zip(states_of, rows_of, strict=True)])
            for k in range(len(states_of[0]))
        ]
        state_KG = list(zip(*states_of, strict=True))[:-1]
        starts = list(zip(latents, state_KG, strict=False))
        labels_KG, scored = list(zip(*states_of, strict=True)), (len(starts),)
        chain = Chain(self.schedule, self.num_steps)
        if self.consistency is not None:
            latents += [self._told(x, states_G, text[len(empty) :]) for x, states_G in starts]
            labels_KG += [tuple(map(chain.clean_label, states_G)) for states_G in state_KG]
            scored = tuple(range(len(starts), len(latents)))
        if self.reference is not None:
            latents += [self._reference_noise(x, states_G, text) for x, states_G in starts]
            labels_KG += [tuple(map(chain.noise_label, states_G)) for states_G in state_KG]
        parts = np.split(_stored(latents), len(groups))
        return [
            Rollout(labels, scored, part)
            for labels, part in zip(zip(*labels_KG, strict=True), parts, strict=True)
        ]

    @torch.inference_mode()
    def drift(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """`kl_nats` of every row: the true KL of a step to the base, mean over the chain."""
        assert self.base is not None
        prompts = self._prompts(groups)
        empty = [] if self.guidance_scale == 1 else [""] * len(prompts)
        kl_BS = many_step_kl(
            self.network,
            self.base,
            self.schedule,
            self.encode(empty + prompts),
            self._initial(groups),
            (self._injected(groups, step) for step in range(self.num_steps)),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )
        return {"kl_nats": kl_BS.mean(dim=1).cpu().numpy()}

    def _told(self, x_BCHW: Tensor, states_G: Sequence[int], text: Any) -> Tensor:
        """What the consistency model tells of one kept state of all rows, without guidance."""
        network, chain = self.consistency, Chain(self.schedule, self.num_steps)
        assert network is not None
        return chain.told_clean(
            lambda x, t_B: network(x, t_B.to(x.device), text, None), x_BCHW, self._rows(states_G)
        )

    def _reference_noise(self, x_BCHW: Tensor, states_G: Sequence[int], text: Any) -> Tensor:
        """The reference's guided noise at one kept state of all rows, as that will be stored."""
        chain = Chain(self.schedule, self.num_steps)
        t_B = chain.state_times(self._rows(states_G)).to(x_BCHW.device)
        rounded = x_BCHW.to(torch.float16).to(x_BCHW.dtype)
        assert self.reference is not None
        return guided_noise(self.reference, rounded, t_B, text, self.guidance_scale)

    def _rows(self, states_G: Sequence[int]) -> Tensor:
        return torch.tensor(states_G).repeat_interleave(self.group_size)


def to_records(
    group: Group, rollout: Rollout, policy_version: int, *, sampler: str = ""
) -> tuple[list[Record], dict[int, str]]:
    """The records of a group, one a member; and by member, why it has none."""
    is_finite = [bool(np.isfinite(latents_KCHW).all()) for latents_KCHW in rollout.latents]
    reason = f"policy version {policy_version} draws latents that are not finite in float16"
    records = [
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
            sampler=sampler,
        )
        for member, latents_KCHW in enumerate(rollout.latents)
        if is_finite[member]
    ]
    return records, {member: reason for member, finite in enumerate(is_finite) if not finite}


def _rollouts(
    latents: Sequence[Tensor], steps: tuple[int, ...], scored: tuple[int, ...], *, num_groups: int
) -> list[Rollout]:
    return [Rollout(steps, scored, part) for part in np.split(_stored(latents), num_groups)]


def _stored(latents: Sequence[Tensor]) -> np.ndarray:
    """[B, K, C, H, W] as records hold them."""
    return torch.stack(list(latents), dim=1).to(torch.float16).cpu().numpy()
