"""What policy steps maximise: the surrogate's scores, adjusted for its uncertainty.

Samples of a policy that climbs a fitted score leave what the score was fitted to. A pessimist
discounts what the score does not know, for a safe end; an optimist seeks it, so that the next
queries tell the most (online black-box optimisation: SQDF and SEIKO, arXiv:2402.16359).
Shape suffixes: B rows, K heads, F features, N labelled latents.
"""

import torch
from torch import Tensor, nn

from learner.policy.text import Text
from learner.preference import pessimistic
from learner.settings.surrogate import Surrogate


def optimistic(scores_BK: Tensor) -> Tensor:
    """The largest of the bootstrap heads, [B]."""
    return scores_BK.max(dim=1).values


def gram(features_NF: Tensor) -> Tensor:
    """Σ φ φᵀ over labelled latents, float64 [F, F]: it grows with every label."""
    features_NF = features_NF.double()
    return features_NF.T @ features_NF


def confidence_width(features_BF: Tensor, gram_FF: Tensor, ridge: float) -> Tensor:
    """sqrt(φᵀ (Σφφᵀ + λI)⁻¹ φ), [B]: how little the labels tell about a latent.

    It falls towards 0 with labels like it, as a covariance, which is a mean, would not.
    """
    damped_FF = gram_FF + ridge * torch.eye(len(gram_FF), dtype=gram_FF.dtype)
    root_FF = torch.linalg.cholesky(damped_FF).to(features_BF)
    solved_FB = torch.linalg.solve_triangular(root_FF, features_BF.T, upper=False)
    return (solved_FB**2).sum(dim=0).clamp(min=1e-12).sqrt()


class Climb:
    """The reward of clean latents that policy steps climb, with a gradient to the latents alone.

    Args:
        surrogate: trained by others; no gradient of this reward reaches its parameters.
    """

    def __init__(self, surrogate: nn.Module, settings: Surrogate) -> None:
        self._surrogate = surrogate
        self._settings = settings
        self.gram_FF: Tensor | None = None

    def __call__(self, z_BCHW: Tensor, text: Text, step_B: Tensor) -> Tensor:
        """Rewards [B]; `step_B` as the surrogate takes it."""
        # Parameters that need no gradient when the graph is made get none when it is walked.
        self._surrogate.requires_grad_(False)
        scores_BK, features_BF = self._surrogate.read(z_BCHW, text, step_B)  # pyright: ignore
        self._surrogate.requires_grad_(True)
        settings = self._settings
        if settings.confidence == "bootstrap":
            return optimistic(scores_BK)
        value_B = pessimistic(scores_BK, settings.pessimism)
        if settings.confidence == "ucb" and self.gram_FF is not None:
            width_B = confidence_width(features_BF, self.gram_FF, settings.ucb_ridge)
            value_B = value_B + settings.ucb_bonus * width_B
        return value_B
