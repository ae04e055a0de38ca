"""The config of a run: its sections together, and what must fit between them.

    config = load_config(Path("deploy/configs/smoke.yaml"), ["seed=3", "actors.count=2"])

Raises ConfigError with every problem at once. Imports no torch, so that a typo is reported before
anything is started. `deploy.plan` looks at the machine; this module only at the config itself.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from deploy.config_problems import ConfigError, Problem, problems_of
from deploy.config_sections import (
    Actors,
    Evaluation,
    FilePrompts,
    Limits,
    Prompts,
    Replay,
    Reward,
    Scoring,
    ShapesPrompts,
    named_prompts,
)
from deploy.config_yaml import YamlError, read_preset, with_overrides
from learner.settings import Lasro, Learner, Model, Section, Sqdf

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _name_from_time() -> str:
    return time.strftime("run-%Y%m%d-%H%M%S")


class RunConfig(Section):
    """One run of fleetune."""

    name: str = Field(default_factory=_name_from_time)
    """Name of the run: its folder, its Ray namespace, its Redis keys. Default: the time."""
    folder: str = Field(default="runs", min_length=1)
    """Folder that holds the runs' folders."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of prompts, noise and initial weights."""
    pace: Literal["free", "lockstep"] = "free"
    """`lockstep`: the same seed gives the same policy bit by bit on CPUs, whatever dies meanwhile;
    every forward pass of a sampler is one group, every decode one record. `free`: passes are as
    large as their settings say, and samplers may run ahead of the learner."""
    model: Model
    """The policy."""
    prompts: Prompts
    """Training prompts: `{file: path}`, or `{kind: shapes, ...}`."""
    actors: Actors = Actors()
    """The samplers."""
    rewards: dict[str, Reward] = Field(min_length=1)
    """Reward models by name."""
    scoring: Scoring = Scoring()
    """The servers that run them."""
    replay: Replay = Replay()
    """The replay buffer."""
    learner: Learner = Learner()
    """The learner's processes."""
    method: Annotated[Lasro | Sqdf, Field(discriminator="kind")]
    """The training method."""
    evaluation: Evaluation
    """Held-out measurements."""
    limits: Limits = Limits()
    """What ends a run early."""

    _prompts = field_validator("prompts", mode="before")(named_prompts)

    @field_validator("name")
    @classmethod
    def _name_fits_everywhere(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"must be at most 64 letters, digits, '.', '_' and '-', as it names a folder, "
                f"given {value!r}"
            )
        return value

    @field_validator("rewards")
    @classmethod
    def _names_fit_actors(cls, value: dict[str, Reward]) -> dict[str, Reward]:
        bad = [name for name in value if not _NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"reward names are letters, digits, '.', '_' and '-', given {bad}")
        return value

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        problems = list(cross_problems(self))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def images_per_decode(self) -> int:
        """Most images that a reward server decodes at once."""
        return self.rewarded_steps if self.pace == "lockstep" else self.scoring.max_batch

    @property
    def capacity_bytes(self) -> int:
        """Of the replay; 0 without such a limit."""
        return round((self.replay.capacity_mb or 0) * 2**20)

    @property
    def records_per_cycle(self) -> int:
        """Trajectories that a cycle samples."""
        return self.method.groups_per_cycle * self.actors.group_size

    @property
    def rewarded_steps(self) -> int:
        """Clean latents of one trajectory that are scored."""
        method = self.method
        if isinstance(method, Lasro):
            return self.model.num_steps if method.reward_steps == "all" else 1
        return 1 + (method.states.kept if method.states.score_clean else 0)

    @property
    def queries_per_record(self) -> int:
        """Scores of single pictures that a trajectory costs."""
        return self.rewarded_steps * len(self.rewards)

    @property
    def max_records(self) -> int | None:
        """Trajectories that the budget of queries pays for."""
        budget = self.limits.reward_queries
        return None if budget is None else budget // self.queries_per_record

    @property
    def samples_per_insert(self) -> float:
        """How often the steps of a cycle draw a trajectory for each that the cycle inserts.

        Learner and samplers take turns, so the ratio holds whatever their speeds are.
        """
        method, drawn = self.method, 0
        if method.learns_surrogate:
            rows = method.surrogate.batch_groups * self.actors.group_size
            drawn += method.surrogate_steps * rows
        if isinstance(method, Sqdf):
            drawn += method.policy_steps * method.policy_batch
        return drawn / self.records_per_cycle

    @property
    def step_labels(self) -> tuple[str, ...]:
        """Of the clean latents that one sampling makes: '1step', '2step', … or '50step'."""
        if isinstance(self.method, Lasro):
            return tuple(f"{step}step" for step in range(1, self.model.num_steps + 1))
        return (f"{self.model.num_steps}step",)

    def run_folder(self, environ: Mapping[str, str]) -> Path:
        """Where the run writes. FLEETUNE_RUNS wins: a job's own working directory is a copy."""
        return Path(environ.get("FLEETUNE_RUNS") or self.folder) / self.name

    def redis_url(self, environ: Mapping[str, str]) -> str | None:
        """URL of the Redis to use; None: start an embedded server."""
        if self.replay.redis == "embedded":
            return None
        if self.replay.redis in ("auto", "environment"):
            return environ.get("REDIS_URL") or None
        return self.replay.redis

    def to_json(self) -> str:
        """The resolved config; `config_from_json` gives an equal one."""
        return json.dumps(self.model_dump(mode="json"), indent=2)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """A preset with overrides, checked; raises ConfigError with everything that is wrong."""
    try:
        preset = read_preset(Path(path))
    except YamlError as error:
        raise ConfigError([Problem("", str(error))]) from None
    values, unread = with_overrides(preset, overrides)
    problems = [Problem("", text) for text in unread]
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        found = problems_of(error.errors(include_url=False), RunConfig)
        raise ConfigError([*problems, *found], str(path)) from None
    if problems:
        raise ConfigError(problems, str(path))
    return config


def config_from_json(text: str) -> RunConfig:
    """The config that `RunConfig.to_json` wrote."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(problems_of(error.errors(include_url=False), RunConfig)) from None


def cross_problems(config: RunConfig) -> Iterator[Problem]:
    """What is impossible between two settings, and the wait without end that it would cause."""
    yield from _method_problems(config)
    yield from _pace_problems(config)
    yield from _buffer_problems(config)
    yield from _rank_problems(config)
    yield from _wait_problems(config)
    yield from _measure_problems(config)


def _method_problems(config: RunConfig) -> Iterator[Problem]:
    model, method, group = config.model, config.method, config.actors.group_size
    yield from (
        _lasro_problems(config, method)
        if isinstance(method, Lasro)
        else _sqdf_problems(config, method)
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


def _sqdf_problems(config: RunConfig, method: Sqdf) -> Iterator[Problem]:
    model = config.model
    if model.num_steps <= 8:
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
    rows = method.policy_batch // config.learner.ranks
    if rows % method.micro_batches:
        yield Problem(
            "method.micro_batches",
            f"must divide a rank's rows, method.policy_batch / learner.ranks = {rows}, given "
            f"{method.micro_batches}: parts of one size have the gradient of the whole",
        )


def _lasro_problems(config: RunConfig, method: Lasro) -> Iterator[Problem]:
    model = config.model
    if model.num_steps > 8:
        yield Problem(
            "model.num_steps",
            f"lasro trains models of 1, 2, 4 or 8 steps, given {model.num_steps}",
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


def _pace_problems(config: RunConfig) -> Iterator[Problem]:
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


def _buffer_problems(config: RunConfig) -> Iterator[Problem]:
    replay, actors, method = config.replay, config.actors, config.method
    at_once = actors.group_size * actors.groups_per_batch
    if replay.max_pending_records < at_once:
        yield Problem(
            "replay.max_pending_records",
            f"must be at least actors.group_size × actors.groups_per_batch = {at_once}, given "
            f"{replay.max_pending_records}: what one forward pass makes would never fit, and every "
            "sampler would wait for room without end",
        )
    at_least = {
        "method.pretrain.groups": method.pretrain.groups,
        "method.groups_per_cycle": method.groups_per_cycle,
    }
    if method.learns_surrogate:
        at_least["method.surrogate.batch_groups"] = method.surrogate.batch_groups
    for name, needed in at_least.items():
        if replay.capacity_groups < needed:
            yield Problem(
                "replay.capacity_groups",
                f"must be at least {name} = {needed}, given {replay.capacity_groups}: the oldest "
                "groups would make room before the last arrive, and the learner would wait for "
                "them without end",
            )
    most, ratio = replay.max_samples_per_insert, config.samples_per_insert
    if most is not None and ratio > most:
        yield Problem(
            "replay.max_samples_per_insert",
            f"is {most:g}, but the steps of a cycle draw {ratio:.3g} trajectories for each that it "
            "samples, and held to it the learner would wait for samples that nobody is asked for: "
            "raise it or method.groups_per_cycle, or take fewer or smaller steps",
        )
    first = (method.pretrain.groups + method.groups_per_cycle) * actors.group_size
    if config.max_records is not None and config.max_records < first:
        yield Problem(
            "limits.reward_queries",
            f"must be at least {first * config.queries_per_record:,}, which method.pretrain.groups "
            f"and one cycle ask for, given {config.limits.reward_queries:,}",
        )
    held_out = held_out_groups(config)
    kept = method.pretrain.groups - held_out
    if method.learns_surrogate and kept < method.surrogate.batch_groups:
        yield Problem(
            "method.pretrain.groups",
            f"{method.pretrain.groups} groups less {held_out} held out leave {kept}, fewer than "
            f"one batch (method.surrogate.batch_groups {method.surrogate.batch_groups})",
        )


def held_out_groups(config: RunConfig) -> int:
    """Groups of the pre-training that measure and never train: at least one for a surrogate."""
    pretrain = config.method.pretrain
    return max(1, round(pretrain.groups * pretrain.holdout_share))


def _rank_problems(config: RunConfig) -> Iterator[Problem]:
    ranks, method = config.learner.ranks, config.method
    batches = {"method.policy_batch": method.policy_batch}
    if method.learns_surrogate:
        batches["method.surrogate.batch_groups"] = method.surrogate.batch_groups
    if isinstance(method, Lasro) and method.anchor.data != "none":
        batches["method.anchor.batch"] = method.anchor.batch
    for name, size in batches.items():
        if size % ranks:
            yield Problem(
                name,
                f"must be divisible by learner.ranks = {ranks}, given {size}: a rank with fewer "
                "rows would leave the others waiting in a collective without end",
            )


def _wait_problems(config: RunConfig) -> Iterator[Problem]:
    stall_s = config.limits.stall_s
    shorter = {
        "actors.lease_s": (config.actors.lease_s, "the work of a dead actor is handed on"),
        "scoring.lease_s": (config.scoring.lease_s, "the work of a dead actor is handed on"),
        "scoring.timeout_s": (config.scoring.timeout_s, "a reward that stalls is given up"),
        "scoring.outage_s": (config.scoring.outage_s, "a reward that is down is given up"),
        "replay.outage_s": (config.replay.outage_s, "a Redis that is down is given up"),
    }
    for name, (seconds, first) in shorter.items():
        if seconds >= stall_s:
            yield Problem(
                "limits.stall_s",
                f"must be above {name} = {seconds:g}, given {stall_s:g}: the run would end before "
                f"{first}",
            )


def _measure_problems(config: RunConfig) -> Iterator[Problem]:
    training, held_out = config.prompts, config.evaluation.prompts
    same_file = isinstance(training, FilePrompts) and training == held_out
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
