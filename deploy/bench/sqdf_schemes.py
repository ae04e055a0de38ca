"""SQDF in one process, in the way of its reference code and in ours, measure by measure.

    python -m deploy.bench.sqdf_schemes NAME [--steps 20] [--target 0.45] [--threads 2]

The objective, the batch and the optimizer are the same in all; a scheme says how the work is done.
Prints one JSON line. What a cluster adds, roles that work side by side, is in none of them.
Shape suffixes: B rows, K kept states, C H W latent.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from actors.sampling import sample_ddpm
from buffer.embedded import EmbeddedServer
from deploy.bench.sqdf_stores import CAPACITY, Files, Slices, Store
from deploy.settings.prompt_sources import prompt_list
from deploy.settings.run_config import RunConfig, load_config
from learner.diffusion.chain import Chain
from learner.diffusion.ddim import gaussian_kl
from learner.diffusion.noise import group_noise
from learner.diffusion.strata import Strata
from learner.methods.sqdf import clean_by_consistency, kl_std, soft_q_loss, take_step
from learner.policy.components import PipelineFolder, decode_images
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.policy.trainable import make_policy_trainable, trainable_arrays
from learner.policy.views import SamplingPolicy, policy_over, with_lora
from learner.settings.sqdf import Sqdf
from reward_servers.registry import build_reward

PRESET = Path(__file__).resolve().parent.parent / "configs" / "shapes-sqdf-aesthetic.yaml"
_CHECK_STEPS = 5
_TEXT_BYTES = 2**29
_SEED_OF_CHECKS = 2**31


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the work is done; the defaults are the reference code's way.

    Attributes:
        steps_per_round: policy steps between two rounds of trajectories, a batch of them each.
        fused: the sampler adds the adapter to weights of its own once a round.
        halves: the consistency model also computes an unconditional half that counts nothing.
        keeps_text: text states of prompts that were seen are kept.
        slices: a few states of a chain go through Redis and single ones are read, instead of
            whole chains through files.
        one_base: three views over one set of base weights instead of three networks.
        stores_reference: the sampler keeps the reference's noise.
        micro_batches: parts that a batch is differentiated in.
    """

    steps_per_round: int = 1
    fused: bool = False
    halves: bool = True
    keeps_text: bool = False
    slices: bool = False
    one_base: bool = False
    stores_reference: bool = False
    micro_batches: int = 1


MEASURES: dict[str, dict[str, Any]] = {
    "reference": {},
    "ten steps a round": {"steps_per_round": 10},
    "adapter added once": {"fused": True},
    "no unconditional half": {"halves": False},
    "text states kept": {"keeps_text": True},
    "six states, slices": {"slices": True},
    "one base": {"one_base": True},
    "micro-batches of 24": {"micro_batches": 2},
    "stored reference noise": {"stores_reference": True},
}
"""Each one is added to those before it."""


def schemes() -> dict[str, Scheme]:
    """Every measure with all before it, by its name."""
    scheme, found = Scheme(), {}
    for name, change in MEASURES.items():
        found[name] = scheme = replace(scheme, **change)
    return found


@dataclass(frozen=True)
class Drawn:
    """States to step from: float32 [B, C, H, W], steps [B], prompts, the reference's noise."""

    x_BCHW: Tensor
    step_B: Tensor
    prompts: list[str]
    ref_eps_BCHW: Tensor | None = None


class Trainer:
    """Rounds of chains and policy steps, one after the other."""

    def __init__(self, config: RunConfig, scheme: Scheme, store: Store) -> None:
        assert isinstance(config.method, Sqdf)
        assert config.method.clean.lora is not None
        self._config, self._method, self._scheme = config, config.method, scheme
        self._store = store
        self._pipeline = PipelineFolder.of(config.model)
        self._chain = Chain(self._pipeline.schedule, config.model.num_steps)
        base = self._pipeline.unet(config.model.attention).requires_grad_(False)
        consistency = with_lora(base, config.method.clean.lora)
        if scheme.one_base:
            policy = policy_over(base, config.model, seed=config.seed)
        else:
            policy, consistency = copy.deepcopy(base), copy.deepcopy(consistency)
            make_policy_trainable(policy, config.model, seed=config.seed)
        self._policy = Denoiser(policy)
        self._reference, self._consistency = Denoiser(base), Denoiser(consistency)
        self._sampling = SamplingPolicy(base, config.model, seed=config.seed)
        kept_bytes = _TEXT_BYTES if scheme.keeps_text else 0
        self._encode = replace(self._pipeline, text_cache_bytes=kept_bytes).prompt_encoder()
        self._vae = self._pipeline.vae().requires_grad_(False)
        (reward,) = config.rewards.values()
        self._reward: Any = build_reward(reward.kind, reward.args)
        self._prompts = prompt_list(config.prompts, config.seed)
        self._trained = [p for p in policy.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=config.method.learning_rate, weight_decay=config.method.weight_decay
        )
        self._rng = np.random.default_rng(config.seed)
        self._states: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._made = 0
        self.seconds = {"sampling": 0.0, "replay": 0.0, "learning": 0.0}

    def run(self, steps: int, target: float | None) -> dict[str, Any]:
        """Policy steps until the reward on fixed noise is reached, or so many.

        Looks at the reward are not timed.
        """
        reached, reward, step = None, None, 0
        while step < steps and reached is None:
            if step % self._scheme.steps_per_round == 0:
                self._round()
            self._step()
            step += 1
            if target is not None and step % _CHECK_STEPS == 0:
                reward = self._look()
                if reward >= target:
                    reached = sum(self.seconds.values())
        return {
            "steps": step,
            "chains": self._made,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "reward": reward,
            "reached_s": reached,
        }

    def _round(self) -> None:
        rows, num_steps = self._method.policy_batch, self._config.model.num_steps
        prompts = [self._prompts[(self._made + row) % len(self._prompts)] for row in range(rows)]
        with self._timed("sampling"), torch.no_grad():
            states_BK = [
                self._store.keeps.pick(self._rng.random(self._parts).tolist()) for _ in prompts
            ]
            kept = self._sample(prompts, self._made, {s for states in states_BK for s in states})
            # As in the reference, and as a reward server does: every chain's end is scored.
            self._reward(decode_images(self._vae, kept[num_steps]), prompts)
            columns = [
                torch.stack([kept[states[k]][row] for row, states in enumerate(states_BK)])
                for k in range(self._parts)
            ]
            if self._scheme.stores_reference:
                text = self._encode(prompts)
                columns += [
                    self._reference(
                        x,
                        self._chain.state_times(torch.tensor([states[k] for states in states_BK])),
                        text,
                    )
                    for k, x in enumerate(columns)
                ]
            stored = torch.stack([*columns, kept[num_steps]], dim=1).to(torch.float16).numpy()
        with self._timed("replay"):
            self._store.put(self._made, prompts, stored)
        for row, (prompt, states) in enumerate(zip(prompts, states_BK, strict=True)):
            self._states[self._made + row] = prompt, states
        self._made += rows

    def _step(self) -> None:
        with self._timed("replay"):
            drawn = self._draw(self._method.policy_batch)
        with self._timed("learning"):
            parts = self._scheme.micro_batches
            for part in range(parts):
                (self._loss(drawn, slice(part, None, parts)) / parts).backward()
            torch.nn.utils.clip_grad_norm_(self._trained, self._config.learner.grad_clip)
            self._optimizer.step()
            self._optimizer.zero_grad()

    def _draw(self, count: int) -> Drawn:
        oldest = max(0, self._made - CAPACITY)
        chains = self._rng.integers(oldest, self._made, count).tolist()
        places = self._store.keeps.draw(count, self._rng).tolist()
        wanted = list(zip(chains, places, strict=True))
        stores = self._scheme.stores_reference
        read = self._store.read(
            wanted + [(n, place + self._parts) for n, place in wanted if stores]
        )
        known = [self._states[number] for number in chains]
        return Drawn(
            _float32(read[:count]),
            torch.tensor([states[p] for (_, states), p in zip(known, places, strict=True)]),
            [prompt for prompt, _ in known],
            _float32(read[count:]) if stores else None,
        )

    def _loss(self, drawn: Drawn, rows: slice) -> Tensor:
        method, chain = self._method, self._chain
        x, step_B, prompts = drawn.x_BCHW[rows], drawn.step_B[rows], drawn.prompts[rows]
        text, t_B = self._encode(prompts), chain.times(step_B)[0]
        eps = self._policy(x, t_B, text)
        if drawn.ref_eps_BCHW is not None:
            ref_eps = drawn.ref_eps_BCHW[rows]
        else:
            with torch.no_grad():
                ref_eps = self._reference(x, t_B, text)
        noise = torch.from_numpy(self._rng.standard_normal(x.shape, dtype=np.float32))
        taken = take_step(x, eps, ref_eps, noise, step_B, chain)
        x0 = clean_by_consistency(self._consistently(text), chain)(taken.x_prev, step_B)
        reward_B = self._reward(decode_images(self._vae, x0), prompts)
        std = kl_std(step_B, chain, x, method.kl_std)
        kl_B = gaussian_kl(taken.mean, taken.ref_mean, std, reduce=method.kl_reduce)
        return soft_q_loss(reward_B, kl_B, torch.ones(len(x)), alpha=method.alpha)

    def _consistently(self, text: Text) -> Callable[[Tensor, Tensor], Tensor]:
        if not self._scheme.halves:
            return lambda x, t_B: self._consistency(x, t_B, text)
        empty = self._encode([""] * len(text))
        both = Text(torch.cat([empty.states_BLE, text.states_BLE]))

        def doubled(x: Tensor, t_B: Tensor) -> Tensor:
            uncond, cond = self._consistency(torch.cat([x, x]), torch.cat([t_B, t_B]), both).chunk(
                2
            )
            return uncond + 1.0 * (cond - uncond)

        return doubled

    def _sample(self, prompts: list[str], first: int, keep: set[int]) -> dict[int, Tensor]:
        if self._scheme.fused:
            self._sampling.load(trainable_arrays(self._policy.unet))
        network = self._sampling.unet if self._scheme.fused else self._policy.unet
        num_steps, shape = self._config.model.num_steps, self._pipeline.latent_shape

        def noise(stream: int) -> Tensor:
            seeds = range(first, first + len(prompts))
            return torch.cat([group_noise(seed, 1, shape, stream) for seed in seeds])

        return sample_ddpm(
            Denoiser(network),
            self._chain.schedule,
            self._encode(prompts),
            noise(0),
            (noise(1 + step) for step in range(num_steps)),
            num_steps=num_steps,
            guidance_scale=1.0,
            keep={*keep, num_steps},
        )

    @torch.no_grad()
    def _look(self) -> float:
        """Mean reward of held-out noise."""
        prompts = self._prompts[-self._method.policy_batch :]
        kept = self._sample(prompts, _SEED_OF_CHECKS, set())
        images = decode_images(self._vae, kept[self._config.model.num_steps])
        return float(self._reward(images, prompts).mean())

    @property
    def _parts(self) -> int:
        return len(self._store.keeps.edges) - 1

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - begun


def run(name: str, *, steps: int, target: float | None, threads: int, seed: int) -> dict[str, Any]:
    """What one scheme took; peak memory is of this process, above what its libraries take."""
    scheme = schemes()[name]
    config = load_config(PRESET, [f"seed={seed}", "name=schemes"])
    assert isinstance(config.method, Sqdf)
    torch.set_num_threads(threads)
    kept = config.method.states.kept if scheme.slices else config.model.num_steps
    keeps = Strata.spread(config.model.num_steps, kept, config.method.discount)
    with ExitStack() as stack:
        before_mb = _memory_mb("VmRSS")
        store: Store
        if scheme.slices:
            store = Slices(stack.enter_context(EmbeddedServer()).url, keeps)
        else:
            store = Files(Path(stack.enter_context(tempfile.TemporaryDirectory())), keeps)
        result = Trainer(config, scheme, store).run(steps, target)
    peak_mb = _memory_mb("VmHWM") - before_mb
    return {"scheme": name, **asdict(scheme), **result, "peak_mb": round(peak_mb, 1)}


def _float32(latents: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(latents).astype(np.float32))


def _memory_mb(kind: str) -> float:
    """Linux tells the highest resident size in /proc; elsewhere it is what is resident now."""
    try:
        lines = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return psutil.Process().memory_info().rss / 2**20
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.bench.sqdf_schemes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scheme", choices=list(MEASURES), metavar="NAME")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--target", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = run(
        args.scheme, steps=args.steps, target=args.target, threads=args.threads, seed=args.seed
    )
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
