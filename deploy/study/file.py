"""The file of a study, and the runs that it asks for.

    config: deploy/configs/shapes-rlcm.yaml     what all runs have in common
    settings: [method.cycles=10]                a.b=value, as on the command line
    seeds: [0, 1, 2]
    arms:                                       what each changes
      rlcm:
        tries: [[method.learning_rate=1e-4], [method.learning_rate=3e-4]]
      rlcm-last-call:
        settings: [method.last_call=true]
        tuned_as: rlcm                          an ablation keeps what was chosen for its parent
      lasro:
        config: deploy/configs/shapes-lasro.yaml      a preset of its own
        quick: [method.surrogate_steps=1]
        tries: [[method.learning_rate=1e-4], [method.learning_rate=5e-5]]
    tuning: {seed: 100, score: reward_2step}    which try is best; as many for every arm
    budget: {reward_queries: 24000}
    diagnosis: {steps: [1, 2, 4]}               what a policy gradient has to go by
    quick: [method.cycles=1]                    with --quick, one seed of every arm
    scores: [exact_2step, diversity]            columns of the table; default: all
    against: lasro                              a table of differences from it, seed by seed
    reach: {score: reward_2step, at: 0.7}       a table of what it takes to get there
    fronts:
      - {scores: [reward_2step, diversity], reference: [0, 0]}

An arm that changes settings alone may be written as their list. A run's name is the study's, its
arm's and its seed's, so a study that was killed finds again what is finished.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from deploy.compare import differences
from deploy.diagnosis import Diagnosed
from deploy.run.files import CONFIG_FILE, SUMMARY_FILE
from deploy.run.plan import has_begun
from deploy.settings.config_yaml import YamlError, read_preset
from deploy.settings.problems import ConfigError, problems_of
from deploy.settings.run_config import RunConfig, config_from_json, load_config
from learner.settings.types import Count, Number, Positive, Section, Share, Whole


class Arm(Section):
    """What an arm changes."""

    config: str | None = None
    """A preset of its own; null: that of the study."""
    settings: tuple[str, ...] = ()
    """Overrides."""
    tries: tuple[tuple[str, ...], ...] = ()
    """Overrides to choose from, each a run with the seed of `tuning`."""
    tuned_as: str | None = None
    """Arm whose choice this one takes over, such as the one that it is an ablation of."""
    runs: str | None = None
    """Names of its runs, less the seed; null: the study's and the arm's. With STUDY-ARM two studies
    share an arm, which is run once."""
    family: str | None = None
    """Arms that differ by what trades one score for another share a front; null: its own name."""
    quick: tuple[str, ...] = ()
    """Overrides of its quick run."""


class Tuning(Section):
    """How the best of an arm's tries is chosen."""

    seed: Whole
    """Of all tries; none of the study's own."""
    score: str = Field(min_length=1)
    """The try that ends with the most of it is the arm's, unless its runs have begun with another
    that was the best when all had ended."""
    settings: tuple[str, ...] = ()
    """Overrides of all tries, such as another `evaluation.seed`."""


class Budget(Section):
    """What every run may spend; a study in which an arm plans more is refused."""

    reward_queries: Count
    """Scores of single pictures."""
    tflops: Positive | None = None
    """10¹² floating-point operations of sampling and learning. They are measured, so an arm that
    spent more is told below the table."""
    slack: Share = 0.1
    """Share of the queries that an arm may leave unspent, and of the operations that it may be off
    by: batches and cycles are whole numbers."""


class Front(Section):
    """Two scores of which more of one costs the other."""

    scores: tuple[str, str]
    """Both count as better when higher."""
    reference: tuple[Number, Number]
    """Corner of the area that a front dominates, its hypervolume."""


class Reach(Section):
    """A score of fresh samples: what do runs spend to have it?"""

    score: str = Field(min_length=1)
    """A reward of training, such as `reward_2step`."""
    at: Number
    """Reached where it is as much or more."""
    rounds: Count = 3
    """Rounds of fresh samples that it is the mean of."""


class Study(Section):
    """The file of a study."""

    config: str = Field(min_length=1)
    """The preset that all runs share, but those of arms with their own."""
    settings: tuple[str, ...] = ()
    """Overrides of all runs."""
    seeds: tuple[Whole, ...] = Field(min_length=1)
    """Every arm is run with each of them."""
    arms: dict[str, Arm] = Field(min_length=1)
    """By name; a list instead of a section is its overrides."""
    tuning: Tuning | None = None
    """null: no arm has tries."""
    budget: Budget | None = None
    """null: none is checked."""
    diagnosis: Diagnosed | None = None
    """Of the study's own preset, before its runs; null: none is measured."""
    quick: tuple[str, ...] = ()
    """Overrides of all quick runs."""
    scores: tuple[str, ...] | None = None
    """Scores in the table; null: all that every run has."""
    against: str | None = None
    """Arm that all others are held against, seed by seed; null: none."""
    reach: Reach | None = None
    """null: no such table."""
    fronts: tuple[Front, ...] = ()
    """Pareto fronts of the report."""

    @field_validator("arms", mode="before")
    @classmethod
    def _a_list_is_overrides(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"settings": arm} if isinstance(arm, list | tuple) else arm
            for name, arm in value.items()
        }

    @field_validator("seeds")
    @classmethod
    def _no_seed_stands_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"a seed stands twice: {list(value)}")
        return value

    @model_validator(mode="after")
    def _tuning_is_equal(self) -> Self:
        counts = {name: len(arm.tries) for name, arm in self.arms.items() if not arm.tuned_as}
        for name, arm in self.arms.items():
            if arm.tuned_as and arm.tries:
                raise ValueError(f"arm {name} has tries, and is tuned as {arm.tuned_as}: drop one")
            if arm.tuned_as and not counts.get(arm.tuned_as):
                raise ValueError(
                    f"arm {name} is tuned as {arm.tuned_as}, which is no arm with tries of its own"
                )
            if len(set(arm.tries)) < len(arm.tries):
                raise ValueError(f"a try of arm {name} stands twice")
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"every arm needs as many tries, or `tuned_as`; there are: {told}")
        if any(counts.values()) and self.tuning is None:
            raise ValueError("arms have tries, but `tuning` does not say how the best is chosen")
        if self.tuning is not None and self.tuning.seed in self.seeds:
            raise ValueError(f"tuning.seed {self.tuning.seed} is one of the study's own seeds")
        return self

    @model_validator(mode="after")
    def _against_is_an_arm(self) -> Self:
        if self.against is not None and self.against not in self.arms:
            raise ValueError(f"against: {self.against} is no arm; there are {', '.join(self.arms)}")
        return self

    def quickly(self) -> "Study":
        """One small run of every arm, with the first of its tries."""
        arms = {
            name: arm.model_copy(
                update={
                    "settings": (*arm.settings, *self._first_try(arm), *self.quick, *arm.quick),
                    "tries": (),
                    "tuned_as": None,
                    "runs": None,
                }
            )
            for name, arm in self.arms.items()
        }
        changed = {"seeds": self.seeds[:1], "arms": arms, "tuning": None, "budget": None}
        if self.diagnosis is not None:
            changed["diagnosis"] = self.diagnosis.model_copy(update={"prompts": 2, "draws": 8})
        return self.model_copy(update=changed)

    def _first_try(self, arm: Arm) -> tuple[str, ...]:
        tries = (self.arms[arm.tuned_as] if arm.tuned_as else arm).tries
        return tries[0] if tries else ()


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        arguments: a preset and its overrides, as `deploy.launch` takes them.
    """

    arm: str
    config: RunConfig
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.config.run_folder(os.environ)

    @property
    def told(self) -> dict[str, Any] | None:
        """What it came to when it ended last; None: it has not."""
        try:
            return json.loads((self.folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def summary(self) -> dict[str, Any] | None:
        """What it came to; None as long as it is not finished."""
        told = self.told
        return told if told is not None and told.get("status") == "finished" else None

    def command(self, *, in_cluster: bool) -> list[str]:
        """What runs it, or goes on with it."""
        resume = ["--resume"] if has_begun(self.config, os.environ) else []
        if in_cluster:
            return [sys.executable, "-m", "deploy.launch", *resume, *self.arguments]
        flags = ["--run", self.config.name, *resume]
        return [sys.executable, "-m", "deploy.local", *flags, "--", *self.arguments]

    def changed_settings(self) -> list[str]:
        """Settings in which a run that lies in its folder differs, as `a.b: 1, not 2`.

        Raises:
            ValueError: that run's config cannot be read.
        """
        if not has_begun(self.config, os.environ):
            return []
        try:
            text = (self.folder / CONFIG_FILE).read_text(encoding="utf-8")
            there = config_from_json(text).model_dump(mode="json")
        except (OSError, ValueError, ConfigError) as error:
            raise ValueError(f"the config of the run in {self.folder}: {error}") from None
        return list(differences(there, self.config.model_dump(mode="json")))


def load_study(path: Path) -> Study:
    """A study's file.

    Raises:
        ValueError: unreadable, or not a study.
    """
    try:
        return Study.model_validate(read_preset(path))
    except YamlError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        raise ConfigError(problems_of(error.errors(), Study), str(path)) from None


def tries_of(study: Study, name: str) -> dict[str, list[Cell]]:
    """The runs that an arm's best try is chosen from, by arm.

    Raises:
        ValueError: as `cells_of`; or the tries of one plan more queries than those of another.
    """
    if study.tuning is None:
        return {}
    tuning, wrong = study.tuning, {}
    found: dict[str, list[Cell]] = {}
    for arm, changed in study.arms.items():
        for number, tried in enumerate(changed.tries):
            run = f"{name}-{arm}-try{number}"
            values = (*tried, *tuning.settings)
            _add(found.setdefault(arm, []), wrong, study, arm, values, tuning.seed, run)
    _refuse(wrong)
    _refuse_unequal([cell for cells in found.values() for cell in cells], study.budget)
    return found


def cells_of(
    study: Study, name: str, chosen: Mapping[str, Sequence[str]] | None = None
) -> list[Cell]:
    """A study's runs, all arms of a seed before the next seed.

    Args:
        chosen: the best try of every arm that has some, and an arm without it is left out; None:
            the first.

    Raises:
        ValueError: a run's config is wrong, or not within the budget; names every such arm.
    """
    cells: list[Cell] = []
    wrong: dict[str, str] = {}
    for seed in study.seeds:
        for arm, changed in study.arms.items():
            tuned = changed.tuned_as or arm
            tries = study.arms[tuned].tries
            if tries and chosen is not None and tuned not in chosen:
                continue
            values = (tries[0] if chosen is None else chosen[tuned]) if tries else ()
            run = f"{changed.runs or f'{name}-{arm}'}-seed{seed}"
            _add(cells, wrong, study, arm, values, seed, run)
    if study.budget is not None:
        for cell in cells:
            if problem := _off_budget(cell.config, study.budget):
                wrong.setdefault(cell.arm, problem)
    _refuse(wrong)
    names = [cell.config.name for cell in cells]
    if twice := {run for run in names if names.count(run) > 1}:
        raise ValueError(f"two arms have the same runs: {', '.join(sorted(twice))}")
    return cells


def _add(
    cells: list[Cell],
    wrong: dict[str, str],
    study: Study,
    arm: str,
    values: Sequence[str],
    seed: int,
    run: str,
) -> None:
    changed = study.arms[arm]
    preset = changed.config or study.config
    own = (*study.settings, *changed.settings, *values, f"seed={seed}", f"name={json.dumps(run)}")
    try:
        cells.append(Cell(arm, load_config(preset, own), (preset, *own)))
    except ConfigError as error:
        wrong[arm] = str(error)


def _refuse(wrong: Mapping[str, str]) -> None:
    if wrong:
        raise ValueError("\n".join(f"arm {arm}: {text}" for arm, text in wrong.items()))


def _refuse_unequal(tries: Sequence[Cell], budget: Budget | None) -> None:
    """Raises ValueError if one try plans clearly fewer queries than another, or more than a run of
    the study may."""
    planned = {cell.config.name: cell.config.planned_queries for cell in tries}
    least, most = min(planned.values(), default=0), max(planned.values(), default=0)
    slack = Budget.model_fields["slack"].default if budget is None else budget.slack
    if least < most * (1 - slack):
        told = ", ".join(f"{name} {count:,}" for name, count in planned.items())
        raise ValueError(
            f"tries need as many reward queries, within {slack:.0%}; they plan: {told}"
        )
    if budget is not None and most > budget.reward_queries:
        raise ValueError(
            f"a try plans {most:,} reward queries, where the study's budget of a run is "
            f"{budget.reward_queries:,}: change `tuning.settings`"
        )


def _off_budget(config: RunConfig, budget: Budget) -> str | None:
    planned, allowed = config.planned_queries, budget.reward_queries
    if allowed * (1 - budget.slack) <= planned <= allowed:
        return None
    return (
        f"plans {planned:,} reward queries, where the study's budget is {allowed:,} less at most "
        f"{budget.slack:.0%}: change its cycles or groups"
    )
