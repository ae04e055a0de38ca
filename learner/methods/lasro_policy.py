"""LaSRO's policy step: a few-step policy climbs its surrogate reward, held by distillation.

No true reward is asked here: prompts and fresh noise are enough. Every random draw is a
function of (seed, step), of the whole batch on every rank, so that cutting the batch over ranks
changes nothing but the order of a sum.
Shape suffixes: B rows of this rank, C H W latent, L tokens, E embedding.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.collectives import all_rows, mean_over_ranks, rank_mean
from learner.diffusion.few_steps import FewStepChain
from learner.engine import Engine
from learner.exploration import Climb
from learner.methods.distillation import NUM_TIMES, Distilled, distillation_error, distilled
from learner.methods.lasro import (
    RewardScale,
    anchor_weight,
    gradient,
    reward_loss,
    squash,
)
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser, Network, guidance_rows
from learner.policy.text import Encode, Text
from learner.seat import Seat
from learner.settings.lasro import Lasro
from learner.settings.model import Model

log = logging.getLogger(__name__)
# The anchor's weight is measured anew every so many steps: two backward passes.
_MEASURE_EVERY = 10


@dataclass(frozen=True)
class AnchorData:
    """Clean latents and their prompts to distil on; a fixed set, the same on every rank."""

    latents_NCHW: Tensor
    prompts: Sequence[str]


@dataclass(frozen=True)
class PolicyState:
    """What a policy step carries to the next, beside weights and optimizer.

    Args:
        anchor_weight: as it was measured last; None before.
    """

    step: int = 0
    anchor_weight: float | None = None
    scales: tuple[RewardScale, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "PolicyState":
        scales = tuple(RewardScale(**scale) for scale in state["scales"])
        return cls(state["step"], state["anchor_weight"], scales)


class LasroPolicy:
    """The policy under its engine, and the steps that improve it.

    Args:
        engine: of a `Denoiser`.
        teacher: frozen multi-step network, or None without an anchor.
        climb: the reward, called with (latents, text, step index).
    """

    def __init__(
        self,
        settings: Lasro,
        model: Model,
        engine: Engine,
        chain: FewStepChain,
        latent_shape: tuple[int, int, int],
        encode: Encode,
        teacher: Denoiser | None,
        climb: Climb,
        seat: Seat,
    ) -> None:
        self._settings = settings
        self._model = model
        self._seat = seat
        self._rewarded = rewarded_steps(settings, model)
        self._engine = engine
        self._chain = chain
        self._schedule = chain.schedule
        self._latent_shape = latent_shape
        self._encode = encode
        self._teacher = teacher
        self._climb = climb
        self.state = PolicyState(scales=(RewardScale(),) * len(self._rewarded))

    @property
    def measures_anchor(self) -> bool:
        """Whether the next step measures the anchor's weight anew."""
        is_due = self.state.anchor_weight is None or self.state.step % _MEASURE_EVERY == 0
        return self._settings.anchor.ratio is not None and is_due

    def step(self, prompts: Sequence[str], anchor: AnchorData | None) -> dict[str, float]:
        """One update on fresh noise for prompts drawn from `prompts`; returns its metrics."""
        draw = self._draw(prompts, anchor)
        weight = self._anchor_weight(draw)
        scores, anchor_loss = self._terms(self._engine, draw)
        scales, squashed, clips = [], [], []
        for scale, scores_B in zip(self.state.scales, scores, strict=True):
            seen = scale.seen(all_rows(scores_B))
            value_B, clip = squash(scores_B, scale.before(seen))
            scales.append(seen)
            squashed.append(value_B)
            clips.append(clip)
        gain = reward_loss(squashed, step_weights(self._settings, self._model))
        norm = self._engine.update([gain + weight * anchor_loss])
        self.state = dataclasses.replace(self.state, step=self.state.step + 1)
        if math.isfinite(norm):  # what led to no update would not leave a running mean again
            self.state = PolicyState(self.state.step, weight, tuple(scales))
        metrics = {
            "anchor_loss": float(anchor_loss.detach()),
            "anchor_weight": weight,
            "gradient_norm": norm,
        }
        for step, scores_B, clip in zip(self._rewarded, scores, clips, strict=True):
            metrics[f"surrogate_{step + 1}step"] = float(scores_B.detach().mean())
            metrics[f"clipped_{step + 1}step"] = clip
        return mean_over_ranks(metrics)

    def _draw(self, prompts: Sequence[str], anchor: AnchorData | None) -> "_Draw":
        """This rank's rows of the step's prompts, noise and anchor batch."""
        generator = step_generator(self._seat.seed, self.state.step)
        batch = self._settings.policy_batch
        drawn = torch.randint(len(prompts), (batch,), generator=generator)[self._seat.share]
        shape = (self._model.num_steps, batch, *self._latent_shape)
        noise = torch.randn(shape, generator=generator)[:, self._seat.share]
        anchoring = None
        if anchor is not None and self._teacher is not None:
            anchoring = self._draw_anchor(anchor, generator)
        text = self._encode([prompts[int(i)] for i in drawn])
        return _Draw(text.to(self._engine.device), noise.to(self._engine.device), anchoring)

    def _terms(self, network: Network, draw: "_Draw") -> tuple[list[Tensor], Tensor]:
        """Surrogate rewards [B] of every rewarded step, and the anchor's loss."""
        clean, anchor_loss = self._clean_predictions(network, draw)
        rows, scores = len(draw.text), []
        for k, step in enumerate(self._rewarded):
            step_B = torch.full((rows,), k, device=draw.noise.device)
            scores.append(self._climb(clean[step], draw.text, step_B))
        return scores, anchor_loss

    def _clean_predictions(self, network: Network, draw: "_Draw") -> tuple[list[Tensor], Tensor]:
        """z_1 … z_N with gradient, and the anchor's loss, which shares the first network call."""
        text, noise, anchoring = draw.text, draw.noise, draw.anchoring
        guidance = self._guidance(len(text))
        clean: list[Tensor] = []
        anchor_loss = torch.zeros(())
        x = self._chain.initial(noise[0])
        for k, timestep in enumerate(self._chain.timesteps):
            t_B = torch.full((len(text),), timestep, device=noise.device)
            if k > 0:
                before = clean[-1] if self._settings.cross_term else clean[-1].detach()
                x = self._chain.noised(x, before, k - 1, noise[k])
            if k == 0 and anchoring is not None:
                eps, anchor_eps = network(
                    torch.cat([x, anchoring.x_start]),
                    torch.cat([t_B, anchoring.start_B]),
                    Text.cat([text, anchoring.text]),
                    _concat(guidance, self._guidance(len(anchoring.text))),
                ).split([len(text), len(anchoring.text)])
                anchor_loss = self._anchor_loss(anchor_eps, anchoring)
            else:
                eps = network(x, t_B, text, guidance)
            clean.append(self._chain.clean(x, eps, t_B))
        return clean, anchor_loss

    def _draw_anchor(self, anchor: AnchorData, generator: torch.Generator) -> Distilled:
        """Noised latents, and where the teacher's step from there leads."""
        mine, count, device = self._seat.share, self._settings.anchor.batch, self._engine.device
        rows = torch.randint(len(anchor.prompts), (count,), generator=generator)[mine]
        index_B = torch.randint(NUM_TIMES, (count,), generator=generator)[mine]
        noise = torch.randn((count, *self._latent_shape), generator=generator)[mine]
        assert self._teacher is not None
        return distilled(
            self._teacher,
            anchor.latents_NCHW[rows].to(device),
            noise.to(device),
            index_B.to(device),
            self._encode([anchor.prompts[int(i)] for i in rows]).to(device),
            self._encode([""] * len(rows)).to(device),
            self._schedule,
            guidance_scale=self._model.guidance_scale,
        )

    def _anchor_loss(self, eps: Tensor, anchoring: Distilled) -> Tensor:
        """LCM distillation with the policy itself, without gradient, as the target network."""
        guidance = self._guidance(len(anchoring))
        module = self._engine.module
        return distillation_error(eps, module, anchoring, guidance, self._schedule).mean()

    def _anchor_weight(self, draw: "_Draw") -> float:
        """The constant, or what the gradient norms ask for, averaged over steps."""
        settings, state = self._settings.anchor, self.state
        if draw.anchoring is None:
            return 0.0
        if settings.ratio is None:
            return settings.weight or 0.0
        if state.anchor_weight is not None and not self.measures_anchor:
            return state.anchor_weight
        # The bare module: an engine's outputs refuse any backward but its own.
        module = self._engine.module
        parameters = [p for p in module.parameters() if p.requires_grad]
        scores, anchor_loss = self._terms(module, draw)
        squashed = [
            squash(scores_B, scale.before(scale.seen(all_rows(scores_B))))[0]
            for scale, scores_B in zip(state.scales, scores, strict=True)
        ]
        gain = reward_loss(squashed, step_weights(self._settings, self._model))
        anchor_norm, reward_norm = (
            _norm_over_ranks(gradient(loss, parameters)) for loss in (anchor_loss, gain)
        )
        now = anchor_weight(anchor_norm, reward_norm, settings.ratio)
        return now if state.anchor_weight is None else 0.5 * state.anchor_weight + 0.5 * now

    def _guidance(self, rows: int) -> Tensor | None:
        denoiser = self._engine.module
        assert isinstance(denoiser, Denoiser)
        dim = denoiser.unet.config["time_cond_proj_dim"]
        return guidance_rows(self._model.guidance_scale, dim, rows, self._engine.device)


def rewarded_steps(settings: Lasro, model: Model) -> tuple[int, ...]:
    """Which of the sampler's clean latents carry reward, counted from 0."""
    num_steps = model.num_steps
    return tuple(range(num_steps - settings.scored_latents(num_steps), num_steps))


def step_weights(settings: Lasro, model: Model) -> tuple[float, ...]:
    """c_k of every rewarded step."""
    return settings.step_weights or (1.0,) * len(rewarded_steps(settings, model))


@dataclass(frozen=True)
class _Draw:
    """What a step works on: text states, noise of every sampling step, the anchor's batch."""

    text: Text
    noise: Tensor
    anchoring: Distilled | None


def _norm_over_ranks(gradient: Sequence[Tensor]) -> float:
    """Of the ranks' mean gradient: the mean of their norms would grow with the ranks.

    Part by part, as one vector of all would take a full fine-tune's weights once more.
    """
    return float(torch.stack([rank_mean(part).norm() for part in gradient]).norm())


def _concat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
