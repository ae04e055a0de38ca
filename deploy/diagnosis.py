"""What is measured of a config before any training: what is asked for, and what it left.

`deploy.diagnose` measures it and writes it, a study has it measured and shows it; neither imports
the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from deploy.report.data import versions
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


def is_diagnosis_of(known: Mapping[str, Any] | None, config: RunConfig, asked: Diagnosed) -> bool:
    """Whether a diagnosis is what the file asks for, by whatever code: runs are kept so, too."""
    if known is None or not isinstance(known.get("asked"), dict):
        return False
    return {**known["asked"], "versions": None} == {**described(config, asked), "versions": None}


def described(config: RunConfig, asked: Diagnosed) -> dict[str, Any]:
    """What a diagnosis depends on."""
    without = {"name", "callbacks", "logging"}
    told = {"config": config.model_dump(mode="json", exclude=without), "versions": versions()}
    return {**told, **asked.model_dump(mode="json")}


def read_diagnosis(folder: Path) -> dict[str, Any] | None:
    """What `deploy.diagnose` wrote into a study's folder; None: nothing that can be read."""
    try:
        return json.loads((folder / DIAGNOSIS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def diagnosis_rows(folder: Path) -> list[list[str]]:
    """A head and a row a number of steps; empty where nothing was measured."""
    return (read_diagnosis(folder) or {}).get("rows", [])
