"""The run config: what loads, what is refused, and how the refusal reads."""

import copy
import pickle  # noqa: TID251 - Ray carries exceptions this way
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.settings.problems import ConfigError
from deploy.settings.run_config import RunConfig, config_from_json, load_config
from learner.settings.lasro import Lasro
from learner.settings.sqdf import Sqdf

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"lasro", "sqdf", "draft", "pso", "gors", "dpo"}
PRESETS = sorted((ROOT / "deploy" / "configs").glob("*.yaml"))
SMOKE = ROOT / "deploy" / "configs" / "smoke.yaml"
SMOKE_SQDF = SMOKE.with_name("smoke-sqdf.yaml")


def _problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(SMOKE, overrides)
    return [str(problem) for problem in caught.value.problems]


def _problem(*overrides: str) -> str:
    problems = _problems(*overrides)
    assert len(problems) == 1, problems
    return problems[0]


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


@pytest.mark.parametrize(
    ("overrides", "cycles"),
    [
        ([], 1),
        (["replay.max_staleness=0"], 0),
        (["replay.max_staleness=3"], 3),
        (["pace=lockstep", "actors.groups_per_batch=1"], 0),
    ],
)
def test_samplers_run_a_cycle_ahead_unless_in_lockstep_or_told_otherwise(
    overrides: list[str], cycles: int
) -> None:
    assert load_config(SMOKE, overrides).max_staleness == cycles


def test_a_number_and_a_date_are_names_too() -> None:
    names = [load_config(SMOKE, [f"name={name}"]).name for name in ("7", "2026-11-22")]
    assert names == ["7", "2026-11-22"]


def test_a_name_that_is_no_folder_name_is_refused() -> None:
    assert _problem("name=../elsewhere").startswith("name: must be at most 64 letters")


def test_a_misspelt_key_is_named_with_its_likely_meaning() -> None:
    assert _problem("actors.cuont=2") == (
        "actors.cuont: there is no such setting; did you mean actors.count?"
    )


def test_a_key_in_the_wrong_section_is_told_its_right_one() -> None:
    assert _problem("learner.policy_batch=4").endswith("did you mean method.policy_batch?")


def test_a_misspelt_key_inside_a_union_has_the_path_that_a_user_writes() -> None:
    assert _problem("prompts.cuont=2").startswith("prompts.cuont: ")


def test_a_wrong_type_says_what_was_given_and_what_is_allowed() -> None:
    text = _problem("actors.count=many")
    assert text.startswith("actors.count: must be a valid integer")
    assert text.endswith("given 'many'")


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    text = _problem("method.surrogate.backbone=unet_encodr")
    assert text.endswith("given 'unet_encodr'; did you mean unet_encoder?")


def test_of_a_choice_between_a_number_and_a_list_one_error_is_told() -> None:
    assert "must be a valid integer" in _problem("method.groups_per_cycle=many")


def test_rounds_that_differ_follow_each_other_without_a_gap() -> None:
    method = load_config(SMOKE, ["method.cycles=3", "method.groups_per_cycle=[2, 4, 8]"]).method
    after = [range(8, 10), range(10, 14), range(14, 22)]
    assert [method.tickets_after(cycle) for cycle in range(3)] == after
    assert [method.tickets_before(cycle) for cycle in range(3)] == [range(8), *after[:2]]


def test_several_errors_are_reported_at_once() -> None:
    paths = [
        text.split(":")[0] for text in _problems("actors.cuont=2", "seed=-1", "learner.ranks=x")
    ]
    assert sorted(paths) == ["actors.cuont", "learner.ranks", "seed"]


def test_an_unreadable_override_is_reported_beside_the_others() -> None:
    assert len(_problems("seed", "actors.count=0")) == 2


def test_an_override_through_a_value_is_refused() -> None:
    assert "seed is a value, not a section" in _problem("seed=1", "seed.more=2")


def test_several_cross_problems_are_reported_at_once() -> None:
    problems = _problems("replay.capacity_groups=2", "actors.group_size=1")
    assert len(problems) > 2


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
    assert config.prompts.model_dump() == {"kind": "file", "file": "mine.txt"}


def test_an_unknown_prompt_source_is_told_the_known_ones() -> None:
    text = _problem("prompts={kind: shape}")
    assert text == "prompts.kind: must be 'file' or 'shapes' or 'jsonl' or 'dataset', given 'shape'"


def test_a_redis_url_with_a_password_is_refused_and_not_repeated() -> None:
    text = _problem("replay.redis='redis://user:hunter2@host:6379/0'")
    assert "REDIS_URL" in text
    assert "hunter2" not in text


def test_a_password_in_any_of_several_redis_urls_is_refused_and_not_repeated() -> None:
    text = _problem("replay.redis='redis://a:6379/0 redis://user:hunter2@b:6379/0'")
    assert "holds a password" in text
    assert "hunter2" not in text


def test_several_redis_urls_are_given_with_spaces_between_them() -> None:
    config = load_config(SMOKE, ["replay.redis='redis://a:6379/0 rediss://b:6379/1'"])
    assert config.redis_url({}) == "redis://a:6379/0 rediss://b:6379/1"


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


@pytest.mark.parametrize(
    ("overrides", "path", "reason"),
    [
        (["model.num_steps=50"], "model.num_steps", "1, 2, 3, 4 or 8 steps"),
        (["actors.group_size=1"], "actors.group_size", "wait for pairs without end"),
        (
            ["actors.fixed_initial_noise=true", "model.num_steps=1"],
            "actors.fixed_initial_noise",
            "every pair ties",
        ),
        (["method.step_weights=[1]"], "method.step_weights", "must hold 2 weights"),
        (["method.groups_per_cycle=[4]"], "method", "one for each of the 2 cycles, given 1"),
        (
            ["method.groups_per_cycle=[4, 40]"],
            "replay.capacity_groups",
            "method.groups_per_cycle = 40",
        ),
        (["model.teacher=null"], "model.teacher", "anchor distils from it"),
        (["rewards.binding.weight=0"], "rewards", "nothing to train on"),
        (["replay.max_pending_records=5"], "replay.max_pending_records", "room without end"),
        (["replay.capacity_groups=7"], "replay.capacity_groups", "method.pretrain.groups = 8"),
        (["method.pretrain.groups=4"], "method.pretrain.groups", "fewer than one batch"),
        (["learner.ranks=2", "method.policy_batch=3"], "method.policy_batch", "divisible"),
        (["learner.ranks=2", "learner.num_gpus=0.5"], "learner.num_gpus", "0 or at least 1"),
        (["actors.auto=[4, 2]"], "actors.auto", "with actors.count = 1 between them"),
        (["scoring.auto=[2, 4]"], "scoring.auto", "with scoring.servers = 1 between them"),
        (["actors.lease_s=600"], "limits.stall_s", "dead actor"),
        (["scoring.timeout_s=600"], "limits.stall_s", "a reward that stalls"),
        (["scoring.outage_s=600"], "limits.stall_s", "a reward that is down"),
        (["replay.outage_s=900"], "limits.stall_s", "a Redis that is down"),
        (["pace=lockstep"], "actors.groups_per_batch", "last bits"),
        (
            ["pace=lockstep", "actors.groups_per_batch=1", "replay.max_staleness=1"],
            "replay.max_staleness",
            "depend on its speed",
        ),
        (["evaluation.prompts.held_out=false"], "evaluation.prompts", "the training prompts"),
        (["seed=1234"], "evaluation.seed", "measured on noise that it is trained on"),
        (["seed=8", "evaluation.seed=7"], "evaluation.seed", "two seeds that are further apart"),
        (["evaluation.samples=1"], "evaluation.samples", "diversity.prompts = 2"),
        (
            ["method.surrogate.heads=1"],
            "method.surrogate",
            "needs the spread of at least 2 heads",
        ),
        (["method.anchor.weight=1"], "method.anchor", "either ratio or weight"),
    ],
)
def test_an_impossible_combination_is_refused_with_its_reason(
    overrides: list[str], path: str, reason: str
) -> None:
    text = _problem(*overrides)
    assert text.startswith(f"{path}: ")
    assert reason in text


def test_without_an_anchor_no_teacher_is_needed() -> None:
    config = load_config(SMOKE, ["model.teacher=null", "method.anchor={data: none}"])
    assert config.model.teacher is None


def test_rewarded_steps_follow_the_sampler() -> None:
    config = load_config(SMOKE, ["model.num_steps=4"])
    assert config.rewarded_steps == 4
    assert config.step_labels == ("1step", "2step", "3step", "4step")


def test_a_chain_of_many_steps_is_rewarded_at_its_end() -> None:
    config = load_config(SMOKE_SQDF)
    assert (config.rewarded_steps, config.step_labels) == (1, ("50step",))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.num_steps=2", "model.num_steps: sqdf trains models of 50 steps, given 2"),
        ("method.states.kept=51", "method.states.kept: must be at most model.num_steps = 50"),
        ("method.micro_batches=3", "method.micro_batches: must divide a rank's rows"),
        ("limits.reward_queries=35", "limits.reward_queries: must be at least 36"),
        ("method.reward=decoded", "method: surrogate, surrogate_steps, pretrain.max_steps"),
        ("method.clean.by=tweedie", "method.clean: `by: consistency` needs `lora`"),
        ("method.clean.lora=null", "method.clean: `by: consistency` needs `lora`"),
        ("method.discount=1.1", "method.discount: must be less than or equal to 1"),
        ("method.anchor.ratio=1", "method.anchor: "),
    ],
)
def test_what_sqdf_cannot_do_is_told(override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(SMOKE_SQDF, [override])
    assert problem in str(raised.value)


def test_a_cycle_that_draws_more_than_is_allowed_is_refused_with_its_ratio() -> None:
    # 2 steps of 4 groups for 4 fresh ones.
    assert load_config(SMOKE, ["replay.max_samples_per_insert=2"]).samples_per_insert == 2
    text = _problem("replay.max_samples_per_insert=1.5")
    assert text.startswith("replay.max_samples_per_insert: is 1.5, but the steps of a cycle draw 2")


def test_replayed_states_count_as_draws() -> None:
    # 2 steps of 4 groups of 3, and 2 steps of 4 states, for 4 groups of 3.
    assert load_config(SMOKE_SQDF).samples_per_insert == pytest.approx((24 + 8) / 12)


def test_more_samplers_than_a_round_has_batches_for_are_of_no_use() -> None:
    values = ["method.groups_per_cycle=24", "actors.groups_per_batch=4"]
    ahead = [*values, "replay.max_staleness=1"]
    turns = [*values, "replay.max_staleness=0"]
    assert load_config(SMOKE, turns).useful_samplers == 6
    assert load_config(SMOKE, ahead).useful_samplers == 12


def test_only_the_last_step_can_carry_the_reward() -> None:
    assert load_config(SMOKE, ["method.reward_steps=last"]).rewarded_steps == 1


def test_the_environment_says_where_a_job_writes() -> None:
    config = load_config(SMOKE, ["name=a"])
    assert config.run_folder({"FLEETUNE_RUNS": "/elsewhere"}) == Path("/elsewhere/a")


@pytest.mark.parametrize(
    ("setting", "environ", "url"),
    [
        ("auto", {}, None),
        ("auto", {"REDIS_URL": "redis://h"}, "redis://h"),
        ("embedded", {"REDIS_URL": "redis://h"}, None),
        ("redis://mine", {"REDIS_URL": "redis://h"}, "redis://mine"),
    ],
)
def test_the_redis_setting_chooses_the_server(
    setting: str, environ: dict[str, str], url: str | None
) -> None:
    assert load_config(SMOKE, [f"replay.redis={setting}"]).redis_url(environ) == url


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


def test_clean_latents_are_scored_only_where_something_tells_them_and_learns_from_them() -> None:
    scored = "method.states.score_clean=true"
    assert load_config(SMOKE_SQDF, [scored]).rewarded_steps == 5
    with pytest.raises(ConfigError, match=r"method\.states\.score_clean: needs method\.clean\.by"):
        load_config(SMOKE_SQDF, [scored, "method.clean={by: tweedie}"])


def test_a_budget_is_counted_in_scores_and_holds_whole_trajectories() -> None:
    config = load_config(
        SMOKE_SQDF, ["limits.reward_queries=504", "method.states.score_clean=true"]
    )
    # Each trajectory has its end and four told latents scored.
    assert (config.queries_per_record, config.max_records) == (5, 100)


def test_the_best_version_is_by_a_score_that_is_measured() -> None:
    told = _problem("evaluation.every_cycles=1", "evaluation.best_by=exact")
    assert told.startswith("evaluation.best_by: must be a score that an evaluation measures, ")
    assert "exact_2step" in told


def test_the_best_version_needs_evaluations_to_choose_from() -> None:
    assert "evaluation.every_cycles: is missing" in _problem("evaluation.best_by=exact_2step")


def test_a_rule_that_ends_a_run_needs_a_score_to_keep_the_best_by() -> None:
    told = _problem("evaluation.stop={kind: held_out_falls}", "evaluation.every_cycles=1")
    assert told.startswith("evaluation.best_by: is missing")


def test_a_one_step_policy_has_no_kl_to_be_stopped_by() -> None:
    told = _problem(
        "model.num_steps=1",
        "evaluation.every_cycles=1",
        "evaluation.best_by=exact_1step",
        "evaluation.stop={kind: kl_above, nats: 1}",
    )
    assert told.startswith("evaluation.stop.kind: kl_above needs a step that has a density")


@pytest.mark.parametrize("given", ["{patience: 2}", "{kind: never}"])
def test_a_rule_without_a_known_kind_is_told_the_kinds(given: str) -> None:
    told = _problem(f"evaluation.stop={given}")
    assert "'held_out_falls' or 'kl_above' or 'diversity_below'" in told


def test_rewards_that_are_trained_on_together_are_scores_alone_as_well() -> None:
    both = "rewards={a: {kind: jpeg-size}, b: {kind: shapes-binding}, c: {kind: x:Y, weight: 0}}"
    assert load_config(SMOKE, [both]).measured_scores == tuple(
        f"{name}_{step}step"
        for step in (1, 2)
        for name in ("exact", "reward", "reward_a", "reward_b")
    )
