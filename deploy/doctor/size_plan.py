"""Sizes, operations and memory of a run, from shapes alone: no weights, no network, no GPU.

    plan = size_plan(load_config("deploy/configs/sd15-sqdf-hps.yaml"))
    plan["bytes"]["learner"]["total"]

Bytes are of one process, on the device where it computes. What is trained, gradients and optimizer
are float32. Where a network computes in bf16, weights of its products that nobody trains have half
the size, and its activations have the types of `deploy.doctor.meta_autocast`; `auto` counts as
fp32. Left out are the networks of rewards that `deploy.doctor.reward_networks` does not know, and
what `deploy.doctor.meta_counts` leaves out.
"""

import math
from typing import Any

from torch import nn

from deploy.doctor.flop_plan import flop_plan, without_gradient_to
from deploy.doctor.meta_autocast import CudaAutocast
from deploy.doctor.meta_counts import Graph, kept_by, peak_of
from deploy.doctor.meta_networks import Networks, architecture_of, latent_size, parameters_of
from deploy.doctor.reward_networks import (
    climbed_rewards,
    reward_weights,
    scoring_activations,
    uncounted,
)
from deploy.doctor.scorers import SCORERS
from deploy.doctor.size_rows import graph_rows, surrogate_rows
from deploy.settings.run_config import RunConfig
from learner.policy.precision import roundable
from learner.settings.graph_rows import GraphRows
from learner.settings.learner import REDUCED_AT_ONCE
from learner.settings.types import Precision

_FLOAT, _HALF = 4, 2
_MOMENTS = 2
"""AdamW's, each as large as what is trained."""


def latent_values(config: RunConfig) -> int:
    """Numbers of one latent, C·H·W.

    Raises:
        ValueError: the sizes of the model are not known.
    """
    parts = architecture_of(config.model)
    return parts.unet["in_channels"] * math.prod(latent_size(config.model, parts))


def checkpoint_bytes(config: RunConfig, networks: Networks) -> int:
    """Of one checkpoint: what is trained with both of AdamW's moments, and the policy's average.

    ZeRO keeps the weights twice, as those of the network and as those that its optimizer steps.
    """
    policy = parameters_of(networks.policy, trained=True)
    surrogate = 0 if networks.surrogate is None else parameters_of(networks.surrogate)
    copies = 3 if config.learner.zero_stage == 0 else 4
    averages = config.method.weight_average is not None
    return _FLOAT * (copies * (policy + surrogate) + averages * policy)


def size_plan(config: RunConfig, networks: Networks | None = None) -> dict[str, Any]:
    """Parameters, `flops`, and `bytes` of a sampler, a reward server, the evaluator and a rank of
    the learner, and `host_bytes` of each.

    `flops` are those of `deploy.doctor.flop_plan`. `rows` are those that pass a network in the
    activations that are told: of the policy, in all calls of a micro-batch together.
    `uncounted_rewards` are those whose networks are in none of it.

    Args:
        networks: of a config that differs in the sizes of its batches alone.

    Raises:
        ValueError: the sizes of a model are not known.
    """
    networks = networks or Networks(config)
    return {
        "model": config.model.path,
        "unet_params": parameters_of(networks.base),
        "trained_params": parameters_of(networks.policy, trained=True),
        "rows": {
            "sampler": _sampler_rows(config),
            "reward_server": config.images_per_decode,
            "evaluator": _evaluator_rows(config),
            "policy": sum(graph_rows(config).policy),
            "surrogate": surrogate_rows(config),
        },
        "flops": flop_plan(config, networks),
        "bytes": {
            "sampler": sampler_bytes(config, networks),
            "reward_server": reward_server_bytes(config, networks),
            "evaluator": evaluator_bytes(config, networks),
            "learner": learner_bytes(config, networks),
        },
        "host_bytes": host_bytes(config, networks),
        "uncounted_rewards": sorted({name for role in SCORERS for name in uncounted(config, role)}),
    }


def host_bytes(config: RunConfig, networks: Networks) -> dict[str, int]:
    """Main memory that each process fills with weights in float32 before they are on its device.

    A rank of the learner keeps its optimizer's state there as well, where that is offloaded. torch,
    Ray and the libraries, some GB a process, come on top, and so does Ray's object store.
    """
    base, vae = (_FLOAT * parameters_of(network) for network in (networks.base, networks.vae))
    texts = _FLOAT * networks.text_encoder_params
    learner = base + texts + _FLOAT * networks.consistency_params
    learner += sum(
        _FLOAT * parameters_of(network)
        for network in (networks.teacher, networks.surrogate)
        if network is not None
    )
    if config.method.differentiates_rewards:
        learner += vae + reward_weights(config, networks, "learner")
    if config.learner.offload == "cpu":
        learner += learner_bytes(config, networks)["optimizer_on_host"]
    return {
        "sampler": base + texts,
        "reward_server": vae + reward_weights(config, networks, "scoring"),
        "evaluator": base + texts + vae + reward_weights(config, networks, "evaluation"),
        "learner": learner,
    }


def _sampler_rows(config: RunConfig) -> int:
    return config.actors.group_size * config.actors.groups_per_batch * (1 + config.model.is_guided)


def _evaluator_rows(config: RunConfig) -> int:
    return config.images_per_evaluation[0] * (1 + config.model.is_guided)


def sampler_bytes(config: RunConfig, networks: Networks) -> dict[str, int]:
    """What draws, and a consistency model where it tells clean latents."""
    weights = _sampling_weights(config, networks)
    if config.method.clean_states:
        weights += _FLOAT * networks.consistency_params
    activations = _sampling_activations(config, networks, _sampler_rows(config))
    return _with_total(weights=weights, activations=activations)


def reward_server_bytes(config: RunConfig, networks: Networks) -> dict[str, int]:
    """The whole VAE is loaded. It decodes and scores in turn."""
    rows = config.images_per_decode
    return _with_total(
        weights=_weight_bytes(networks.vae, config.model.vae_precision),
        rewards=reward_weights(config, networks, "scoring"),
        activations=max(
            _decoding_activations(config, networks, rows),
            scoring_activations(config, networks, "scoring", rows),
        ),
    )


def evaluator_bytes(config: RunConfig, networks: Networks) -> dict[str, int]:
    """It draws, decodes and scores in turn."""
    weights = _sampling_weights(config, networks)
    weights += _weight_bytes(networks.vae, config.model.vae_precision)
    rows = config.images_per_evaluation[1]
    drawing = _sampling_activations(config, networks, _evaluator_rows(config))
    decoding = _decoding_activations(config, networks, rows)
    scoring = scoring_activations(config, networks, "evaluation", rows)
    return _with_total(
        weights=weights,
        rewards=reward_weights(config, networks, "evaluation"),
        activations=max(drawing, decoding, scoring),
    )


def _sampling_weights(config: RunConfig, networks: Networks) -> int:
    """Of the untouched UNet, which stays float32, the one that samples, an adapter apart from it,
    and text encoders."""
    params = parameters_of(networks.base) + _text_encoder_params(config, networks)
    if config.model.trainable == "lora":
        params += parameters_of(networks.policy, trained=True)
    return _FLOAT * params + _weight_bytes(networks.base, config.model.precision)


def _weight_bytes(network: nn.Module, precision: Precision) -> int:
    """Of a network that is rounded to what it computes in, but for what is trained of it."""
    rounded = sum(p.numel() for p in roundable(network)) if precision == "bf16" else 0
    return _FLOAT * parameters_of(network) - (_FLOAT - _HALF) * rounded


def _sampling_activations(config: RunConfig, networks: Networks, rows: int) -> int:
    return networks.once(
        ("sampling", rows),
        lambda: peak_of(
            lambda: networks.ask(networks.base, networks.latents(rows)),
            _autocast(networks.base, config.model.precision),
        ),
    )


def _decoding_activations(config: RunConfig, networks: Networks, rows: int) -> int:
    return networks.once(
        ("decoding", rows),
        lambda: peak_of(
            lambda: networks.decode(networks.latents(rows)),
            _autocast(networks.vae, config.model.vae_precision),
        ),
    )


def learner_bytes(config: RunConfig, networks: Networks) -> dict[str, int]:
    """Weights, what the optimizers hold, and the largest graph, policy's or surrogate's."""
    rows = graph_rows(config)
    ranks, stage = config.learner.ranks, config.learner.zero_stage
    trained = parameters_of(networks.policy, trained=True)
    policy = optimizer_bytes(trained, ranks, stage)
    learned = 0 if networks.surrogate is None else parameters_of(networks.surrogate)
    surrogate_state = optimizer_bytes(learned, ranks, stage) if learned else {}
    on_host = 0
    if config.learner.offload == "cpu":
        on_host = sum(state.pop("optimizer", 0) for state in (policy, surrogate_state))
    averages = config.method.weight_average is not None
    held = {
        "weights": _weight_bytes(networks.policy, config.model.precision),
        "average": _FLOAT * averages * trained,
        **policy,
        "frozen": _frozen_bytes(config, networks),
        "text_encoders": _FLOAT * _text_encoder_params(config, networks),
        "rewards": reward_weights(config, networks, "learner"),
    }
    if networks.surrogate is not None:
        held["surrogate"] = _FLOAT * learned
        held["surrogate_optimizer"] = sum(surrogate_state.values())
    plain = _policy_graph(config, networks, rows, checkpointing=False)
    checkpointed = _policy_graph(config, networks, rows, checkpointing=True)
    checkpointing = config.learner.gradient_checkpointing
    used = checkpointed if checkpointing else plain
    surrogate = _surrogate_graph(config, networks, checkpointing=checkpointing)
    return {
        **held,
        "activations": plain.activations,
        "activations_checkpointed": checkpointed.activations,
        "cast_weights": plain.casts,
        "cast_weights_checkpointed": checkpointed.casts,
        "surrogate_activations": surrogate.activations,
        "surrogate_cast_weights": surrogate.casts,
        "optimizer_on_host": on_host,
        # Policy and surrogate take turns.
        "total": sum(held.values()) + max(used.total, surrogate.total),
    }


def optimizer_bytes(trained: int, ranks: int, zero_stage: int) -> dict[str, int]:
    """Of one rank, for so many trained parameters.

    With ZeRO, DeepSpeed shards a copy of the weights that it updates, and its gradients pass a
    buffer.
    """
    state = _MOMENTS + (zero_stage > 0)
    return {
        "gradients": _FLOAT * trained // (ranks if zero_stage == 2 else 1),
        "optimizer": _FLOAT * state * trained // (ranks if zero_stage > 0 else 1),
        "reduction": _FLOAT * min(REDUCED_AT_ONCE, trained) if zero_stage > 0 else 0,
    }


def _frozen_bytes(config: RunConfig, networks: Networks) -> int:
    """Of networks beside the policy; one that shares the policy's base costs nothing."""
    method, model, found = config.method, config.model, 0
    # Of a teacher that nothing is distilled from, the surrogate has copied its blocks.
    if networks.teacher is not None and method.distils(model.is_few_step):
        found = _weight_bytes(networks.teacher, model.precision)
    elif model.trainable == "full" and method.holds_reference:
        found = _weight_bytes(networks.base, model.precision)
    found += _FLOAT * networks.consistency_params
    decodes = method.differentiates_rewards
    return found + (_weight_bytes(networks.vae, model.vae_precision) if decodes else 0)


def _text_encoder_params(config: RunConfig, networks: Networks) -> int:
    """Of text encoders that stay on the device; those that retire leave it before work begins."""
    return networks.text_encoder_params if config.model.text_encoders == "stay" else 0


def _policy_graph(
    config: RunConfig, networks: Networks, rows: GraphRows, *, checkpointing: bool
) -> Graph:
    """Of one micro-batch: the policy's calls, and what its reward is asked through."""
    policy, base, precision = networks.policy, networks.base, config.model.precision
    kept = networks.once(
        ("kept by the policy", checkpointing),
        lambda: kept_by(
            policy,
            lambda: networks.ask(policy, networks.latents(1)),
            checkpointed=policy if checkpointing else None,
            autocast=_autocast(policy, precision),
        ),
    )
    graph = Graph.of(kept, rows.policy)
    if rows.frozen:
        frozen = networks.consistency or base
        kept = networks.once(
            ("kept by the frozen", checkpointing),
            lambda: kept_by(
                frozen,
                lambda: networks.ask(frozen, networks.latents(1, with_gradient=True)),
                checkpointed=frozen if checkpointing else None,
                autocast=_autocast(frozen, precision),
            ),
        )
        graph += Graph.of(kept, rows.frozen)
    if config.method.differentiates_rewards:
        kept = networks.once(
            ("kept by the decoder", checkpointing),
            lambda: kept_by(
                networks.vae,
                lambda: networks.decode(networks.latents(1, with_gradient=True)),
                checkpointed=networks.vae if checkpointing else None,
                autocast=_autocast(networks.vae, config.model.vae_precision),
            ),
        )
        for each in (kept, *climbed_rewards(config, networks)):
            graph += Graph.of(each, (rows.climbed,))
    elif (surrogate := networks.surrogate) is not None:
        with without_gradient_to(surrogate):
            kept = networks.once(
                ("kept by what is climbed", checkpointing),
                lambda: kept_by(
                    surrogate,
                    lambda: networks.score(networks.latents(1, with_gradient=True)),
                    checkpointed=surrogate if checkpointing else None,
                    autocast=_surrogate_autocast(config),
                ),
            )
        graph += Graph.of(kept, (rows.climbed,))
    return graph


def _surrogate_graph(config: RunConfig, networks: Networks, *, checkpointing: bool) -> Graph:
    """Of a surrogate step, whose rows go through together."""
    if (surrogate := networks.surrogate) is None:
        return Graph()
    kept = networks.once(
        ("kept by the surrogate", checkpointing),
        lambda: kept_by(
            surrogate,
            lambda: networks.score(networks.latents(1)),
            checkpointed=surrogate if checkpointing else None,
            autocast=_surrogate_autocast(config),
        ),
    )
    return Graph.of(kept, (surrogate_rows(config),))


def _autocast(network: nn.Module, precision: Precision) -> CudaAutocast | None:
    """What one call computes within; what nobody trains is rounded before it."""
    return CudaAutocast(roundable(network)) if precision == "bf16" else None


def _surrogate_autocast(config: RunConfig) -> CudaAutocast | None:
    learning = config.alternation
    assert learning is not None
    return CudaAutocast() if learning.surrogate.precision == "bf16" else None


def _with_total(**parts: int) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}
