"""What is said of models before anything starts."""

from pathlib import Path

import pytest

from deploy.run.model_checks import model_problems
from deploy.settings.problems import ConfigError
from deploy.settings.prompt_sources import prompt_list
from deploy.settings.run_config import load_config
from deploy.shapes.models import PIPELINES

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
SMOKE = CONFIGS / "smoke.yaml"
HERE = (f"model.path={PIPELINES}/lcm", f"model.teacher={PIPELINES}/base", "name=n")


def _problems(*overrides: str) -> list[str]:
    return list(model_problems(load_config(SMOKE, [*HERE, *overrides])))


def _refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(SMOKE, [*HERE, *overrides])
    return str(caught.value)


def test_a_model_that_is_here_has_no_problem() -> None:
    assert _problems() == []


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_part_may_be_a_folder_of_its_own_or_a_pipelines_or_on_the_hub(part: str) -> None:
    for path in (PIPELINES / "base" / part, PIPELINES / "base", "some-owner/some-model"):
        assert _problems(f"model.{part}={path}") == []


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_folder_without_the_part_is_named(part: str, tmp_path: Path) -> None:
    (text,) = _problems(f"model.{part}={tmp_path}")
    assert text.startswith(f"model.{part}: the folder {tmp_path} holds no {part}")


def test_an_lcm_lora_without_weights_is_named(tmp_path: Path) -> None:
    (text,) = _problems(f"model.lcm_lora={tmp_path}")
    assert text.startswith(f"model.lcm_lora: the folder {tmp_path} holds no LoRA")
    assert _problems("model.lcm_lora=latent-consistency/lcm-lora-sdxl") == []


def test_a_side_is_whole_latents() -> None:
    (text,) = _problems("model.height=34", "model.width=64")
    assert text.startswith("model.height: must be a multiple of 4")
    assert text.endswith("given 34")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (text,) = _problems("model.compile=true")
    assert text.startswith("model.compile: there is no no-such-compiler here")


def test_all_texts_of_encoders_that_retire_must_be_kept() -> None:
    small = ("model.text_encoders=retire", "model.text_cache_mb=0.01")
    first, second = _problems(*small)
    assert first.startswith("model.text_cache_mb: must be at least")
    assert "of prompts with" in first
    assert "of evaluation.prompts with" in second
    assert _problems("model.text_encoders=retire", "model.text_cache_mb=512") == []


def test_held_out_texts_are_counted_as_the_evaluator_draws_them() -> None:
    small = ["model.text_encoders=retire", "model.text_cache_mb=0.01"]
    held_out = "evaluation.prompts={kind: shapes, count: 400, held_out: true}"
    drawn = [held_out, "evaluation.seed=7", "seed=3"]
    _, told = _problems(*small, *drawn)
    config = load_config(SMOKE, [*HERE, *drawn])
    of_3, of_7 = (len({"", *prompt_list(config.evaluation.prompts, seed)}) for seed in (3, 7))
    assert of_3 != of_7
    assert f"for the {of_7} different texts of evaluation.prompts" in told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.height=64"], "height is 64 and width is None; give both or neither"),
        (["model.sampler=ancestral", "model.lcm_lora=a/b"], "leave one out"),
        (["learner.offload=cpu"], "learner.zero_stage is 0: set it to 1 or 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], told: str) -> None:
    assert told in _refusal(*overrides)


@pytest.mark.parametrize("setting", ["model.lcm_lora=a/b", "model.sampler=ancestral"])
def test_what_is_for_few_steps_is_refused_of_many(setting: str) -> None:
    with pytest.raises(ConfigError, match="num_steps is 50"):
        load_config(SMOKE.with_name("smoke-sqdf.yaml"), [setting, "name=n"])


@pytest.mark.parametrize(
    "preset",
    ["ssd1b-lasro-pickscore", "turbo-lasro-pickscore", "sd15-lcm-lasro-aesthetic"],
)
def test_presets_of_two_step_models_compare_the_best_of_six_with_the_worst(preset: str) -> None:
    config = load_config(CONFIGS / f"{preset}.yaml", ["name=n"])
    assert (config.model.num_steps, config.actors.group_size) == (2, 6)
    assert config.alternation is not None
    assert config.alternation.surrogate.loss == "best_worst"
    assert 1 <= config.method.policy_steps <= 10
    assert 1 <= config.alternation.surrogate_steps <= 50
