"""How many rows of network calls one micro-batch of a policy step holds; counts alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphRows:
    """Calls whose activations one micro-batch of a policy step keeps until its backward pass.

    Args:
        step_rows: rows of the micro-batch, as `method.policy_batch` counts them.
        policy: rows of every call of the policy.
        frozen: rows of every call of an untrained network that the gradient passes.
        climbed: clean latents whose reward is asked with a gradient.
        reference: rows of an untrained network's calls without autograd; they keep nothing.
        target: likewise of the policy's own.
    """

    step_rows: int
    policy: tuple[int, ...]
    frozen: tuple[int, ...] = ()
    climbed: int = 0
    reference: int = 0
    target: int = 0
