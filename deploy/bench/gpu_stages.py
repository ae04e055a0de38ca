"""The stages of a run that compute: what one call of each does, costs and is planned to hold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from actors.rollout import Group
from deploy.bench.random_parts import RandomPipeline
from deploy.doctor.flop_plan import POLICY_PARTS
from deploy.doctor.size_rows import surrogate_rows
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import RunConfig
from learner.policy.components import decode_latents
from learner.policy.precision import computes_bf16, round_frozen
from learner.settings.types import Precision

Call = Callable[[], object]
Plan = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One of them.

    Args:
        prepare: config, device -> one call. ValueError: it cannot be made of the config.
        amounts: unit -> how much a call does.
        work: in words.
        flops: of one call by a plan's counts, by what is multiplied.
        memory: bytes by a plan: `held` between two calls, and a call's own `activations`.
        size: settings that give it so many rows at once; None where it cannot be cut so.
        is_rank: whether it is a rank of the learner, with DeepSpeed's engine.
        absence: why the config has no such stage, if so.
    """

    prepare: Callable[[RunConfig, str], Call]
    amounts: Callable[[RunConfig], dict[str, float]]
    work: Callable[[RunConfig], str]
    flops: Callable[[RunConfig, Plan, str], dict[str, int]]
    memory: Callable[[RunConfig, Plan], dict[str, int]]
    size: Callable[[RunConfig, int], list[str] | None]
    is_rank: bool = False
    absence: Callable[[RunConfig], str | None] = lambda config: None


def multiplied_in(precision: Precision, device: str) -> str:
    """Which ceiling a network's operations are held against.

    By torch's defaults convolutions of float32 tensors are done in TF32 on a GPU that has it, and
    products of matrices are not: the higher of both is taken.
    """
    if precision == "bf16" or (precision == "auto" and computes_bf16(device)):
        return "bf16"
    is_rounded = device == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if is_rounded else "fp32"


def _without_beside(config: RunConfig) -> str | None:
    """See `learner.policy.views`."""
    if config.model.trainable == "lora" and config.model.precision != "fp32":
        return None
    return "in float32, and where all is trained, samplers call plain layers"


def _without_surrogate(config: RunConfig) -> str | None:
    return None if config.alternation is not None else "this config learns no surrogate"


def _sampler(config: RunConfig, device: str, *, was_half: bool = False) -> Call:
    pipeline = RandomPipeline.like(config.model, seed=config.seed, device=device, was_half=was_half)
    policy = policy_of(config, pipeline, config.actors.group_size, device)
    groups = [
        Group(number, f"a picture of number {number}", seed=number)
        for number in range(config.actors.groups_per_batch)
    ]
    return lambda: policy.sample(groups)


def _sampler_flops(config: RunConfig, plan: Plan, device: str) -> dict[str, int]:
    kind = multiplied_in(config.model.precision, device)
    return {kind: _pictures(config) * plan["flops"]["sampling_picture"]}


def _sampler_work(config: RunConfig) -> str:
    return f"sample {_pictures(config)} images, {config.model.num_steps} steps"


def _pictures(config: RunConfig) -> int:
    return config.actors.groups_per_batch * config.actors.group_size


def _decode(config: RunConfig, device: str) -> Call:
    pipeline = RandomPipeline.like(config.model, seed=config.seed, device=device)
    vae, precision = pipeline.vae(device), config.model.vae_precision
    round_frozen(vae, precision)
    generator = torch.Generator().manual_seed(config.seed)
    latents = torch.randn(config.images_per_decode, *pipeline.latent_shape, generator=generator)
    return lambda: decode_latents(vae, latents, precision)


def _policy(config: RunConfig, device: str) -> Call:
    from deploy.bench.gpu_learner import policy_step

    return policy_step(config, device)


def _surrogate(config: RunConfig, device: str) -> Call:
    from deploy.bench.gpu_learner import surrogate_step

    return surrogate_step(config, device)


def _policy_flops(config: RunConfig, plan: Plan, device: str) -> dict[str, int]:
    """Of a whole step. Decoder and surrogate have precisions of their own."""
    rows, learning = config.method.policy_batch, config.alternation
    decoder: Precision = config.model.vae_precision
    reward = decoder if learning is None else learning.surrogate.precision
    found: dict[str, int] = {}
    for part in POLICY_PARTS:
        kind = multiplied_in(reward if part == "reward" else config.model.precision, device)
        found[kind] = found.get(kind, 0) + rows * plan["flops"][f"policy_row_{part}"]
    return {kind: count for kind, count in found.items() if count}


def _surrogate_flops(config: RunConfig, plan: Plan, device: str) -> dict[str, int]:
    learning = config.alternation
    assert learning is not None
    kind = multiplied_in(learning.surrogate.precision, device)
    return {kind: surrogate_rows(config) * plan["flops"]["surrogate_row"]}


def _policy_memory(config: RunConfig, plan: Plan) -> dict[str, int]:
    """Of a learner whose surrogate has taken no step yet."""
    sizes = plan["bytes"]["learner"]
    held = (
        *("weights", "gradients", "optimizer", "reduction"),
        *("frozen", "text_encoders", "rewards", "surrogate"),
    )
    suffix = "_checkpointed" if config.learner.gradient_checkpointing else ""
    passing = _passing_gradients(config, sizes["gradients"])
    return {
        "held": sum(sizes.get(name, 0) for name in held) - passing,
        "activations": sizes[f"activations{suffix}"] + sizes[f"cast_weights{suffix}"] + passing,
    }


def _passing_gradients(config: RunConfig, gradients: int) -> int:
    """Of those bytes, what is there within a step alone: without ZeRO DeepSpeed frees them."""
    return gradients if config.learner.zero_stage == 0 else 0


def _surrogate_memory(config: RunConfig, plan: Plan) -> dict[str, int]:
    """Of the surrogate, its engine and the text encoders alone."""
    sizes = plan["bytes"]["learner"]
    held = ("surrogate", "surrogate_optimizer", "text_encoders")
    # All of a surrogate is trained: its gradients are as large as its weights.
    passing = _passing_gradients(config, sizes["surrogate"])
    activations = sizes["surrogate_activations"] + sizes["surrogate_cast_weights"]
    return {
        "held": sum(sizes[name] for name in held) - passing,
        "activations": activations + passing,
    }


def _inference_memory(config: RunConfig, plan: Plan, *, role: str) -> dict[str, int]:
    sizes = plan["bytes"][role]
    return {"held": sizes["weights"], "activations": sizes["activations"]}


def _policy_size(config: RunConfig, rows: int) -> list[str] | None:
    """Rows of a micro-batch where a step can be cut, which stays the same; else of the step."""
    batch = config.method.policy_batch
    if not config.method.takes_parts:
        return [f"method.policy_batch={rows}"]
    return None if batch % rows else [f"method.micro_batches={batch // rows}"]


def _policy_work(config: RunConfig) -> str:
    batch, parts = config.method.policy_batch, config.method.parts_of_step
    return f"policy step of {batch} rows, {-(-batch // parts)} at once"


STAGES: dict[str, Stage] = {
    "sampler": Stage(
        _sampler,
        lambda config: {"images": float(_pictures(config))},
        _sampler_work,
        _sampler_flops,
        partial(_inference_memory, role="sampler"),
        lambda config, groups: [f"actors.groups_per_batch={groups}"],
    ),
    "beside": Stage(
        partial(_sampler, was_half=True),
        lambda config: {"images": float(_pictures(config))},
        lambda config: f"{_sampler_work(config)}, adapter beside the layers",
        _sampler_flops,
        partial(_inference_memory, role="sampler"),
        lambda config, groups: None,
        absence=_without_beside,
    ),
    "decode": Stage(
        _decode,
        lambda config: {"images": float(config.images_per_decode)},
        lambda config: f"decode {config.images_per_decode} images",
        lambda config, plan, device: {
            multiplied_in(config.model.vae_precision, device): (
                config.images_per_decode * plan["flops"]["decoding_picture"]
            )
        },
        partial(_inference_memory, role="reward_server"),
        lambda config, images: [f"scoring.max_batch={images}"],
    ),
    "surrogate": Stage(
        _surrogate,
        lambda config: {"steps": 1.0, "rows": float(surrogate_rows(config))},
        lambda config: f"surrogate step of {surrogate_rows(config)} rows",
        _surrogate_flops,
        _surrogate_memory,
        lambda config, groups: [f"method.surrogate.batch_groups={groups}"],
        is_rank=True,
        absence=_without_surrogate,
    ),
    "policy": Stage(
        _policy,
        lambda config: {"steps": 1.0, "rows": float(config.method.policy_batch)},
        _policy_work,
        _policy_flops,
        _policy_memory,
        _policy_size,
        is_rank=True,
    ),
}
"""In the order of a sample's life."""
