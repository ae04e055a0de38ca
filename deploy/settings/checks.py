"""What is impossible between settings of a config, and the wait without end that it would cause.

Every check yields all that is wrong, by the config alone; `deploy.run.plan` looks at the machine.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploy.settings.problems import Problem
from deploy.settings.prompts import ShapesPrompts
from deploy.settings.sections import KlAbove

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
    for path, text in method.problems(model, group, config.learner.ranks):
        yield Problem(path, text)
    if method.is_on_policy and config.replay.max_staleness:
        yield Problem(
            "replay.max_staleness",
            f"must be 0 with method.kind: {method.kind}, given {config.replay.max_staleness}: a "
            "ratio of probabilities is of one version to the next",
        )
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


def groups_to_hold(config: "RunConfig") -> int:
    """Those that a learner needs when it goes on from its newest checkpoint.

    What may be sampled by then: the last round before it, those of the cycles up to the next one,
    and those that samplers are ahead.
    """
    rounds = config.learner.checkpoint_every_cycles + 1 + config.max_staleness
    return config.method.most_groups(rounds)


def _capacity_problems(config: "RunConfig") -> Iterator[Problem]:
    every, ahead = config.learner.checkpoint_every_cycles, config.max_staleness
    needed, given = groups_to_hold(config), config.replay.capacity_groups
    if given < needed:
        yield Problem(
            "replay.capacity_groups",
            f"must be at least {needed}, given {given}: learner.checkpoint_every_cycles "
            f"+ 1 + replay.max_staleness = {every} + 1 + {ahead} consecutive rounds hold that many "
            "groups, and a learner that is restarted needs them; raise it, or lower "
            "learner.checkpoint_every_cycles",
        )


def _rank_problems(config: "RunConfig") -> Iterator[Problem]:
    ranks = config.learner.ranks
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
    for name, size in config.method.batches.items():
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
            factor = f"{times} × " if times > 1 else ""
            yield Problem(
                "limits.stall_s",
                f"must be above {factor}{name} = {times * seconds:g}, given {stall_s:g}: the run "
                f"would end before {first}",
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
