"""The README is true: settings that it names are there, its examples run."""

import re
from pathlib import Path

import numpy as np
import pytest

from deploy.settings.run_config import load_config
from deploy.settings.table import schema_table
from reward_servers.base import checked_scores
from reward_servers.registry import build_reward, check_reward

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(language: str, heading: str) -> str:
    """The first block of a language below a heading."""
    below = TEXT.partition(f"## {heading}\n")[2]
    found = re.search(rf"```{language}\n(.*?)```", below, flags=re.DOTALL)
    assert found, f"no {language} block below {heading}"
    return found.group(1)


def test_every_setting_in_the_text_exists() -> None:
    sections = "actors|evaluation|learner|limits|method|model|replay|scoring"
    named = set(re.findall(rf"`((?:{sections})\.\w+)`", TEXT.partition("## Layout")[0]))
    table = schema_table()
    assert {name for name in named if f"`{name}" not in table} == set()


def test_the_reward_of_the_text_scores_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text(_block("python", "A reward of your own"))
    monkeypatch.syspath_prepend(tmp_path)
    check_reward("my_rewards:Darkness", {"strength": 2})
    images = np.stack([np.full((4, 4, 3), level, dtype=np.uint8) for level in (0, 255)])
    reward = build_reward("my_rewards:Darkness", {"strength": 2})
    assert checked_scores(reward, images, ["", ""]) == [2.0, 0.0]


def test_the_override_of_the_text_is_understood() -> None:
    override = re.search(r"'(rewards=\{dark.*)'", TEXT)
    assert override
    config = load_config(ROOT / "deploy/configs/shapes-lasro.yaml", [override.group(1)])
    assert config.rewards["dark"].args == {"strength": 2}


def test_the_smallest_config_of_the_text_loads(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(_block("yaml", "A model and prompts of your own"))
    assert load_config(path).model.num_steps == 2
