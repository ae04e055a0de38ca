"""What is impossible between settings of a config, and the wait without end that it would cause.

Every check yields all that is wrong, by the config alone; `deploy.run.plan` looks at the machine.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploy.settings.problems import Problem
from deploy.settings.sections import KlAbove, ShapesPrompts
from learner.settings.draft import Draft
from learner.settings.lasro import Lasro
from learner.settings.likelihood import Dpo, Gors, Likelihood
from learner.settings.on_policy import OnPolicy, Ppo, Pso
from learner.settings.sqdf import Sqdf

if TYPE_CHECKING:
    from deploy.settings.run_config import RunConfig


def cross_problems(config: "RunConfig") -> Iterator[Problem]:
    """All of them."""
    yield from _method_problems(config)
    yield from _pace_problems(config)
    yield from _buffer_problems(config)
    yield from _rank_problems(config)
    yield from _fleet_problems(config)
    yield from _wait_problems(config)
    yield from _measure_problems(config)
    yield from _best_problems(config)


def _method_problems(config: "RunConfig") -> Iterator[Problem]:
    model, method, group = config.model, config.method, config.actors.group_size
    if isinstance(method, Lasro):
        yield from _lasro_problems(config, method)
    elif isinstance(method, Sqdf):
        yield from _sqdf_problems(config, method)
    elif isinstance(method, Draft):
        yield from _draft_problems(config, method)
    elif isinstance(method, Ppo | Pso):
        yield from _on_policy_problems(config, method)
    else:
        yield from _likelihood_problems(config, method)
    if group < 2 and method.learns_surrogate:
        yield Problem(
            "actors.group_size",
            f"must be at least 2, given {group}: a pair of one group is what the surrogate "
            "learns from, so it would wait for pairs without end",
        )
    if config.actors.fixed_initial_noise and model.num_steps == 1:
        yield Problem(
            "actors.fixed_initial_noise",
            "with model.num_steps 1 every image of a group is the same, so that every pair ties",
        )
    if all(reward.weight == 0 for reward in config.rewards.values()):
        yield Problem("rewards", "every weight is 0, so there is nothing to train on")


def _sqdf_problems(config: "RunConfig", method: Sqdf) -> Iterator[Problem]:
    model = config.model
    if model.is_few_step:
        yield Problem(
            "model.num_steps",
            f"sqdf trains models of 50 steps, given {model.num_steps}: a few-step model has no "
            "chain of small steps; train it with lasro",
        )
    if method.states.kept > model.num_steps:
        yield Problem(
            "method.states.kept",
            f"must be at most model.num_steps = {model.num_steps}, given {method.states.kept}",
        )
    if method.states.score_clean and (method.clean.lora is None or not method.learns_surrogate):
        yield Problem(
            "method.states.score_clean",
            "needs method.clean.by: consistency, whose model tells clean latents, and method."
            "reward: surrogate, which learns from their scores",
        )
    yield from _micro_batch_problems(config, method)


def _draft_problems(config: "RunConfig", method: Draft) -> Iterator[Problem]:
    num_steps = config.model.num_steps
    if config.model.is_few_step:
        yield Problem(
            "model.num_steps",
            f"draft trains models of 50 steps, given {num_steps}; of a model of few steps lasro's "
            "gradient goes through the steps themselves",
        )
    if method.path == "last" and method.last_steps > num_steps:
        yield Problem(
            "method.last_steps",
            f"must be at most model.num_steps = {num_steps}, given {method.last_steps}",
        )
    yield from _micro_batch_problems(config, method)


def _likelihood_problems(config: "RunConfig", method: Gors | Dpo) -> Iterator[Problem]:
    if isinstance(method, Gors) and config.model.is_few_step and config.model.teacher is None:
        yield Problem(
            "model.teacher",
            "is missing: of a model of few steps gors distils from it; name a multi-step pipeline",
        )
    if isinstance(method, Dpo) and config.model.is_few_step:
        yield Problem(
            "model.num_steps",
            f"dpo trains models of 50 steps, given {config.model.num_steps}: its loss is that of a "
            "denoiser; prefer pairs of few-step models by pso",
        )
    if isinstance(method, Dpo):
        yield from _pair_problems(config)
    yield from _micro_batch_problems(config, method)


def _pair_problems(config: "RunConfig") -> Iterator[Problem]:
    if config.actors.group_size < 2:
        yield Problem(
            "actors.group_size",
            f"must be at least 2, given {config.actors.group_size}: the better picture of a group "
            "is preferred to the worse",
        )


def _on_policy_problems(config: "RunConfig", method: Ppo | Pso) -> Iterator[Problem]:
    num_steps = config.model.num_steps
    if isinstance(method, Pso):
        yield from _pair_problems(config)
    elif isinstance(method, Ppo):
        yield from _ppo_problems(config, method)
    if config.model.is_few_step and method.kept_steps is not None:
        yield Problem(
            "method.kept_steps",
            f"is for models of 50 steps, given {method.kept_steps}; leave it out: of "
            f"{num_steps} steps all that add noise are trained on",
        )
    if not config.model.is_few_step and method.kept_steps and method.kept_steps > num_steps:
        yield Problem(
            "method.kept_steps",
            f"must be at most model.num_steps = {num_steps}, given {method.kept_steps}",
        )
    if method.steps_trained(num_steps) == 0:
        yield Problem(
            "model.num_steps",
            "is 1, and the only step of a one-step model adds no noise, so it has no probability "
            "to raise; train it with lasro",
        )
    if config.replay.max_staleness:
        yield Problem(
            "replay.max_staleness",
            f"must be 0 with method.kind: {method.kind}, given {config.replay.max_staleness}: a "
            "ratio of probabilities is of one version to the next",
        )
    yield from _micro_batch_problems(config, method)


def _ppo_problems(config: "RunConfig", method: Ppo) -> Iterator[Problem]:
    if method.baseline == "group" and config.actors.group_size < 2:
        yield Problem(
            "actors.group_size",
            f"must be at least 2, given {config.actors.group_size}: a picture's reward is compared "
            "with those of its group; or take method.baseline: batch",
        )
    if not config.model.is_few_step and method.last_call:
        yield Problem("method.last_call", "is for models of few steps; every step of 50 adds noise")


def _micro_batch_problems(
    config: "RunConfig", method: Sqdf | OnPolicy | Draft | Likelihood
) -> Iterator[Problem]:
    rows = method.policy_batch // config.learner.ranks
    if rows % method.micro_batches:
        yield Problem(
            "method.micro_batches",
            f"must divide a rank's rows, method.policy_batch / learner.ranks = {rows}, given "
            f"{method.micro_batches}: parts of one size have the gradient of the whole",
        )


def _lasro_problems(config: "RunConfig", method: Lasro) -> Iterator[Problem]:
    model = config.model
    if not model.is_few_step:
        yield Problem(
            "model.num_steps",
            f"lasro trains models of 1, 2, 3, 4 or 8 steps, given {model.num_steps}",
        )
    weights = method.step_weights
    if weights is not None and len(weights) != config.rewarded_steps:
        yield Problem(
            "method.step_weights",
            f"must hold {config.rewarded_steps} weights, one for each rewarded step "
            f"(model.num_steps {model.num_steps}, reward_steps {method.reward_steps}), "
            f"given {len(weights)}",
        )
    if method.anchor.data != "none" and model.teacher is None:
        yield Problem(
            "model.teacher",
            "is missing: method.anchor distils from it; name a multi-step pipeline, or set "
            "method.anchor.data: none",
        )


def _pace_problems(config: "RunConfig") -> Iterator[Problem]:
    if config.pace == "free":
        return
    if config.actors.groups_per_batch != 1:
        yield Problem(
            "actors.groups_per_batch",
            f"must be 1 with pace: lockstep, given {config.actors.groups_per_batch}: which groups "
            "share a forward pass changes their last bits",
        )
    if config.replay.max_staleness:
        yield Problem(
            "replay.max_staleness",
            f"must be 0 with pace: lockstep, given {config.replay.max_staleness}: which policy "
            "version a sampler finds would depend on its speed",
        )


def _buffer_problems(config: "RunConfig") -> Iterator[Problem]:
    replay, actors, method = config.replay, config.actors, config.method
    learning = config.alternation
    at_once = actors.group_size * actors.groups_per_batch
    if replay.max_pending_records < at_once:
        yield Problem(
            "replay.max_pending_records",
            f"must be at least actors.group_size × actors.groups_per_batch = {at_once}, given "
            f"{replay.max_pending_records}: what one forward pass makes would never fit, and every "
            "sampler would wait for room without end",
        )
    yield from _capacity_problems(config)
    most, ratio = replay.max_samples_per_insert, config.samples_per_insert
    if most is not None and ratio > most:
        yield Problem(
            "replay.max_samples_per_insert",
            f"is {most:g}, but the steps of a cycle draw {ratio:.3g} trajectories for each that it "
            "samples, and held to it the learner would wait for samples that nobody is asked for: "
            "raise it or method.groups_per_cycle, or take fewer or smaller steps",
        )
    first = method.tickets_after(0).stop * actors.group_size
    if config.max_records is not None and config.max_records < first:
        yield Problem(
            "limits.reward_queries",
            f"must be at least {first * config.queries_per_record:,}, which is asked for up to the "
            f"end of the first cycle, given {config.limits.reward_queries:,}",
        )
    if learning is None:
        return
    held_out = learning.pretrain.held_out
    kept = learning.pretrain.groups - held_out
    if kept < learning.surrogate.batch_groups:
        yield Problem(
            "method.pretrain.groups",
            f"{learning.pretrain.groups} groups less {held_out} held out leave {kept}, fewer than "
            f"one batch (method.surrogate.batch_groups {learning.surrogate.batch_groups})",
        )


def _capacity_problems(config: "RunConfig") -> Iterator[Problem]:
    """A learner that dies goes on from its newest checkpoint. What may be sampled by then: the last
    round before it, those of the cycles up to the next one, and those that samplers are ahead."""
    every, ahead = config.learner.checkpoint_every_cycles, config.max_staleness
    needed, given = config.method.most_groups(every + 1 + ahead), config.replay.capacity_groups
    if given < needed:
        yield Problem(
            "replay.capacity_groups",
            f"must be at least {needed}, given {given}: so many groups are in "
            f"learner.checkpoint_every_cycles + 1 + replay.max_staleness = {every} + 1 + {ahead} "
            "rounds in a row, and with room for fewer a learner that goes on from its checkpoint "
            "would not find what it trains on there; or lower learner.checkpoint_every_cycles",
        )


def _rank_problems(config: "RunConfig") -> Iterator[Problem]:
    ranks, method = config.learner.ranks, config.method
    if ranks > 1 and 0 < config.learner.num_gpus < 1:
        yield Problem(
            "learner.num_gpus",
            f"must be 0 or at least 1 with learner.ranks = {ranks}, given "
            f"{config.learner.num_gpus:g}: NCCL joins no two ranks on one GPU",
        )
    if config.learner.offload == "cpu" and config.learner.zero_stage == 0:
        yield Problem(
            "learner.offload",
            "cpu is done by ZeRO, and learner.zero_stage is 0: set it to 1 or 2",
        )
    batches = {"method.policy_batch": method.policy_batch}
    if (learning := config.alternation) is not None:
        batches["method.surrogate.batch_groups"] = learning.surrogate.batch_groups
    if isinstance(method, Lasro) and method.anchor.data != "none":
        batches["method.anchor.batch"] = method.anchor.batch
    for name, size in batches.items():
        if size % ranks:
            yield Problem(
                name,
                f"must be divisible by learner.ranks = {ranks}, given {size}: a rank with fewer "
                "rows would leave the others waiting in a collective without end",
            )


def _fleet_problems(config: "RunConfig") -> Iterator[Problem]:
    fleets = {
        "actors": ("count", config.actors.count, config.actors.auto),
        "scoring": ("servers", config.scoring.servers, config.scoring.auto),
        **{
            f"rewards.{name}.fleet": ("servers", reward.fleet.servers, reward.fleet.auto)
            for name, reward in config.rewards.items()
            if reward.fleet
        },
    }
    for section, (name, count, auto) in fleets.items():
        if auto is not None and not auto[0] <= count <= auto[1]:
            yield Problem(
                f"{section}.auto",
                f"must be the least and the most, with {section}.{name} = {count} between them, "
                f"given {list(auto)}",
            )


def _wait_problems(config: "RunConfig") -> Iterator[Problem]:
    stall_s = config.limits.stall_s
    shorter = {
        "actors.lease_s": (2, config.actors.lease_s, "the work of a dead actor is handed on"),
        "scoring.lease_s": (2, config.scoring.lease_s, "the work of a dead actor is handed on"),
        # A batch that misses it is followed by a probe, which may miss it too: within `hold_s`.
        "scoring.timeout_s": (4, config.scoring.timeout_s, "a reward that stalls is given up"),
        "scoring.outage_s": (1, config.scoring.outage_s, "a reward that is down is given up"),
        "replay.outage_s": (1, config.replay.outage_s, "a Redis that is down is given up"),
    }
    for name, (times, seconds, first) in shorter.items():
        if times * seconds >= stall_s:
            yield Problem(
                "limits.stall_s",
                f"must be above {times} × {name} = {seconds:g}, given {stall_s:g}: the run would "
                f"end before {first}",
            )


def _measure_problems(config: "RunConfig") -> Iterator[Problem]:
    # Pictures are drawn by the evaluation's seed, and by the next one for their diversity.
    if config.seed in (config.evaluation.seed, config.evaluation.seed + 1):
        yield Problem(
            "evaluation.seed",
            f"is {config.evaluation.seed} and seed {config.seed}: the policy would be measured on "
            "noise that it is trained on; give two seeds that are further apart",
        )
    training, held_out = config.prompts, config.evaluation.prompts
    same_file = not isinstance(training, ShapesPrompts) and training == held_out
    same_scenes = (
        isinstance(training, ShapesPrompts)
        and isinstance(held_out, ShapesPrompts)
        and training.held_out == held_out.held_out
    )
    if same_file or same_scenes:
        yield Problem(
            "evaluation.prompts",
            "are the training prompts; evaluate on others"
            + (", with held_out: true" if same_scenes else ""),
        )
    if config.evaluation.samples < config.evaluation.diversity.prompts:
        yield Problem(
            "evaluation.samples",
            f"must be at least evaluation.diversity.prompts = "
            f"{config.evaluation.diversity.prompts}, given {config.evaluation.samples}",
        )


def _best_problems(config: "RunConfig") -> Iterator[Problem]:
    evaluation = config.evaluation
    if evaluation.best_by is not None and evaluation.best_by not in config.measured_scores:
        yield Problem(
            "evaluation.best_by",
            f"must be a score that an evaluation measures, {', '.join(config.measured_scores)}, "
            f"given {evaluation.best_by!r}",
        )
    if evaluation.best_by is not None and evaluation.every_cycles is None:
        yield Problem(
            "evaluation.every_cycles",
            "is missing: the best version is looked for among those that are evaluated beside "
            "training, and without it there are none",
        )
    if evaluation.stop is not None and evaluation.best_by is None:
        yield Problem(
            "evaluation.best_by",
            "is missing: a run that evaluation.stop ends keeps its best version, and this names "
            "the score that it is the best by",
        )
    if isinstance(evaluation.stop, KlAbove) and config.model.num_steps == 1:
        yield Problem(
            "evaluation.stop.kind",
            "kl_above needs a step that has a density, and the only one of a one-step policy has "
            "none; take held_out_falls or diversity_below",
        )
