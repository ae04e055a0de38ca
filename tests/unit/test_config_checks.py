"""Settings that are right alone and impossible together: each is refused with its reason."""

import pytest

from deploy.settings.problems import ConfigError
from deploy.settings.run_config import load_config
from tests.unit.config_problems import SMOKE, SMOKE_SQDF, problem, problems


def test_several_cross_problems_are_reported_at_once() -> None:
    found = problems("replay.capacity_groups=2", "actors.group_size=1", "seed=1234")
    assert len(found) > 2


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
            "must be at least 52",
        ),
        (["model.teacher=null"], "model.teacher", "anchor distils from it"),
        (["rewards.binding.weight=0"], "rewards", "nothing to train on"),
        (["replay.max_pending_records=5"], "replay.max_pending_records", "room without end"),
        (["replay.capacity_groups=7"], "replay.capacity_groups", "must be at least 16"),
        (["method.pretrain.groups=4"], "method.pretrain.groups", "fewer than one batch"),
        (["learner.ranks=2", "method.policy_batch=3"], "method.policy_batch", "divisible"),
        (["learner.ranks=2", "learner.num_gpus=0.5"], "learner.num_gpus", "0 or at least 1"),
        (["actors.num_gpus=1.5"], "actors.num_gpus", "a part of one GPU, or a whole number"),
        (["actors.auto=[4, 2]"], "actors.auto", "with actors.count = 1 between them"),
        (["scoring.auto=[2, 4]"], "scoring.auto", "with scoring.servers = 1 between them"),
        (["actors.lease_s=300"], "limits.stall_s", "above 2 × actors.lease_s = 600, given 600"),
        (["scoring.lease_s=300"], "limits.stall_s", "dead actor"),
        (["scoring.timeout_s=150"], "limits.stall_s", "a reward that stalls"),
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
    text = problem(*overrides)
    assert text.startswith(f"{path}: ")
    assert reason in text


def test_without_an_anchor_no_teacher_is_needed() -> None:
    config = load_config(SMOKE, ["model.teacher=null", "method.anchor={data: none}"])
    assert config.model.teacher is None


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


def test_a_kl_that_rounding_hides_is_not_steered_by() -> None:
    steered = ["method.target_kl=1", "model.precision=bf16"]
    with pytest.raises(ConfigError, match=r"method\.target_kl: needs model\.precision = fp32"):
        load_config(SMOKE_SQDF, steered)
    assert load_config(SMOKE_SQDF, steered[:1]).model.precision == "fp32"


def test_a_cycle_that_draws_more_than_is_allowed_is_refused_with_its_ratio() -> None:
    # 2 steps of 4 groups for 4 fresh ones.
    assert load_config(SMOKE, ["replay.max_samples_per_insert=2"]).samples_per_insert == 2
    text = problem("replay.max_samples_per_insert=1.5")
    assert text.startswith("replay.max_samples_per_insert: is 1.5, but the steps of a cycle draw 2")


def test_clean_latents_are_scored_only_where_something_tells_them_and_learns_from_them() -> None:
    scored = "method.states.score_clean=true"
    assert load_config(SMOKE_SQDF, [scored]).rewarded_steps == 5
    with pytest.raises(ConfigError, match=r"method\.states\.score_clean: needs method\.clean\.by"):
        load_config(SMOKE_SQDF, [scored, "method.clean={by: tweedie}"])


def test_the_best_version_is_by_a_score_that_is_measured() -> None:
    told = problem("evaluation.every_cycles=1", "evaluation.best_by=exact")
    assert told.startswith("evaluation.best_by: must be a score that an evaluation measures, ")
    assert "exact_2step" in told


def test_the_best_version_needs_evaluations_to_choose_from() -> None:
    assert "evaluation.every_cycles: is missing" in problem("evaluation.best_by=exact_2step")


def test_a_rule_that_ends_a_run_needs_a_score_to_keep_the_best_by() -> None:
    told = problem("evaluation.stop={kind: held_out_falls}", "evaluation.every_cycles=1")
    assert told.startswith("evaluation.best_by: is missing")


def test_a_one_step_policy_has_no_kl_to_be_stopped_by() -> None:
    told = problem(
        "model.num_steps=1",
        "evaluation.every_cycles=1",
        "evaluation.best_by=exact_1step",
        "evaluation.stop={kind: kl_above, nats: 1}",
    )
    assert told.startswith("evaluation.stop.kind: kl_above needs a step that has a density")


@pytest.mark.parametrize("given", ["{patience: 2}", "{kind: never}"])
def test_a_rule_without_a_known_kind_is_told_the_kinds(given: str) -> None:
    told = problem(f"evaluation.stop={given}")
    assert "'held_out_falls' or 'kl_above' or 'diversity_below'" in told
