"""The run config: what loads, what is refused, and how the refusal reads."""

import copy
import pickle  # noqa: TID251 - Ray carries exceptions this way
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.settings.problems import ConfigError
from deploy.settings.prompts import FilePrompts
from deploy.settings.run_config import RunConfig, config_from_json, load_config
from learner.settings.lasro import Lasro
from learner.settings.sqdf import Sqdf
from tests.unit.config_problems import SMOKE, problem, problems

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"lasro", "sqdf", "draft", "pso", "gors", "dpo"}
PRESETS = sorted((ROOT / "deploy" / "configs").glob("*.yaml"))


def _file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_every_shipped_preset_loads(preset: Path) -> None:
    kinds = {"ddpo": "ppo", "ppo": "ppo", "rlcm": "ppo", "refl": "draft", "seiko": "draft"}
    named = next((part for part in preset.stem.split("-") if part in {*kinds, *METHODS}), "lasro")
    assert load_config(preset).method.kind == kinds.get(named, named)


@pytest.mark.parametrize(
    ("preset", "rank", "guidance", "discount", "alpha", "rate", "batch", "steps", "queries"),
    [
        ("aesthetic", 4, 5.0, 0.9, 2.0, 1e-3, 64, 2000, 2001 * 64),
        ("hps", 32, 5.0, 0.93, 0.05, 5e-4, 256, 500, 501 * 256),
        ("blackbox", 4, 7.5, 0.9, 1.0, 1e-3, 64, 160, 15_360 + 4),
    ],
)
def test_the_papers_presets_have_the_papers_settings(
    preset: str,
    rank: int,
    guidance: float,
    discount: float,
    alpha: float,
    rate: float,
    batch: int,
    steps: int,
    queries: int,
) -> None:
    config = load_config(SMOKE.with_name(f"sd15-sqdf-{preset}.yaml"))
    model, method = config.model, config.method
    assert isinstance(method, Sqdf)
    assert (model.lora_rank, model.lora_alpha, model.guidance_scale) == (rank, rank, guidance)
    assert (method.discount, method.alpha, method.learning_rate) == (discount, alpha, rate)
    assert (method.policy_batch, method.cycles * method.policy_steps) == (batch, steps)
    assert (method.kl_reduce, method.kl_std) == ("sqdf", "posterior")
    trajectories = method.round_ends[-1] * config.actors.group_size
    assert trajectories * config.queries_per_record == queries


def test_the_papers_rounds_of_queries_double_and_spend_the_budget() -> None:
    config = load_config(SMOKE.with_name("sd15-sqdf-blackbox.yaml"))
    asked = [size * config.actors.group_size for size in config.method.round_sizes[:-1]]
    assert asked == [1024, 2048, 4096, 8192]
    assert sum(asked) == 15_360
    # A limit of so many would leave the last round out where one record is tried again.
    assert config.limits.reward_queries is None


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_resolved_config_reloads_exactly(preset: Path) -> None:
    config = load_config(preset)
    assert config_from_json(config.to_json()) == config


def test_loading_a_config_imports_neither_torch_nor_ray() -> None:
    script = (
        "import sys; from deploy.settings.run_config import load_config; "
        f"load_config({str(SMOKE)!r}); "
        "sys.exit(bool({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def test_an_override_replaces_one_value_and_leaves_its_neighbours() -> None:
    config = load_config(SMOKE, ["method.surrogate.heads=7"])
    assert isinstance(config.method, Lasro)
    assert (config.method.surrogate.heads, config.method.surrogate.backbone) == (7, "conv")


def test_an_override_reaches_into_a_named_reward() -> None:
    assert load_config(SMOKE, ["rewards.binding.weight=0.25"]).rewards["binding"].weight == 0.25


def test_an_exponent_without_a_point_is_a_number() -> None:
    assert load_config(SMOKE, ["method.learning_rate=1e-4"]).method.learning_rate == 1e-4


def test_an_exponent_in_free_arguments_is_a_number() -> None:
    config = load_config(SMOKE, ["rewards.binding.args.scale=1e-4"])
    assert config.rewards["binding"].args["scale"] == 1e-4


def test_a_number_and_a_date_are_names_too() -> None:
    names = [load_config(SMOKE, [f"name={name}"]).name for name in ("7", "2026-11-22")]
    assert names == ["7", "2026-11-22"]


def test_a_name_that_is_no_folder_name_is_refused() -> None:
    assert problem("name=../elsewhere").startswith("name: must be at most 64 letters")


def test_a_misspelt_key_is_named_with_its_likely_meaning() -> None:
    assert problem("actors.cuont=2") == (
        "actors.cuont: there is no such setting; did you mean actors.count?"
    )


def test_a_key_in_the_wrong_section_is_told_its_right_one() -> None:
    assert problem("learner.policy_batch=4").endswith("did you mean method.policy_batch?")


def test_a_misspelt_key_inside_a_union_has_the_path_that_a_user_writes() -> None:
    assert problem("prompts.cuont=2").startswith("prompts.cuont: ")


def test_a_wrong_type_says_what_was_given_and_what_is_allowed() -> None:
    text = problem("actors.count=many")
    assert text.startswith("actors.count: must be a valid integer")
    assert text.endswith("given 'many'")


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    text = problem("method.surrogate.backbone=unet_encodr")
    assert text.endswith("given 'unet_encodr'; did you mean unet_encoder?")


def test_of_a_choice_between_a_number_and_a_list_one_error_is_told() -> None:
    assert "must be a valid integer" in problem("method.groups_per_cycle=many")


def test_several_errors_are_reported_at_once() -> None:
    paths = [
        text.split(":")[0] for text in problems("actors.cuont=2", "seed=-1", "learner.ranks=x")
    ]
    assert sorted(paths) == ["actors.cuont", "learner.ranks", "seed"]


def test_an_unreadable_override_is_reported_beside_the_others() -> None:
    assert len(problems("seed", "actors.count=0")) == 2


def test_an_override_through_a_value_is_refused() -> None:
    assert "seed is a value, not a section" in problem("seed=1", "seed.more=2")


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    text = SMOKE.read_text(encoding="utf-8").replace(
        "rewards:\n  binding:", "rewardz:\n  binding:", 1
    )
    with pytest.raises(ConfigError) as caught:
        load_config(_file(tmp_path, text))
    assert "rewards: is missing and has no default" in str(caught.value)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, SMOKE.read_text(encoding="utf-8") + "\nprompts: {file: a.txt}\n")
    with pytest.raises(ConfigError, match="'prompts' stands twice"):
        load_config(path)


def test_broken_yaml_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2: not valid YAML"):
        load_config(_file(tmp_path, "seed: 1\nmodel: }\n"))


def test_a_missing_file_lists_the_presets_beside_it() -> None:
    with pytest.raises(ConfigError, match=r"no such file; .*smoke\.yaml"):
        load_config(SMOKE.with_name("smok.yaml"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds nothing"):
        load_config(_file(tmp_path, ""))


def test_a_prompt_file_may_be_named_without_its_kind() -> None:
    config = load_config(SMOKE, ["prompts={file: mine.txt}"])
    assert config.prompts == FilePrompts(kind="file", file="mine.txt")


def test_an_unknown_prompt_source_is_told_the_known_ones() -> None:
    text = problem("prompts={kind: shape}")
    assert text == "prompts.kind: must be 'file' or 'shapes' or 'jsonl' or 'dataset', given 'shape'"


def test_a_redis_url_with_a_password_is_refused_and_not_repeated() -> None:
    text = problem("replay.redis='redis://user:hunter2@host:6379/0'")
    assert "REDIS_URL" in text
    assert "hunter2" not in text


def test_a_password_in_any_of_several_redis_urls_is_refused_and_not_repeated() -> None:
    text = problem("replay.redis='redis://a:6379/0 redis://user:hunter2@b:6379/0'")
    assert "holds a password" in text
    assert "hunter2" not in text


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(SMOKE).seed = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_config_error_survives_a_copy_between_processes() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SMOKE, ["seed=-1"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_an_override_does_not_leak_through_a_yaml_alias(tmp_path: Path) -> None:
    text = SMOKE.read_text(encoding="utf-8")
    text = text.replace(
        "prompts: {kind: shapes, count: 32}", "prompts: &p {kind: shapes, count: 32}"
    )
    text = text.replace("prompts: {kind: shapes, count: 8, held_out: true}", "prompts: *p")
    config = load_config(_file(tmp_path, text), ["evaluation.prompts.held_out=true"])
    assert config.prompts.model_dump()["held_out"] is False


def test_loading_twice_gives_equal_configs() -> None:
    first = load_config(SMOKE, ["name=a"])
    assert load_config(SMOKE, ["name=a"]) == copy.deepcopy(first)


def test_every_setting_is_documented() -> None:
    from deploy.settings.problems import nested_models

    def undocumented(model: type, prefix: str = "") -> list[str]:
        missing: list[str] = []
        for name, field in model.model_fields.items():  # pyright: ignore[reportAttributeAccessIssue]
            missing += [] if field.description else [f"{prefix}{name}"]
            for nested in nested_models(field.annotation):
                missing += undocumented(nested, f"{prefix}{name}.")
        return missing

    assert undocumented(RunConfig) == []
