"""What is wrong with the smoke preset after some overrides."""

from pathlib import Path

import pytest

from deploy.settings.problems import ConfigError
from deploy.settings.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
SMOKE_SQDF = SMOKE.with_name("smoke-sqdf.yaml")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(SMOKE, overrides)
    return [str(problem) for problem in caught.value.problems]


def problem(*overrides: str) -> str:
    found = problems(*overrides)
    assert len(found) == 1, found
    return found[0]
