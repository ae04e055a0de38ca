"""The config of a run: its sections together, and what must fit between them.

    config = load_config(Path("deploy/configs/smoke.yaml"), ["seed=3", "actors.count=2"])

Raises ConfigError with every problem at once. Imports no torch, so that a typo is reported before
anything is started. `deploy.run.plan` looks at the machine; this module only at the config itself.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from deploy.settings.checks import cross_problems
from deploy.settings.config_yaml import YamlError, read_preset, with_overrides
from deploy.settings.problems import ConfigError, Problem, problems_of
from deploy.settings.prompts import Prompts, named_prompts
from deploy.settings.sections import (
    Actors,
    Callback,
    Evaluation,
    Limits,
    Logging,
    Replay,
    Reward,
    Scoring,
)
from learner.settings.cycles import Alternation
from learner.settings.draft import Draft
from learner.settings.lasro import Lasro
from learner.settings.learner import Learner
from learner.settings.likelihood import Dpo, Gors
from learner.settings.model import Model
from learner.settings.on_policy import Ppo, Pso
from learner.settings.sqdf import Sqdf
from learner.settings.types import Section

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
    method: Annotated[Lasro | Sqdf | Ppo | Pso | Draft | Gors | Dpo, Field(discriminator="kind")]
    """The training method."""
    evaluation: Evaluation
    """Held-out measurements."""
    limits: Limits = Limits()
    """What ends a run early."""
    logging: Logging = Logging()
    """Where else the curves go."""
    callbacks: tuple[Callback, ...] = ()
    """Code that is told how the run goes."""

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
    def images_per_evaluation(self) -> tuple[int, int]:
        """Most pictures that the evaluator draws at once, and decodes at once."""
        most, actors = self.evaluation.max_batch, self.actors
        drawn = actors.group_size * actors.groups_per_batch
        return most or drawn, most or self.scoring.max_batch

    @property
    def hold_s(self) -> float:
        """A sampler or a reward server that is busy with one batch for longer hangs.

        Another one has as long again to make that batch, before the learner has waited in vain. A
        process's first batch may take four times as long.
        """
        return self.limits.stall_s / 2

    @property
    def build_s(self) -> float:
        """A process that is built for longer hangs. Models may be fetched from a hub meanwhile."""
        return max(1800.0, 3 * self.limits.stall_s)

    @property
    def max_staleness(self) -> int:
        """Cycles that samplers may be ahead of the learner."""
        given = self.replay.max_staleness
        ahead = self.pace == "free" and not self.method.is_on_policy
        return int(ahead) if given is None else given

    @property
    def capacity_bytes(self) -> int:
        """Of the replay; 0 without such a limit."""
        return round((self.replay.capacity_mb or 0) * 2**20)

    @property
    def alternation(self) -> Alternation | None:
        """The method, where it learns a surrogate of the reward."""
        method = self.method
        return method if isinstance(method, Alternation) and method.learns_surrogate else None

    @property
    def rewarded_steps(self) -> int:
        """Clean latents of one trajectory that are scored."""
        return self.method.scored_latents(self.model.num_steps)

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
    def planned_queries(self) -> int:
        """Scores of single pictures that the whole run asks for."""
        records = self.method.round_ends[-1] * self.actors.group_size
        return min(records, self.max_records or records) * self.queries_per_record

    @property
    def useful_samplers(self) -> int:
        """As many as find a batch of groups in the cycles that may be under way; more
        would get no ticket."""
        first, *later = self.method.round_sizes
        groups = max(later, default=0) or first
        return -(-groups // self.actors.groups_per_batch) * (1 + self.max_staleness)

    @property
    def samples_per_insert(self) -> float:
        """How often the steps of a cycle draw a trajectory for each that the cycle inserts.

        Of cycles that differ, in the one that inserts fewest. Learner and samplers take turns, so
        the ratio holds whatever their speeds are.
        """
        method = self.method
        drawn = method.draws_per_cycle(self.model.num_steps)
        if (learning := self.alternation) is not None:
            rows = learning.surrogate.batch_groups * self.actors.group_size
            drawn += learning.surrogate_steps * rows
        return drawn / (min(method.cycle_sizes) * self.actors.group_size)

    @property
    def step_labels(self) -> tuple[str, ...]:
        """Of the clean latents that one sampling makes: '1step', '2step', … or '50step'."""
        if self.model.is_few_step:
            return tuple(f"{step}step" for step in range(1, self.model.num_steps + 1))
        return (f"{self.model.num_steps}step",)

    @property
    def measured_scores(self) -> tuple[str, ...]:
        """Names of the scores that an evaluation measures at every step."""
        trained = [name for name, reward in self.rewards.items() if reward.weight != 0]
        several = [f"reward_{name}" for name in trained] if len(trained) > 1 else []
        names = [*self.evaluation.rewards, "reward", *several]
        return tuple(f"{name}_{label}" for label in self.step_labels for name in names)

    def run_folder(self, environ: Mapping[str, str]) -> Path:
        """Where the run writes. FLEETUNE_RUNS wins: a job's own working directory is a copy."""
        return Path(environ.get("FLEETUNE_RUNS") or self.folder) / self.name

    def redis_url(self, environ: Mapping[str, str]) -> str | None:
        """URLs of the Redis servers to use, as one text; None: start embedded ones."""
        if self.replay.redis == "embedded":
            return None
        if self.replay.redis in ("auto", "environment"):
            return environ.get("REDIS_URL", "").strip() or None
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
