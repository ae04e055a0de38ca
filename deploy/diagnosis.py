"""A config before any training: what is to be measured of it, what was found, and its table.

`deploy.diagnose` measures it and writes it, a study has it measured and shows it; neither imports
the other.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from deploy.compare import OF_NO_RESULT, half_interval
from deploy.report.data import versions
from deploy.run.whole_files import write_whole
from deploy.settings.run_config import RunConfig
from learner.settings.types import Section

DIAGNOSIS_FILE = "diagnosis.json"


class Diagnosed(Section):
    """How much is measured."""

    steps: tuple[Literal[1, 2, 4, 8], ...] = Field(default=(1, 2, 4, 8), min_length=1)
    """Numbers of sampling steps."""
    prompts: Annotated[int, Field(ge=2)] = 16
    """Held-out prompts."""
    draws: Annotated[int, Field(ge=2)] = 128
    """Pictures of each."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Pictures at once: a signal is estimated from the batches' means, and so is its noise."""


@dataclass(frozen=True)
class Diagnosis:
    """Of one number of steps; pairs are a mean and half its 95 % interval over the prompts.

    SNRs come with the least and the most that the interval of the signal allows; None: no action.

    Args:
        rho2: squared correlation of the reward with the first action; None: there is no action.
        noise_snr: of that action, as a gradient of what it draws from.
        first_snr, snr: of that and of all actions, as a gradient of the weights.
        dims: D.
        policy_signals: squared lengths of the mean policy gradient by call, without bias.
        policy_shares, pathwise_shares: by call.
        made_up: share of the mean in the squared length of one picture's.
        gains: of each prompt.
        alike: prompts at which all pictures have one reward.
    """

    steps: int
    dims: int
    prompts: int
    draws: int
    rho2: tuple[float, float] | None
    noise_snr: tuple[float, float, float] | None
    first_snr: tuple[float, float, float] | None
    snr: tuple[float, float, float] | None
    policy_signals: list[tuple[float, float]]
    policy_shares: list[float]
    made_up: tuple[float, float] | None
    pathwise_shares: list[float]
    gains: list[float]
    spread: tuple[float, float]
    alike: int


def described(config: RunConfig, asked: Diagnosed) -> dict[str, Any]:
    """What a diagnosis depends on."""
    told = {"config": config.model_dump(mode="json", exclude=OF_NO_RESULT), "versions": versions()}
    return {**told, **asked.model_dump(mode="json")}


def diagnosis_rows(folder: Path, config: RunConfig, asked: Diagnosed) -> list[list[str]]:
    """What `deploy.diagnose` wrote into a study's folder, a head and a row a number of steps; empty
    where that is nothing, or not of this config and as much as asked. Whatever code measured it:
    runs are kept so, too."""
    return _known(folder, config, asked, whatever="versions").get("rows", [])


def write_diagnosis(
    folder: Path, config: RunConfig, asked: Diagnosed, found: Sequence[Diagnosis]
) -> None:
    """What is found so far, as if no more had been asked."""
    so_far = asked.model_copy(update={"steps": tuple(each.steps for each in found)})
    measured = [asdict(each) for each in found]
    told = {"asked": described(config, so_far), "rows": rows_of(found), "measured": measured}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / DIAGNOSIS_FILE, json.dumps(told, indent=1))


def measured_before(folder: Path, config: RunConfig, asked: Diagnosed) -> dict[int, Diagnosis]:
    """By number of steps, what the same code wrote of this config and as much, before it was ended
    or for others of them."""
    known = _known(folder, config, asked, whatever="steps")
    try:
        return {each["steps"]: Diagnosis(**each) for each in known.get("measured", [])}
    except (TypeError, KeyError):
        return {}


def _known(folder: Path, config: RunConfig, asked: Diagnosed, *, whatever: str) -> dict[str, Any]:
    """What is written of all that is asked, but for one thing that may differ; empty without."""
    try:
        known = json.loads((folder / DIAGNOSIS_FILE).read_text(encoding="utf-8"))
        told = {**known["asked"], whatever: None}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return known if told == {**described(config, asked), whatever: None} else {}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half its 95 % interval."""
    return statistics.mean(values), half_interval(values)


def _ratio(own: Sequence[float], fewest: Sequence[float]) -> str:
    """Geometric mean over the prompts, and its 95 % interval."""
    mean, half = interval([math.log(a / b) for a, b in zip(own, fewest, strict=True)])
    return _between([math.exp(each) for each in (mean, mean - half, mean + half)], 2)


def _between(middle_and_ends: Sequence[float] | None, digits: int) -> str:
    if middle_and_ends is None:
        return "none"
    middle, least, most = (f"{each:.{digits}f}" for each in middle_and_ends)
    return f"{middle} ({least} to {most})"


def rows_of(found: Sequence[Diagnosis]) -> list[list[str]]:
    """A head and a row a number of steps."""
    fewest = min(found, key=lambda each: each.steps)
    rows = [
        [
            "steps", "rho", "SNR of noise, first action", "SNR of weights, first action",
            "SNR of weights, all actions", "policy gradient, by call", "made up",
            "pathwise, by call", "gain", f"gain / that of {fewest.steps}", "spread",
        ]
    ]  # fmt: skip
    for each in found:
        rho = None
        if each.rho2 is not None:
            mean, half = each.rho2
            rho = [max(value, 0.0) ** 0.5 for value in (mean, mean - half, mean + half)]
        rows.append(
            [
                str(each.steps),
                _between(rho, 3),
                *(_between(snr, 4) for snr in (each.noise_snr, each.first_snr, each.snr)),
                " ".join(f"{share:.0%}" for share in each.policy_shares) or "none",
                "none" if each.made_up is None else "{:.3%} ± {:.3%}".format(*each.made_up),
                " ".join(f"{share:.0%}" for share in each.pathwise_shares),
                "{:.2f} ± {:.2f}".format(*interval(each.gains)),
                "itself" if each is fewest else _ratio(each.gains, fewest.gains),
                "{:.3f} ± {:.3f}".format(*each.spread),
            ]
        )
    return rows
