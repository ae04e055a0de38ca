"""What reinforcement has to go by at a few steps of a model, measured before any training.

    python -m deploy.diagnose deploy/configs/shapes-rlcm.yaml [a.b=value ...] --steps 1 2 4 8

draws the config's untouched policy at its held-out prompts with each number of steps, asks its
rewards, and prints a table, which --out writes with every number that it is made of; one that was
ended goes on after the last number of steps that it had written. For each number of steps:

- rho: correlation of the reward with the best linear function of the first action's noise; what
  an action's policy gradient has to go by.
- SNR: signal to noise of one picture's policy gradient. Of the first action as a gradient of what
  it draws from, in D dimensions; of the first and of all actions as one of the trained weights.
  Only the last two compare with each other.
- policy gradient, by call: shares of the calls' squared lengths, without what they have in common.
  The last call has no likelihood, so none.
- made up: what the term has to go by that takes noise which no picture shows for the last call's
  action; share of its mean in the squared length of one picture's, 0 but for chance.
- pathwise, by call: shares of the squared lengths of a gradient through the picture itself, such
  as a surrogate's, mean over random directions.
- gain: how much further apart two clean latents are than the initial noises, in random directions:
  a lower bound of the local Lipschitz constant. Beside it its ratio to that of the fewest steps, at
  the same noises and directions (geometric mean).
- spread: RMS distance of clean latents of one prompt and one initial noise.

All but the gain's ratio are means over the prompts, each with one initial noise.
Shape suffixes: P prompts, M draws of each, D latent dimensions.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.prompts import seed_of
from deploy.diagnosis import (
    DIAGNOSIS_FILE,
    Diagnosed,
    Diagnosis,
    interval,
    measured_before,
    rows_of,
    write_diagnosis,
)
from deploy.markdown import markdown
from deploy.run.policy_build import device_of
from deploy.settings.problems import ConfigError
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import RunConfig, load_config
from learner.diagnostics import (
    Call,
    MeanVector,
    VectorSum,
    calls,
    gain,
    of_one_row,
    pathwise_gradients,
    policy_gradient,
    score_vectors,
    shares,
)
from learner.diffusion.noise import INITIAL_NOISE, group_noise
from learner.methods import ddpo
from learner.policy.components import PipelineFolder, decode_latents
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.trainable import trainable_unet
from reward_servers.base import Failure
from reward_servers.metadata import informed
from reward_servers.registry import build_reward
from reward_servers.timed import TimedReward, score_all

_NUDGE = 0.01
"""Length of the step that a gain is measured with, in deviations of the initial noise."""
_MADE_UP = 10_000
"""Stream of the noise that no picture shows."""


class RewardFailedError(Exception):
    """A picture has no reward, so nothing is known of what it teaches."""


class Subject:
    """A config's untouched policy, its rewards, and the prompts that it is measured on."""

    def __init__(self, config: RunConfig, *, prompts: int, draws: int, batch: int) -> None:
        pipeline = PipelineFolder.of(config.model)
        if pipeline.few_steps() != "consistency":
            raise ValueError(
                f"{config.model.path} is drawn by ancestral steps; this tells of consistency models"
            )
        self.config, self.draws, self.batch = config, draws, batch
        self.device = device_of(config.evaluation.num_gpus)
        unet: Any = trainable_unet(pipeline, config.model, seed=config.seed)
        unet.to(self.device)
        # In float32: the step of a gain is no longer than a rounding of bfloat16.
        self._network = Denoiser(unet)
        self.weights = [weight for weight in unet.parameters() if weight.requires_grad]
        self._guidance_dim = unet.config["time_cond_proj_dim"]
        self._encode = pipeline.prompt_encoder(self.device)
        self._vae = pipeline.vae(self.device)
        self.schedule = pipeline.schedule
        self.shape = pipeline.latent_shape
        known = prompt_set(config.evaluation.prompts, config.evaluation.seed)
        self.prompts = [known.prompts[i % len(known.prompts)] for i in range(prompts)]
        self._rewards = [
            (
                reward.weight,
                TimedReward(
                    name,
                    informed(build_reward(reward.kind, reward.args), known.table),
                    timeout_s=config.scoring.timeout_s,
                ),
            )
            for name, reward in config.rewards.items()
            if reward.weight != 0
        ]

    def ask(self, prompt: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The network at one prompt, whatever the number of rows."""
        text = self._encode([prompt])

        def network(x: Tensor, t_B: Tensor) -> Tensor:
            guidance = guidance_rows(
                self.config.model.guidance_scale, self._guidance_dim, len(x), self.device
            )
            return self._network(x, t_B, text.repeat_interleave(len(x)), guidance)

        return network

    def noise(self, prompt: int, stream: int, *, shared: bool = False) -> Tensor:
        """Of all draws of a prompt, [M, C, H, W]."""
        seed = seed_of(self.config.evaluation.seed, prompt)
        drawn = group_noise(seed, self.draws, self.shape, stream, shared=shared)
        return drawn.to(self.device)

    def rewards(self, clean: Tensor, prompt: str) -> Tensor:
        """Weighted sum of the rewards of pictures, float64 [M].

        Raises:
            RewardFailedError: a reward failed, as often as the config allows.
        """
        images = decode_latents(self._vae, clean)
        total = np.zeros(len(images))
        for weight, reward in self._rewards:
            outcomes = score_all(
                reward,
                images,
                [prompt] * len(images),
                batch=self.config.scoring.max_batch,
                attempts=self.config.replay.max_attempts,
            )
            for row, outcome in enumerate(outcomes):
                if isinstance(outcome, Failure):
                    raise RewardFailedError(f"the reward {reward.name} failed: {outcome.reason}")
                total[row] += weight * outcome
        return torch.from_numpy(total)


def diagnose(subject: Subject, steps: int) -> Diagnosis:
    """One number of steps."""
    of_noise: list[MeanVector] = []
    of_weights: list[list[MeanVector]] = []
    gains, spreads = [], []
    pathwise = [0.0] * steps
    alike = 0
    for number, prompt in enumerate(subject.prompts):
        ask = subject.ask(prompt)
        noise = partial(subject.noise, number)
        initial = noise(INITIAL_NOISE, shared=True)
        injected = [noise(INITIAL_NOISE + 1 + k) for k in range(steps - 1)]
        # Two or more, as one part alone does not tell its noise.
        count = max(2, math.ceil(subject.draws / subject.batch))
        parts = torch.arange(subject.draws, device=subject.device).tensor_split(count)
        with torch.no_grad():
            chains = [
                calls(ask, subject.schedule, initial[rows], [each[rows] for each in injected])
                for rows in parts
            ]
        clean = torch.cat([chain[-1].clean for chain in chains])
        spreads.append(_spread(clean))
        gains.append(_gain(subject, ask, chains[0], noise(_MADE_UP + 1)))
        for k, each in enumerate(_pathwise(subject, ask, chains[0], noise(_MADE_UP + 2))):
            pathwise[k] += each
        if steps == 1:
            continue
        reward_M = subject.rewards(clean, prompt)
        advantage_M = ddpo.advantages(reward_M[None], baseline="batch", clip=math.inf)[0]
        advantage_M = advantage_M.to(subject.device)
        alike += int(not advantage_M.any())
        of_noise.append(score_vectors(advantage_M, injected[0]))
        unseen = noise(_MADE_UP)
        ended = [
            [*chain, _with_action(subject, chain[-1], unseen[rows])]
            for chain, rows in zip(chains, parts, strict=True)
        ]
        of_weights.append(_signals(subject, ask, ended, [advantage_M[rows] for rows in parts]))
    *by_call, made_up, whole = zip(*of_weights, strict=True) if of_weights else [(), ()]
    signals = [interval([each.signal for each in found]) for found in by_call]
    return Diagnosis(
        steps=steps,
        dims=math.prod(subject.shape),
        prompts=len(subject.prompts),
        draws=subject.draws,
        rho2=interval([each.signal for each in of_noise]) if of_noise else None,
        noise_snr=_snr(of_noise),
        first_snr=_snr(by_call[0]) if by_call else None,
        snr=_snr(whole),
        policy_signals=signals,
        policy_shares=shares([signal for signal, _ in signals]),
        made_up=_share(made_up),
        pathwise_shares=shares(pathwise),
        gains=gains,
        spread=interval(spreads),
        alike=alike,
    )


def _signals(
    subject: Subject,
    ask: Callable[[Tensor, Tensor], Tensor],
    parts: Sequence[Sequence[Call]],
    advantages: Sequence[Tensor],
) -> list[MeanVector]:
    """What one picture tells of the policy gradient of each call at one prompt, the last of them
    made up, and of that of all calls but this one."""
    totals = [VectorSum() for _ in range(len(parts[0]) + 1)]
    for of_part, advantage_B in zip(parts, advantages, strict=True):
        found = [
            policy_gradient(ask, subject.schedule, call, advantage_B, subject.weights)
            for call in of_part
        ]
        for total, gradient in zip(totals, [*found, sum(found[:-1])], strict=True):
            total.add(torch.as_tensor(gradient))
    rows = [len(advantage_B) for advantage_B in advantages]
    return [of_one_row(total.mean(), rows) for total in totals]


def _spread(clean: Tensor) -> float:
    rows = clean.flatten(1)
    return float(torch.pdist(rows).square().mean().sqrt()) / rows.shape[1] ** 0.5


def _gain(
    subject: Subject,
    ask: Callable[[Tensor, Tensor], Tensor],
    chain: Sequence[Call],
    direction: Tensor,
) -> float:
    """Mean over the draws of a chain, each in a direction of its own."""
    initial, step = chain[0].x, _NUDGE * direction[: len(chain[0].x)]
    injected = [call.noise for call in chain if call.noise is not None]
    with torch.no_grad():
        moved = calls(ask, subject.schedule, initial + step, injected)
    return float(gain(moved[-1].clean, chain[-1].clean, step).mean())


def _pathwise(
    subject: Subject,
    ask: Callable[[Tensor, Tensor], Tensor],
    chain: Sequence[Call],
    direction: Tensor,
) -> list[float]:
    """Squared lengths by call, of one draw."""
    one = [Call(call.x[:1], call.t_B[:1], call.clean[:1], None, call.scale) for call in chain]
    found = pathwise_gradients(ask, subject.schedule, one, direction[:1], subject.weights)
    return [float(each.double().square().sum()) for each in found]


def _with_action(subject: Subject, last: Call, noise: Tensor) -> Call:
    """The last call as if noise of its own time were added after it."""
    alpha, sigma = subject.schedule.alpha_sigma(last.t_B[:1], last.x)
    return Call(last.x, last.t_B, last.clean, noise, float((alpha / sigma).flatten()[0]))


def _snr(found: Sequence[MeanVector]) -> tuple[float, float, float] | None:
    """Over the prompts."""
    if not found:
        return None
    signal, half = interval([each.signal for each in found])
    power = statistics.mean(each.power for each in found)
    ends = (MeanVector(each, power, len(found)) for each in (signal, signal - half, signal + half))
    middle, least, most = (each.snr for each in ends)
    return middle, least, most


def _share(found: Sequence[MeanVector]) -> tuple[float, float] | None:
    """Of the mean in the squared length of one picture's; 0 where nothing is learned from."""
    if not found:
        return None
    signal, half = interval([each.signal for each in found])
    power = statistics.mean(each.power for each in found)
    return (signal / power, half / power) if power > 0 else (0.0, 0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 if the config is wrong, 1 if a reward failed."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.diagnose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    usual = Diagnosed()
    parser.add_argument("--steps", type=int, nargs="+", default=usual.steps, choices=[1, 2, 4, 8])
    parser.add_argument("--prompts", type=int, default=usual.prompts)
    parser.add_argument("--draws", type=int, default=usual.draws, help="of each prompt")
    parser.add_argument("--batch", type=int, default=usual.batch, help="draws at once")
    parser.add_argument("--out", type=Path, help=f"folder for {DIAGNOSIS_FILE}")
    options = parser.parse_intermixed_args(arguments)
    if options.prompts < 2 or options.draws < 2 or options.batch < 1:
        parser.error("--prompts and --draws must be at least 2, --batch at least 1")
    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not config.model.is_few_step:
        parser.error(f"{options.config} has a model of many steps; give one of few")
    torch.set_num_threads(config.evaluation.threads)
    try:
        subject = Subject(config, prompts=options.prompts, draws=options.draws, batch=options.batch)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asked = Diagnosed(
        steps=tuple(options.steps),
        prompts=options.prompts,
        draws=options.draws,
        batch=options.batch,
    )
    known = {} if options.out is None else measured_before(options.out, config, asked)
    found = []
    try:
        for steps in asked.steps:
            if steps not in known:
                sys.stderr.write(f"drawing {asked.prompts} prompts, steps: {steps}\n")
            found.append(known.get(steps) or diagnose(subject, steps))
            if options.out is not None:
                write_diagnosis(options.out, config, asked, found)
    except RewardFailedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(markdown(rows_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
