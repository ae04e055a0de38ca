"""DRaFT's policy step under an engine: states near the end of a chain in, one update out.

Every random draw is a function of (seed, step), of the whole batch on every rank.
Shape suffixes: B rows of this rank, K steps, C H W latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.engine import Engine
from learner.methods.climbed import RewardOf
from learner.methods.draft import (
    AskNoise,
    KlForm,
    Walk,
    reward_loss,
    step_kl,
    through_last_steps,
    through_one_call,
    through_renoised,
)
from learner.methods.updates import CountedUpdates, Metrics, step_generator
from learner.policy.denoiser import Denoiser, Network, guided_call
from learner.policy.text import Encode, Text
from learner.seat import Seat
from learner.settings.draft import Draft
from learner.states import StateBatch


@dataclass(frozen=True)
class DraftBatch:
    """What one update is made from.

    Args:
        start: states, or clean latents, that the reward's gradient starts from.
        beside: as many states of the steps before, whose KL is told; None: of none.
    """

    start: StateBatch
    beside: StateBatch | None = None

    def rows(self, rows: slice) -> "DraftBatch":
        """Some of them."""
        return DraftBatch(self.start.rows(rows), self.beside and self.beside.rows(rows))


class DraftPolicy(CountedUpdates):
    """The policy under its engine, and the steps that improve it.

    Args:
        engine: of a `Denoiser` of many steps.
        reference: the untouched network, frozen.
        guidance_scale: of both.
    """

    def __init__(
        self,
        settings: Draft,
        engine: Engine,
        chain: Chain,
        encode: Encode,
        reference: Denoiser,
        reward: RewardOf,
        *,
        guidance_scale: float,
        seat: Seat,
    ) -> None:
        super().__init__(engine, settings.micro_batches)
        self._settings = settings
        self._chain = chain
        self._encode = encode
        self._reference = reference
        self._reward = reward
        self._guidance_scale = guidance_scale
        self._seat = seat
        self._form = KlForm(settings.kl_reduce, settings.kl_std)

    def step(self, batch: DraftBatch) -> dict[str, float]:
        """One update from rows of this rank; returns its metrics."""
        noise_KBCHW = self._noise(batch.start.latents_BCHW)
        return self._update(lambda rows: self._loss(batch.rows(rows), noise_KBCHW[:, rows]))

    def _loss(self, batch: DraftBatch, noise_KBCHW: Tensor) -> tuple[Tensor, Metrics]:
        settings, times, num_steps = self._settings, self._copies, self._chain.num_steps
        start, device = batch.start, self._engine.device
        prompts = list(start.prompts) * times
        text, policy, reference = self._asking(prompts)
        counts = settings.path_counts(num_steps) if settings.alpha > 0 else 0
        walk = self._walk(
            start.latents_BCHW.to(device).repeat(times, 1, 1, 1),
            start.step_B.repeat(times),
            noise_KBCHW.to(device),
            policy,
            reference if counts else None,
        )
        kl_B, nats_B = counts * walk.kl_B, counts * walk.nats_B
        if batch.beside is not None:
            left_out = len(settings.steps_beside(num_steps))
            beside_kl_B, beside_nats_B = self._kl_beside(batch.beside)
            kl_B = kl_B + left_out * beside_kl_B.repeat(times)
            nats_B = nats_B + left_out * beside_nats_B.repeat(times)
        reward_B = self._reward(walk.clean, text, prompts)
        loss = reward_loss(reward_B, kl_B, alpha=settings.alpha, ceiling=settings.ceiling)
        metrics: dict[str, float | Tensor] = {
            "draft_loss": loss.detach(),
            f"{settings.reward}_reward": reward_B.detach().mean(),
        }
        if settings.alpha > 0:
            metrics["kl_nats"] = nats_B.detach().mean()
            metrics["kl_penalty"] = settings.alpha * kl_B.detach().mean()
        return loss, metrics

    def _kl_beside(self, batch: StateBatch) -> tuple[Tensor, Tensor]:
        """Of one step each, [B]: in its form, and true."""
        _, policy, reference = self._asking(batch.prompts)
        x = batch.latents_BCHW.to(self._engine.device)
        return step_kl(policy, reference, x, batch.step_B, self._chain, self._form)

    def _walk(
        self,
        x: Tensor,
        step_B: Tensor,
        noise_KBCHW: Tensor,
        policy: AskNoise,
        reference: AskNoise | None,
    ) -> Walk:
        chain, form = self._chain, self._form
        if self._settings.path == "last":
            return through_last_steps(policy, reference, x, noise_KBCHW, chain, form)
        if self._settings.path == "stopped":
            return through_one_call(policy, reference, x, step_B, chain, form)
        noise, step_noise = (part.flatten(0, 1) for part in noise_KBCHW.chunk(2))
        return through_renoised(policy, reference, x, noise, step_noise, chain, form)

    @property
    def _copies(self) -> int:
        """Of every row: one for each noise that it is noised with again."""
        return self._settings.renoisings if self._settings.path == "renoised" else 1

    def _asking(self, prompts: Sequence[str]) -> tuple[Text, AskNoise, AskNoise]:
        """Text of the prompts, and policy and reference as they are asked with it."""
        text = self._encode(list(prompts)).to(self._engine.device)
        empty = self._encode([""] * len(prompts)).to(self._engine.device)

        def asking(network: Network) -> AskNoise:
            def ask(x: Tensor, t_B: Tensor) -> Tensor:
                t_B = t_B.to(x.device)
                return guided_call(network, x, t_B, text, empty, self._guidance_scale)

            return ask

        return text, asking(self._engine), asking(self._reference)

    def _noise(self, x: Tensor) -> Tensor:
        """This rank's share of the step's noise, [K, B, C, H, W]: of each step of the path, and of
        each noising again."""
        settings = self._settings
        count = {"last": settings.last_steps, "renoised": 2 * settings.renoisings, "stopped": 0}
        generator = step_generator(self._seat.seed, self.steps_taken)
        shape = (count[settings.path], settings.policy_batch, *x.shape[1:])
        return torch.randn(shape, generator=generator)[:, self._seat.share]
