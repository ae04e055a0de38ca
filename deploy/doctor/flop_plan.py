"""Floating-point operations of a run's work, as its code does it: every call of every network.

Left out are the networks of rewards, text encoders, whose states are kept, and what a cycle does
once. LaSRO measures its anchor's weight anew at every tenth step, which then costs more.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from deploy.doctor.meta_counts import computed_again, flops_of
from deploy.doctor.meta_networks import Networks
from deploy.doctor.size_rows import graph_rows
from deploy.settings.run_config import RunConfig
from learner.settings.graph_rows import GraphRows

POLICY_PARTS = ("policy", "untracked", "frozen", "reward")


def flop_plan(config: RunConfig, networks: Networks) -> dict[str, int]:
    """Of one picture sampled and decoded, and of one row of a policy or surrogate step.

    `policy_row` is the sum of `policy_row_…`: the policy's own calls, forward and backward; the
    calls without autograd; frozen networks that the gradient passes; and what the reward is asked
    through, decoder or surrogate. With what gradient checkpointing computes again.
    """
    parts = _policy_parts(config, networks, graph_rows(config))
    flops = {
        "sampling_picture": _sampling(config, networks),
        "decoding_picture": networks.once(
            "decoding", lambda: _forward(lambda: networks.decode(networks.latents(1)))
        ),
        "policy_row": sum(parts.values()),
        **{f"policy_row_{name}": parts[name] for name in POLICY_PARTS},
    }
    if networks.surrogate is not None:
        flops["surrogate_row"] = networks.once(
            ("surrogate step", config.learner.gradient_checkpointing),
            lambda: _surrogate_step(config, networks),
        )
    return flops


def _sampling(config: RunConfig, networks: Networks) -> int:
    """A call for every step, and what is told of the states that are kept."""
    guided, method = 1 + config.model.is_guided, config.method
    call = _asking(networks, "base", networks.base)
    flops = config.model.num_steps * guided * call
    flops += method.reference_states * guided * call
    if method.clean_states and (model := networks.consistency) is not None:
        flops += method.clean_states * _asking(networks, "consistency", model)
    return flops


def _policy_parts(config: RunConfig, networks: Networks, rows: GraphRows) -> dict[str, int]:
    policy, base = networks.policy, networks.base
    checkpointing = config.learner.gradient_checkpointing
    frozen = networks.consistency or base
    parts = dict.fromkeys(POLICY_PARTS, 0)
    parts["policy"] = sum(rows.policy) * networks.once(
        ("policy row", checkpointing),
        lambda: _learning(networks, policy, again=checkpointing, with_gradient=False),
    )
    if rows.frozen:
        parts["frozen"] = sum(rows.frozen) * networks.once(
            ("frozen row", checkpointing),
            lambda: _learning(networks, frozen, again=checkpointing, with_gradient=True),
        )
    if rows.reference:
        parts["untracked"] += rows.reference * _asking(
            networks, "reference", networks.teacher or base
        )
    if rows.target:
        parts["untracked"] += rows.target * _asking(networks, "target", policy)
    if rows.climbed:
        parts["reward"] = rows.climbed * networks.once(
            ("climbing", checkpointing), lambda: _climbing(config, networks)
        )
    return {name: flops // rows.step_rows for name, flops in parts.items()}


def _asking(networks: Networks, name: str, unet: UNet2DConditionModel) -> int:
    """One row of a call without autograd."""
    return networks.once(
        ("asking", name), lambda: _forward(lambda: networks.ask(unet, networks.latents(1)))
    )


def _learning(
    networks: Networks, unet: UNet2DConditionModel, *, again: bool, with_gradient: bool
) -> int:
    """One row, forward and backward.

    Args:
        again: with gradient checkpointing.
        with_gradient: to the latents.
    """
    with _checkpointed(unet, again):
        return _both_ways(
            lambda: networks.ask(unet, networks.latents(1, with_gradient=with_gradient))
        )


def _climbing(config: RunConfig, networks: Networks) -> int:
    """Of one clean latent whose reward is asked with a gradient to it."""
    if config.method.differentiates_rewards:
        with _checkpointed(networks.vae, config.learner.gradient_checkpointing):
            return _both_ways(lambda: networks.decode(networks.latents(1, with_gradient=True)))
    surrogate = networks.surrogate
    assert surrogate is not None
    again = config.learner.gradient_checkpointing
    with without_gradient_to(surrogate), _checkpointed(surrogate, again):
        return _both_ways(lambda: networks.score(networks.latents(1, with_gradient=True)))


def _surrogate_step(config: RunConfig, networks: Networks) -> int:
    with _checkpointed(networks.surrogate, config.learner.gradient_checkpointing):
        return _both_ways(lambda: networks.score(networks.latents(1)))


@contextmanager
def without_gradient_to(module: nn.Module) -> Iterator[None]:
    """Within it, no parameter of a module that is trained gets a gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _forward(call: Callable[[], Tensor]) -> int:
    with torch.no_grad():
        return flops_of(call)


def _both_ways(call: Callable[[], Tensor]) -> int:
    return flops_of(lambda: call().sum().backward())


def _checkpointed(network: Any, on: bool) -> AbstractContextManager[None]:
    return _computing_again(network) if on else nullcontext()


@contextmanager
def _computing_again(network: Any) -> Iterator[None]:
    network.enable_gradient_checkpointing(computed_again)
    try:
        yield
    finally:
        network.disable_gradient_checkpointing()
