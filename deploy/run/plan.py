"""What a config means on this machine, before anything is started.

`check_environment` looks for what the run would miss, `describe` says what it would do. Imports no
torch; what another package knows is asked there, inside the function that needs it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from deploy.run.bookings import bookings
from deploy.run.files import CONFIG_FILE
from deploy.run.model_checks import model_problems
from deploy.settings.problems import without_password
from deploy.settings.run_config import RunConfig
from deploy.settings.sections import Metric, Reward
from learner.settings.model import Model

if TYPE_CHECKING:
    from actors.prompt_sets import PromptSet


def check_environment(
    config: RunConfig, environ: Mapping[str, str], *, resume: bool = False
) -> list[str]:
    """What is missing here for a run to begin; empty: nothing that can be seen without starting."""
    from deploy.run.prompt_checks import pinned, readable_prompts, warn_of_repeated

    prompts, unreadable = readable_prompts(config)
    warn_of_repeated(prompts)
    return [
        *_unusable_folder(pinned(config, prompts), environ, resume=resume),
        *model_problems(config),
        *unreadable,
        *_unknown_rewards(config, prompts),
        *_unknown_distances(config),
        *_unusable_listeners(config, environ),
        *_unusable_redis(config, environ, resume=resume),
    ]


def has_begun(config: RunConfig, environ: Mapping[str, str]) -> bool:
    """Whether a run of this name has been started before."""
    return (config.run_folder(environ) / CONFIG_FILE).exists()


def _unusable_folder(
    config: RunConfig, environ: Mapping[str, str], *, resume: bool
) -> Iterator[str]:
    from deploy.run.folder import RunFolder

    folder = RunFolder(config.run_folder(environ))
    if (problem := folder.problem(resume=resume)) is not None:
        yield f"name: {problem}"
    elif resume:
        yield from map(str, folder.changed(config))


def _unknown_rewards(config: RunConfig, prompts: Mapping[str, "PromptSet"]) -> Iterator[str]:
    """Kinds that nobody registered or that cannot be imported here, and wrong arguments.

    The reward servers run in the environment that this runs in, so what fails here fails there.
    """
    from reward_servers.registry import check_differentiable, check_metadata, check_reward

    settings: dict[str, Reward | Metric] = {
        **{f"rewards.{name}": reward for name, reward in config.rewards.items()},
        **{f"evaluation.rewards.{name}": it for name, it in config.evaluation.rewards.items()},
    }
    for name, setting in settings.items():
        climbed = isinstance(setting, Reward) and setting.weight != 0
        try:
            check_reward(setting.kind, setting.args)
            if climbed and config.method.differentiates_rewards:
                check_differentiable(setting.kind)
            # What is trained on is measured on the held-out prompts, too.
            for source, each in prompts.items():
                if isinstance(setting, Reward) or source != "prompts":
                    check_metadata(setting.kind, setting.args, each.table)
        except ValueError as error:
            yield f"{name}: {error}"


def _unknown_distances(config: RunConfig) -> Iterator[str]:
    distances = config.evaluation.diversity.distances
    if not distances:
        return
    from deploy.evaluation.distances import check_distance

    for name, distance in distances.items():
        try:
            check_distance(distance.kind, distance.args)
        except ValueError as error:
            yield f"evaluation.diversity.distances.{name}: {error}"


def _unusable_listeners(config: RunConfig, environ: Mapping[str, str]) -> Iterator[str]:
    if config.logging.wandb is not None:
        from deploy.run.wandb_logger import missing_for

        if (missing := missing_for(config.logging.wandb, environ)) is not None:
            yield f"logging.wandb: {missing}"
    if not config.callbacks:
        return
    from deploy.callbacks import check_callback

    for number, each in enumerate(config.callbacks):
        try:
            check_callback(each.kind, each.args)
        except ValueError as error:
            yield f"callbacks.{number}: {error}"


def _unusable_redis(
    config: RunConfig, environ: Mapping[str, str], *, resume: bool
) -> Iterator[str]:
    if config.replay.redis == "environment" and not environ.get("REDIS_URL"):
        yield "replay.redis: is environment, but the variable REDIS_URL is not set"
        return
    from buffer.connection import check_connection
    from buffer.embedded import find_server
    from buffer.urls import urls_in
    from deploy.run.replay_servers import refuse_old_run, wrong_number_of_urls

    if (problem := wrong_number_of_urls(config, environ)) is not None:
        yield problem
    urls = config.redis_url(environ)
    if urls is None:
        checks = [find_server]
    else:
        checks = [partial(check_connection, url, timeout_s=5.0) for url in urls_in(urls)]
    problems = [_problem_of(check) for check in checks]
    if urls is not None and not resume and not any(problems):
        problems = [_problem_of(partial(refuse_old_run, config, urls))]
    yield from (f"replay.redis: {problem}" for problem in problems if problem)


def _problem_of(check: Callable[[], object]) -> str | None:
    from buffer.errors import ReplayError

    try:
        check()
    except (ReplayError, OSError, RuntimeError, ValueError) as error:
        return without_password(str(error))
    return None


def describe(config: RunConfig) -> str:
    """What the run would start, sample and ask, in lines for a terminal."""
    method, actors, model = config.method, config.actors, config.model
    groups = method.round_ends[-1]
    records = groups * actors.group_size
    weights = f"LoRA rank {model.lora_rank}" if model.trainable == "lora" else "all weights"
    fewest, most = min(method.cycle_sizes), max(method.cycle_sizes)
    sizes = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    lines = {
        "run": f"{config.name}, seed {config.seed}, method {method.kind}",
        "model": f"{_parts_in_words(model)}, {model.num_steps} steps, {weights}",
        "processes": (
            f"samplers {actors.count}; reward servers {config.scoring.servers}; "
            f"{_own_fleets(config)}learner ranks {config.learner.ranks} "
            f"(ZeRO {config.learner.zero_stage}); evaluator 1"
        ),
        "Ray": _resources(config),
        "redis": _redis_in_words(config),
        "pre-training": "none" if method.is_on_policy else f"{method.round_sizes[0]} groups",
        "cycles": (
            f"{method.cycles} × ({sizes} groups, {method.policy_steps} policy "
            f"steps of {method.policy_batch} rows)"
        ),
        "samples": (
            f"{groups:,} groups × {actors.group_size} = {records:,} trajectories, up to "
            f"{actors.group_size * actors.groups_per_batch} in one forward pass"
        ),
        "draws": f"each trajectory {config.samples_per_insert:.3g} times on average in a cycle",
        "reward queries": _queries(config, records),
        "per rank": f"{method.policy_batch // config.learner.ranks} rows",
        "buffer": (
            f"{config.replay.capacity_groups:,} groups kept, up to "
            f"{config.replay.max_pending_records:,} records wait for a reward"
        ),
    }
    if (learning := config.alternation) is not None:
        batch = learning.surrogate.batch_groups
        lines["pre-training"] += (
            f", {learning.pretrain.held_out} held out, until pair accuracy "
            f"{learning.pretrain.target_accuracy:g} or {learning.pretrain.max_steps} steps"
        )
        lines["cycles"] += (
            f", each with {learning.surrogate_steps} surrogate steps of {batch} groups"
        )
        lines["per rank"] += f", {batch // config.learner.ranks} groups"
    lines["evaluations"] = _evaluations(config)
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _parts_in_words(model: Model) -> str:
    others = {"UNet of": model.unet, "VAE of": model.vae, "with LCM-LoRA": model.lcm_lora}
    told = [f"{words} {path}" for words, path in others.items() if path is not None]
    told += [f"{model.height} × {model.width} pixels"] if model.size is not None else []
    return ", ".join([model.path, *told])


def _queries(config: RunConfig, records: int) -> str:
    training = records * config.queries_per_record
    steps = len(config.step_labels)
    scores = len(config.evaluation.rewards) + sum(r.weight != 0 for r in config.rewards.values())
    measuring = 2 * config.evaluation.samples * steps * scores
    return (
        f"{training:,} in training ({config.rewarded_steps} of {config.model.num_steps} steps "
        f"scored), {measuring:,} in the evaluations before and after"
    )


def _evaluations(config: RunConfig) -> str:
    evaluation = config.evaluation
    beside = f", every {evaluation.every_cycles} cycles" if evaluation.every_cycles else ""
    kept = f"the best by {evaluation.best_by}" if evaluation.best_by else "the last version"
    stop = f", ended early by {evaluation.stop.kind}" if evaluation.stop else ""
    return f"before and after{beside}; kept is {kept}{stop}"


def _own_fleets(config: RunConfig) -> str:
    own = {name: r.fleet.servers for name, r in config.rewards.items() if r.fleet}
    return "".join(f"of reward {name} {servers}; " for name, servers in own.items())


def _resources(config: RunConfig) -> str:
    booked = bookings(config)
    cpus = sum(each.count * each.cpus for each in booked)
    gpus = sum(each.count * each.gpus for each in booked)
    return f"{cpus:g} CPUs, {gpus:g} GPUs"


def _redis_in_words(config: RunConfig) -> str:
    count = config.replay.shards
    own = "an embedded server" if count == 1 else f"{count} embedded servers"
    words = {
        "auto": f"REDIS_URL if it is set, else {own}",
        "embedded": own,
        "environment": "REDIS_URL",
    }
    return words.get(config.replay.redis, config.replay.redis)
