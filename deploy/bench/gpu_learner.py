"""Policy and surrogate steps of SQDF and LaSRO on one rank, of random networks and random samples.

Put together like `learner.methods.sqdf_build` and `learner.methods.lasro_build` do it, less the
replay: what a step learns from is made once, here.
Shape suffixes: G groups, N samples of a group, K rewarded steps, C H W latent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy.bench.random_parts import RandomClipReward, RandomPipeline
from deploy.doctor.reward_networks import clip_of
from deploy.settings.run_config import RunConfig
from learner.diffusion.chain import Chain
from learner.engine import Engine
from learner.exploration import Climb
from learner.group_batch import GroupBatch
from learner.methods.climbed import DecodedReward, RewardOf, SurrogateReward
from learner.methods.lasro_policy import AnchorData, LasroPolicy
from learner.methods.parts import policy_engine, surrogate_engine
from learner.methods.sqdf_policy import SqdfPolicy
from learner.policy.denoiser import Denoiser
from learner.policy.precision import round_frozen
from learner.policy.views import policy_over, with_lora
from learner.seat import Seat
from learner.settings.lasro import Lasro
from learner.settings.sqdf import Sqdf
from learner.states import StateBatch
from learner.surrogate import surrogate_by
from learner.surrogate_training import SurrogateTrainer
from reward_servers.base import DifferentiableReward
from reward_servers.registry import build_reward

_PROMPTS = 8


def policy_under_engine(config: RunConfig, policy: Denoiser) -> Engine:
    """As every method has it."""
    return policy_engine(config.method, config.learner, policy)


def surrogate_under_engine(config: RunConfig, network: torch.nn.Module) -> Engine:
    """As every method has it."""
    learning = config.alternation
    assert learning is not None
    return surrogate_engine(learning.surrogate, config.learner, network)


@dataclass(frozen=True)
class Engines:
    """What puts networks under an engine."""

    policy: Callable[[RunConfig, Denoiser], Engine] = policy_under_engine
    surrogate: Callable[[RunConfig, torch.nn.Module], Engine] = surrogate_under_engine


def policy_step(
    config: RunConfig, device: str, *, engines: Engines | None = None
) -> Callable[[], Mapping[str, float]]:
    """Takes one policy step whenever it is called, always on the same samples.

    Raises:
        ValueError: the method is neither SQDF nor LaSRO, or its reward needs what is not here.
    """
    if isinstance(config.method, Sqdf):
        return _sqdf_step(config, config.method, device, engines or Engines())
    if isinstance(config.method, Lasro):
        return _lasro_step(config, config.method, device, engines or Engines())
    raise ValueError(
        f"method.kind is {config.method.kind}: policy steps are measured of sqdf and lasro"
    )


def _sqdf_step(
    config: RunConfig, settings: Sqdf, device: str, engines: Engines
) -> Callable[[], Mapping[str, float]]:
    model, pipeline = config.model, _pipeline(config, device)
    base = pipeline.unet(model.attention).requires_grad_(False)
    consistency = with_lora(base, settings.clean.lora) if settings.clean.lora else None
    policy = Denoiser.of(policy_over(base, model, seed=config.seed), model)
    engine = engines.policy(config, policy)
    reward = _climbed(config, settings, pipeline, base, engines, str(engine.device))
    for network in (base, consistency):
        if network is not None:
            torch.nn.Module.to(network, engine.device)
            if config.learner.gradient_checkpointing:
                network.enable_gradient_checkpointing()
            round_frozen(network, model.precision)
    round_frozen(engine.module, model.precision)
    steps = SqdfPolicy(
        settings,
        engine,
        Chain(pipeline.schedule, model.num_steps),
        pipeline.prompt_encoder(engine.device),
        Denoiser.of(base, model),
        Denoiser.of(consistency, model) if consistency else None,
        reward,
        guidance_scale=model.guidance_scale,
        seat=Seat(config.seed),
    )
    rows = settings.policy_batch
    noise = torch.randn(2, rows, *pipeline.latent_shape, generator=_seeded(config))
    batch = StateBatch(
        noise[0],
        # No step is the last, after which the latent is clean.
        torch.arange(rows) % (model.num_steps - 1),
        _prompts(rows),
        noise[1] if settings.states.store_reference else None,
    )
    return lambda: steps.step(batch)


def _climbed(
    config: RunConfig,
    settings: Sqdf,
    pipeline: RandomPipeline,
    base: Any,
    engines: Engines,
    device: str,
) -> RewardOf:
    """What SQDF climbs: a surrogate, or rewards of decoded images, all of one weight."""
    if settings.reward == "surrogate":
        surrogate = engines.surrogate(config, _surrogate(config, base, 1))
        return SurrogateReward(Climb(surrogate.module, settings.surrogate))
    trained = {name: each for name, each in config.rewards.items() if each.weight != 0}
    vae = pipeline.vae(device).requires_grad_(False)
    round_frozen(vae, config.model.vae_precision)
    return DecodedReward(
        vae,
        {name: stand_in(each.kind, each.args, device) for name, each in trained.items()},
        lambda name, values_B: values_B,
        precision=config.model.vae_precision,
        checkpointing=config.learner.gradient_checkpointing,
    )


def stand_in(kind: str, args: Mapping[str, Any], device: str) -> DifferentiableReward:
    """The reward itself, or one of its shapes where its weights are not here."""
    told = clip_of(kind, args)
    if told is not None and not Path(str(args.get("clip"))).is_dir():
        random: Any = RandomClipReward(told, device)
        return random
    reward: Any = build_reward(kind, args)
    return reward


def _lasro_step(
    config: RunConfig, settings: Lasro, device: str, engines: Engines
) -> Callable[[], Mapping[str, float]]:
    model, pipeline = config.model, _pipeline(config, device)
    teacher = _teacher(config, device)
    unet = policy_over(pipeline.unet(model.attention), model, seed=config.seed)
    engine = engines.policy(config, Denoiser.of(unet, model))
    surrogate = engines.surrogate(config, _surrogate(config, teacher, config.rewarded_steps))
    anchored = settings.anchor.data != "none"
    if anchored:
        torch.nn.Module.to(teacher, engine.device)
        round_frozen(teacher, model.precision)
    round_frozen(engine.module, model.precision)
    steps = LasroPolicy(
        settings,
        model,
        engine,
        pipeline.few_step_chain(model.num_steps),
        pipeline.latent_shape,
        pipeline.prompt_encoder(engine.device),
        Denoiser.of(teacher, model) if anchored else None,
        Climb(surrogate.module, settings.surrogate),
        Seat(config.seed),
    )
    latents = torch.randn(settings.anchor.batch, *pipeline.latent_shape, generator=_seeded(config))
    anchor = AnchorData(latents, _prompts(len(latents))) if anchored else None
    prompts = _prompts(_PROMPTS)
    return lambda: steps.step(prompts, anchor)


def surrogate_step(config: RunConfig, device: str) -> Callable[[], Mapping[str, float]]:
    """Takes one surrogate step whenever it is called, always on the same groups.

    Raises:
        ValueError: the method learns no surrogate.
    """
    learning = config.alternation
    if learning is None:
        raise ValueError(
            "this config learns no surrogate: give one that does, such as method.kind lasro, or "
            "sqdf with method.reward=surrogate"
        )
    steps = config.rewarded_steps
    pipeline = _pipeline(config, device)
    tells_steps = learning.tells_steps
    is_taught = learning.needs_teacher(config.model.is_few_step)
    unet = _teacher(config, device) if is_taught else pipeline.unet(config.model.attention)
    engine = surrogate_under_engine(config, _surrogate(config, unet, steps if tells_steps else 1))
    del unet
    trainer = SurrogateTrainer(
        learning.surrogate, engine, pipeline.prompt_encoder(engine.device), tells_steps=tells_steps
    )
    groups, generator = learning.surrogate.batch_groups, _seeded(config)
    shape = groups, config.actors.group_size, steps
    batch = GroupBatch(
        range(groups),
        _prompts(groups),
        torch.randn(*shape, *pipeline.latent_shape, generator=generator),
        torch.randn(shape, generator=generator),
    )
    trainer.standardise(batch.rewards_GNK)
    return lambda: trainer.step(batch)


def _surrogate(config: RunConfig, unet: Any, num_steps: int) -> torch.nn.Module:
    """Over blocks of a UNet, where it copies them."""
    learning = config.alternation
    assert learning is not None
    surrogate = surrogate_by(learning.surrogate, unet, num_steps=num_steps, seed=config.seed)
    if config.learner.gradient_checkpointing:
        surrogate.enable_gradient_checkpointing()
    return surrogate


def _pipeline(config: RunConfig, device: str) -> RandomPipeline:
    return RandomPipeline.like(config.model, seed=config.seed, device=device)


def _teacher(config: RunConfig, device: str) -> Any:
    model = config.model
    if model.teacher is not None:
        own = {"path": model.teacher, "unet": None, "vae": None, "lcm_lora": None}
        model = model.model_copy(update=own)
    pipeline = RandomPipeline.like(model, seed=config.seed + 1, device=device)
    return pipeline.unet(config.model.attention).requires_grad_(False)


def _prompts(count: int) -> list[str]:
    """As few as have different text; states of a prompt are kept, as in a run."""
    return [f"a picture of number {number % _PROMPTS}" for number in range(count)]


def _seeded(config: RunConfig) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed)
