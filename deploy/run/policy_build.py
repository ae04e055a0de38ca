"""The policy of a config, ready to sample, as samplers and the evaluator hold it.

The heavy imports are inside: a config's mistake is told of before torch is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.rollout import FewStepPolicy, ManyStepPolicy
    from deploy.settings.run_config import RunConfig
    from learner.diffusion.strata import Strata
    from learner.policy.components import PipelineFolder


def device_of(num_gpus: float) -> str:
    """Where a process that booked so many GPUs computes; `keep_to_share` hides what it has not."""
    return "cuda" if num_gpus > 0 else "cpu"


def policy_of(
    config: RunConfig,
    pipeline: PipelineFolder,
    group_size: int,
    device: str = "cpu",
    *,
    only_clean: bool = False,
    prompts: Sequence[str] | None = None,
) -> FewStepPolicy | ManyStepPolicy:
    """The policy as it is before training, ready to sample and to take new weights.

    It can tell its drift from the untouched network.

    Args:
        only_clean: keep none of the states of a many-step chain but its last.
        prompts: all that it will draw, for text encoders that retire; None: not known.
    """
    from actors.rollout import FewStepPolicy, ManyStepPolicy
    from learner.policy.denoiser import Denoiser
    from learner.policy.flops import FlopMeter, Metered
    from learner.policy.views import SamplingPolicy
    from learner.states import kept_strata

    base: Any = pipeline.unet(config.model.attention).requires_grad_(False)
    base.to(device)  # before others share its tensors
    policy, meter = SamplingPolicy(base, config.model, seed=config.seed), FlopMeter()
    denoiser = partial(Denoiser.of, model=config.model)
    parts: dict[str, Any] = {
        "network": Metered(denoiser(policy.unet), meter),
        "meter": meter,
        "encode": pipeline.prompt_encoder(device, prompts),
        "take": policy.load,
        "schedule": pipeline.schedule,
        "latent_shape": pipeline.latent_shape,
        "group_size": group_size,
        "num_steps": config.model.num_steps,
        "guidance_scale": config.model.guidance_scale,
        "shared_initial_noise": config.actors.fixed_initial_noise,
        "device": device,
        "base": denoiser(base),
    }
    if config.model.is_few_step:
        return FewStepPolicy(
            **parts,
            kind=pipeline.few_steps(),
            guidance_dim=base.config["time_cond_proj_dim"],
            num_scored=config.rewarded_steps,
        )
    if only_clean:
        return ManyStepPolicy(**parts, keep=lambda seed: ())
    strata = kept_strata(config.method, config.model)
    beside = _asked_beside(config, base, lambda unet: Metered(denoiser(unet), meter))
    return ManyStepPolicy(**parts, keep=_keep(strata), **beside)


def _keep(strata: Strata | None) -> Callable[[int], tuple[int, ...]]:
    """The states that a group keeps, by its seed."""
    from actors.sampling import kept_states

    return lambda seed: () if strata is None else kept_states(seed, strata)


def _asked_beside(config: RunConfig, base: Any, network: Callable[[Any], Any]) -> dict[str, Any]:
    """Networks that are asked at every kept state, beside the policy."""
    from learner.policy.views import with_lora

    method, asked = config.method, {}
    if method.clean_states:
        assert method.consistency_lora is not None
        asked["consistency"] = network(with_lora(base, method.consistency_lora))
    if method.reference_states:
        asked["reference"] = network(base)
    return asked
