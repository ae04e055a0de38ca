"""What a policy gradient has to go by at few steps, as pure functions.

A consistency sampler of N calls has N − 1 actions, the noise ξ_k that is added after call k, with
∇ log π = (α/σ) ξ_kᵀ ∂z_k/∂θ; the last call's output is the picture itself and has no density.
Reinforcement learns by E[A ∇ log π], a mean of vectors that are almost all noise: for an advantage
A of unit variance whose correlation with the best linear function of D-dimensional ξ is ρ, a
sample's ratio of signal to noise is ρ / √D. Jia et al., CVPR 2025, say that fewer steps leave less
to explore, no likelihood of the last step, and a map that is less smooth.
Shape suffixes: K estimates, D dimensions, B rows; x is [B, C, H, W].
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.diffusion.consistency import consistency_prediction
from learner.diffusion.schedule import NoiseSchedule, add_noise, consistency_timesteps

Ask = Callable[[Tensor, Tensor], Tensor]
"""x, t_B -> predicted noise."""


@dataclass(frozen=True)
class MeanVector:
    """The mean of independent estimates of a vector, as far as they tell it.

    Args:
        signal: squared length of the mean, without bias, so below 0 by chance where there is none.
        power: mean squared length of one estimate.
        count: of estimates.
    """

    signal: float
    power: float
    count: int

    @property
    def snr(self) -> float:
        """Length of the mean over the spread of one estimate around it; 0 where no mean is seen."""
        if self.signal <= 0:
            return 0.0
        noise = self.power - self.signal
        return (self.signal / noise) ** 0.5 if noise > 0 else float("inf")


class VectorSum:
    """Adds up estimates of a vector, of which none is kept."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._squares = 0.0
        self._count = 0

    def add(self, estimate: Tensor) -> None:
        """One more, of any shape."""
        estimate = estimate.detach().double().flatten()
        self._sum = estimate if self._sum is None else self._sum + estimate
        self._squares += float(estimate.square().sum())
        self._count += 1

    def mean(self) -> MeanVector:
        """Raises ValueError with fewer than two estimates."""
        if self._sum is None or self._count < 2:
            raise ValueError(f"two estimates or more tell a signal, there are {self._count}")
        count = self._count
        crossed = float(self._sum.square().sum()) - self._squares
        return MeanVector(crossed / (count * (count - 1)), self._squares / count, count)


def score_vectors(advantage_K: Tensor, noise_KD: Tensor) -> MeanVector:
    """E[A ξ] of one state, told from K of its actions; `signal` is ρ² where A has unit variance."""
    total = VectorSum()
    for vector_D in advantage_K.double()[:, None] * noise_KD.double().flatten(1):
        total.add(vector_D)
    return total.mean()


def of_one_row(parts: MeanVector, rows: Sequence[int]) -> MeanVector:
    """What one row tells, from estimates that are each the mean over so many rows.

    The spread of a mean over B rows is 1/B of one row's, so that no row's own gradient is needed.
    """
    each = statistics.mean(1 / count for count in rows)
    return MeanVector(parts.signal, parts.signal + (parts.power - parts.signal) / each, sum(rows))


@dataclass(frozen=True)
class Call:
    """One network call of a chain, of B rows.

    Args:
        x, t_B: what went in.
        clean: the clean latent that came out.
        noise: ξ that was added after it; None after the last.
        scale: α/σ of that noise's time, by which a likelihood's gradient is larger.
    """

    x: Tensor
    t_B: Tensor
    clean: Tensor
    noise: Tensor | None
    scale: float


def calls(
    ask: Ask, schedule: NoiseSchedule, initial: Tensor, injected: Sequence[Tensor]
) -> list[Call]:
    """A consistency sampler's chain, as `actors.sampling.sample_few_steps` draws it."""
    timesteps = consistency_timesteps(len(injected) + 1, schedule.num_train_timesteps)
    x, found = initial, []
    for k, timestep in enumerate(timesteps):
        t_B = torch.full((len(x),), timestep, device=x.device)
        clean = consistency_prediction(x, ask(x, t_B).to(x.dtype), t_B, schedule)
        if k == len(injected):
            found.append(Call(x, t_B, clean, None, 0.0))
            break
        next_t_B = torch.full((len(x),), timesteps[k + 1], device=x.device)
        alpha, sigma = schedule.alpha_sigma(next_t_B, x)
        scale = float((alpha / sigma).flatten()[0])
        found.append(Call(x, t_B, clean, injected[k], scale))
        x = add_noise(clean, injected[k], next_t_B, schedule)
    return found


def through_call(
    ask: Ask, schedule: NoiseSchedule, call: Call, cotangent: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """cotangentᵀ ∂z/∂θ of one call alone, its input held, summed over rows; a flat vector."""
    clean = consistency_prediction(
        call.x.detach(), ask(call.x.detach(), call.t_B), call.t_B, schedule
    )
    parts = torch.autograd.grad(clean, weights, cotangent, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def policy_gradient(
    ask: Ask, schedule: NoiseSchedule, call: Call, advantage_B: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """Mean over rows of A ∇ log π of one call; exactly 0 of the last, which has no likelihood."""
    if call.noise is None:
        return weights[0].new_zeros(sum(weight.numel() for weight in weights))
    cotangent = advantage_B[:, None, None, None] * call.scale * call.noise / len(advantage_B)
    return through_call(ask, schedule, call, cotangent, weights)


def pathwise_gradients(
    ask: Ask,
    schedule: NoiseSchedule,
    chain: Sequence[Call],
    direction: Tensor,
    weights: Sequence[Tensor],
) -> list[Tensor]:
    """d⟨direction, z_N⟩/dθ through each call alone, mean over rows; their sum is the gradient
    through the whole chain.

    That is what a differentiable reward's gradient goes through, whatever the reward; random
    directions give the mean over all of them.

    Args:
        chain: of `calls`, drawn without a graph.
    """
    # From the last call to the first: what the picture changes by with each call's output.
    cotangents = [direction / len(direction)]
    for call in reversed(chain[1:]):
        x = call.x.detach().requires_grad_()
        out = consistency_prediction(x, ask(x, call.t_B), call.t_B, schedule)
        (to_input,) = torch.autograd.grad(out, x, cotangents[-1])
        alpha, _ = schedule.alpha_sigma(call.t_B, x)
        cotangents.append(to_input * alpha)
    pairs = zip(chain, reversed(cotangents), strict=True)
    return [through_call(ask, schedule, call, each, weights) for call, each in pairs]


def shares(lengths: Sequence[float]) -> list[float]:
    """Of a sum of squared lengths, each below 0 counted as 0; all 0 where nothing is left."""
    kept = [max(length, 0.0) for length in lengths]
    return [length / sum(kept) if sum(kept) > 0 else 0.0 for length in kept]


def gain(moved: Tensor, still: Tensor, step: Tensor) -> Tensor:
    """How much further apart two outputs are than their inputs, [B]: a local Lipschitz constant.

    Args:
        step: difference of the inputs.
    """
    return (moved - still).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
