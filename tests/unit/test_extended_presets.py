"""Presets that begin with what another holds."""

from pathlib import Path

import pytest

from deploy.settings.problems import ConfigError
from deploy.settings.run_config import load_config
from learner.settings.lasro import Lasro
from learner.settings.on_policy import Ppo

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"


def _file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preset_that_extends_another_changes_what_it_names(tmp_path: Path) -> None:
    path = _file(tmp_path, f"extends: {SMOKE}\nseed: 3\nmethod: {{surrogate: {{heads: 7}}}}\n")
    config, base = load_config(path), load_config(SMOKE)
    assert isinstance(config.method, Lasro)
    assert (config.seed, config.method.surrogate.heads) == (3, 7)
    assert config.method.surrogate.backbone == "conv"
    assert (config.model, config.replay) == (base.model, base.replay)


def test_a_section_of_another_kind_replaces_the_one_it_extends(tmp_path: Path) -> None:
    text = f"extends: {SMOKE}\nmethod: {{kind: ppo, policy_batch: 4}}\nactors: {{count: 2}}\n"
    config = load_config(_file(tmp_path, text), ["replay.capacity_groups=1024"])
    assert isinstance(config.method, Ppo)
    assert (config.method.cycles, config.actors.count, config.actors.group_size) == (20, 2, 3)


def test_a_preset_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("extends: config.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"extends itself, by way of other\.yaml"):
        load_config(_file(tmp_path, "extends: other.yaml\n"))


def test_a_preset_that_extends_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such file"):
        load_config(_file(tmp_path, "extends: nowhere.yaml\n"))
