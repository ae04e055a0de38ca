"""How many rows of network calls a process of a run holds at once; counts alone, no torch."""

from dataclasses import dataclass

from deploy.settings.run_config import RunConfig
from learner.settings.cycles import Climbing
from learner.settings.draft import Draft
from learner.settings.lasro import Lasro
from learner.settings.likelihood import Dpo
from learner.settings.on_policy import OnPolicy, Ppo, Pso
from learner.settings.sqdf import Sqdf


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


def is_guided(config: RunConfig) -> bool:
    """Whether samplers call the network on doubled rows, for classifier-free guidance."""
    return not config.model.is_few_step and config.model.guidance_scale != 1


def graph_rows(config: RunConfig) -> GraphRows:
    """Of one rank's micro-batch."""
    method, num_steps = config.method, config.model.num_steps
    of_rank = method.policy_batch // config.learner.ranks
    if isinstance(method, Lasro):
        anchored = -(-method.anchor.batch // config.learner.ranks)
        anchored = anchored if method.anchor.data != "none" else 0
        calls = (of_rank + anchored, *(of_rank,) * (num_steps - 1))
        return GraphRows(
            of_rank,
            calls,
            climbed=of_rank * config.rewarded_steps,
            reference=2 * anchored,
            target=anchored,
        )
    rows = -(-of_rank // method.micro_batches)
    doubled = 1 + is_guided(config)
    if isinstance(method, OnPolicy):
        asked = rows * doubled * (2 if isinstance(method, Pso) else 1)
        has_reference = isinstance(method, Pso) or (isinstance(method, Ppo) and method.alpha > 0)
        return GraphRows(rows, (asked,), reference=asked if has_reference else 0)
    if isinstance(method, Dpo):
        return GraphRows(rows, (2 * rows,), reference=2 * rows)
    if not isinstance(method, Climbing):
        # Good pictures of a consistency model are distilled, as an anchor is.
        distilled = rows if config.model.is_few_step else 0
        return GraphRows(rows, (rows,), reference=2 * distilled, target=distilled)
    if isinstance(method, Sqdf):
        clean = {
            "consistency": (rows,),
            "tweedie": (rows * doubled,),
            "ddim": (rows * doubled,) * method.clean.calls,
        }
        asked = 0 if method.states.store_reference else rows * doubled
        return GraphRows(
            rows, (rows * doubled,), clean[method.clean.by], climbed=rows, reference=asked
        )
    assert isinstance(method, Draft)
    copies = rows * (method.renoisings if method.path == "renoised" else 1)
    calls = (copies * doubled,) * (method.last_steps if method.path == "last" else 1)
    if method.alpha == 0:
        return GraphRows(rows, calls, climbed=copies)
    beside = (rows * doubled,) if method.steps_beside(num_steps) else ()
    asked = (calls[0] if method.path_counts(num_steps) else 0) + sum(beside)
    # From the second step on, a state has a gradient by the steps before it.
    return GraphRows(rows, calls + beside, calls[1:], climbed=copies, reference=asked)


def surrogate_rows(config: RunConfig) -> int:
    """Latents of one rank's surrogate step, which go through in one call; 0: none is learned."""
    if (learning := config.alternation) is None:
        return 0
    groups = learning.surrogate.batch_groups // config.learner.ranks
    return groups * config.actors.group_size * config.rewarded_steps
