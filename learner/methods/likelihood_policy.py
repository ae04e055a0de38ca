"""GORS' and Diffusion-DPO's policy steps under an engine: clean latents in, one update out.

Every random draw is a function of (seed, step), of the whole batch on every rank.
Shape suffixes: B rows of this rank, C H W latent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from learner.clean_latents import CleanBatch, PairBatch
from learner.diffusion.schedule import NoiseSchedule, add_noise
from learner.engine import Engine
from learner.methods.distillation import NUM_TIMES, distillation_error, distilled
from learner.methods.likelihood import dpo_loss, reward_weighted, squared_error
from learner.methods.updates import CountedUpdates, step_generator
from learner.policy.denoiser import Network
from learner.policy.text import Encode, Text
from learner.seat import Seat
from learner.settings.likelihood import Dpo, Gors, Likelihood

Guidance = Callable[[int], Tensor | None]
"""Rows -> the guidance embedding that a consistency model takes; None: it takes none."""


class _Noising(CountedUpdates):
    """What both share: latents that are noised to random times."""

    def __init__(
        self,
        settings: Likelihood,
        engine: Engine,
        schedule: NoiseSchedule,
        encode: Encode,
        seat: Seat,
    ) -> None:
        super().__init__(engine, settings.micro_batches)
        self._schedule = schedule
        self._encode = encode
        self._batch = settings.policy_batch
        self._seat = seat

    def _draw(self, batch: CleanBatch, num_times: int) -> tuple[Tensor, Tensor]:
        """This rank's share of a step's noise, and of its times below `num_times`."""
        generator = step_generator(self._seat.seed, self.steps_taken)
        shape = (self._batch, *batch.latents_BCHW.shape[1:])
        noise = torch.randn(shape, generator=generator)
        time_B = torch.randint(num_times, (self._batch,), generator=generator)
        return noise[self._seat.share], time_B[self._seat.share]


class GorsPolicy(_Noising):
    """Learns to denoise good pictures, each by its reward.

    Args:
        engine: of a `Denoiser`.
        teacher: of a consistency model, whose distillation loss is weighted; None: the policy is a
            model of many steps, and its squared error is.
    """

    def __init__(
        self,
        settings: Gors,
        engine: Engine,
        schedule: NoiseSchedule,
        encode: Encode,
        teacher: Network | None,
        guidance: Guidance,
        *,
        guidance_scale: float,
        seat: Seat,
    ) -> None:
        super().__init__(settings, engine, schedule, encode, seat)
        self._settings = settings
        self._teacher = teacher
        self._guidance = guidance
        self._guidance_scale = guidance_scale

    def step(self, batch: CleanBatch) -> dict[str, float]:
        """One update from latents of this rank; returns its metrics."""
        times = self._schedule.num_train_timesteps if self._teacher is None else NUM_TIMES
        noise, time_B = self._draw(batch, times)
        return self._update(lambda rows: self._loss(batch.rows(rows), noise[rows], time_B[rows]))

    def _loss(
        self, batch: CleanBatch, noise: Tensor, time_B: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        device = self._engine.device
        latents, noise, time_B = batch.latents_BCHW.to(device), noise.to(device), time_B.to(device)
        text = self._encode(list(batch.prompts)).to(device)
        if self._teacher is None:
            x = add_noise(latents, noise, time_B, self._schedule)
            error_B = squared_error(self._engine(x, time_B, text), noise)
        else:
            error_B = self._distillation_error(latents, noise, time_B, text)
        loss = reward_weighted(error_B, batch.reward_B.to(device))
        return loss, {
            "gors_loss": float(loss.detach()),
            "denoising_error": float(error_B.detach().mean()),
            "kept_reward": float(batch.reward_B.mean()),
        }

    def _distillation_error(
        self, latents: Tensor, noise: Tensor, index_B: Tensor, text: Text
    ) -> Tensor:
        assert self._teacher is not None
        batch = distilled(
            self._teacher,
            latents,
            noise,
            index_B,
            text,
            self._encode([""] * len(latents)).to(latents.device),
            self._schedule,
            guidance_scale=self._guidance_scale,
        )
        guidance = self._guidance(len(batch))
        eps = self._engine(batch.x_start, batch.start_B, text, guidance)
        return distillation_error(eps, self._engine.module, batch, guidance, self._schedule)


class DpoPolicy(_Noising):
    """Prefers the better picture of a group, more than the untouched model does.

    Args:
        engine: of a `Denoiser` of many steps.
        reference: the untouched network, frozen.
    """

    def __init__(
        self,
        settings: Dpo,
        engine: Engine,
        schedule: NoiseSchedule,
        encode: Encode,
        reference: Network,
        *,
        seat: Seat,
    ) -> None:
        super().__init__(settings, engine, schedule, encode, seat)
        self._settings = settings
        self._reference = reference

    def step(self, batch: PairBatch) -> dict[str, float]:
        """One update from pairs of this rank; returns its metrics."""
        noise, t_B = self._draw(batch.winners, self._schedule.num_train_timesteps)
        return self._update(lambda rows: self._loss(batch.rows(rows), noise[rows], t_B[rows]))

    def _loss(
        self, batch: PairBatch, noise: Tensor, t_B: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        device = self._engine.device
        latents = torch.cat([batch.winners.latents_BCHW, batch.losers.latents_BCHW]).to(device)
        # Of a pair both have one noise and one time.
        noise, t_B = noise.repeat(2, 1, 1, 1).to(device), t_B.repeat(2).to(device)
        x = add_noise(latents, noise, t_B, self._schedule)
        text = self._encode([*batch.winners.prompts, *batch.losers.prompts]).to(device)
        winner_B, loser_B = squared_error(self._engine(x, t_B, text), noise).chunk(2)
        with torch.no_grad():
            ref_winner_B, ref_loser_B = squared_error(self._reference(x, t_B, text), noise).chunk(2)
        loss = dpo_loss(winner_B, loser_B, ref_winner_B, ref_loser_B, self._settings.beta)
        preferred_B = winner_B.detach() - ref_winner_B < loser_B.detach() - ref_loser_B
        return loss, {
            "dpo_loss": float(loss.detach()),
            "preferred": float(preferred_B.float().mean()),
        }
