"""Configs of policy gradients and of reward gradients: their rounds, and what they cannot do."""

from pathlib import Path
from typing import Any

import pytest

from deploy.settings.problems import ConfigError
from deploy.settings.run_config import load_config
from learner.settings.on_policy import OnPolicy

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
PPO = SMOKE.with_name("shapes-ddpo.yaml")
RLCM = SMOKE.with_name("shapes-rlcm.yaml")
DRAFT = SMOKE.with_name("shapes-draft.yaml")
LV = SMOKE.with_name("shapes-draft-lv.yaml")
GORS = SMOKE.with_name("shapes-gors.yaml")
DECODED = SMOKE.with_name("shapes-sqdf-aesthetic.yaml")


@pytest.mark.parametrize(
    ("preset", "override", "setting"),
    [
        (PPO, "actors.group_size=1", "actors.group_size"),
        (PPO, "replay.max_staleness=1", "replay.max_staleness"),
        (PPO, "replay.capacity_groups=100", "replay.capacity_groups"),
        (PPO, "method.kept_steps=51", "method.kept_steps"),
        (PPO, "method.last_call=true", "method.last_call"),
        (PPO, "method.micro_batches=3", "method.micro_batches"),
        (PPO, "model.precision=bf16", "model.precision"),
        (RLCM, "model.precision=auto", "model.precision"),
        (RLCM, "method.kept_steps=1", "method.kept_steps"),
        (RLCM, "model.num_steps=1", "model.num_steps"),
        (DRAFT, "model.num_steps=2", "model.num_steps"),
        (DRAFT, "method.last_steps=51", "method.last_steps"),
    ],
)
def test_what_a_baseline_cannot_do_is_told_before_it_starts(
    preset: Path, override: str, setting: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(preset, [override])
    assert [str(problem).split(":")[0] for problem in caught.value.problems] == [setting]


def test_a_clip_that_rounding_does_not_reach_may_be_computed_in_bf16() -> None:
    config = load_config(PPO, ["model.precision=bf16", "method.ratio_clip=0.1"])
    assert config.model.precision == "bf16"


@pytest.mark.parametrize(
    ("preset", "override", "named"),
    [
        (DRAFT, "method.renoisings=3", "renoisings: is of `path: renoised`"),
        (LV, "method.last_steps=5", "last_steps: is of `path: last`"),
        (LV, "method.stopped_in=0.5", "stopped_in: is of `path: stopped`"),
        (GORS, "method.threshold=0.5", "kept_share: a threshold says"),
        (DECODED, "method.surrogate_steps=3", "surrogate_steps: no surrogate is learned"),
        (DECODED, "method.pretrain.max_steps=3", "pretrain.max_steps: no surrogate is learned"),
        (DECODED, "method.clean.calls=2", "calls: `by: consistency` takes one call"),
        (DECODED, "method.states.rank_exponent=1", "rank_exponent: is of priorities"),
        (SMOKE, "method.surrogate.ucb_bonus=2", "ucb_bonus: no bonus is given"),
    ],
)
def test_what_would_be_set_in_vain_is_refused(preset: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(preset, [*(["method.kept_share=0.5"] if preset == GORS else []), override])
    (problem,) = caught.value.problems
    assert named in str(problem)


@pytest.mark.parametrize(
    ("preset", "settings", "needed"),
    [
        # Rounds of 16 groups, of which a cycle trains on the newest.
        ("shapes-ddpo", ["learner.checkpoint_every_cycles=7"], 8 * 16),
        ("shapes-gors", ["learner.checkpoint_every_cycles=7"], 8 * 16),
        ("shapes-dpo", ["learner.checkpoint_every_cycles=7"], 8 * 16),
        # Samplers that are ahead evict as well.
        ("shapes-gors", ["learner.checkpoint_every_cycles=7", "replay.max_staleness=2"], 10 * 16),
        # The first round is the one before the first cycle.
        ("shapes-draft", ["method.pretrain.groups=100"], 100 + 10 * 24),
        ("shapes-sqdf", ["learner.checkpoint_every_cycles=1", "method.pretrain.groups=300"], 312),
        ("shapes-lasro", ["method.groups_per_cycle=20", "method.pretrain.groups=90"], 290),
        # Never more than all.
        ("shapes-refl", ["learner.checkpoint_every_cycles=99", "method.pretrain.groups=9"], 489),
    ],
)
def test_a_replay_has_room_for_all_that_is_sampled_between_two_checkpoints(
    preset: str, settings: list[str], needed: int
) -> None:
    path = SMOKE.with_name(f"{preset}.yaml")
    load_config(path, [*settings, f"replay.capacity_groups={needed}"])
    with pytest.raises(ConfigError) as caught:
        load_config(path, [*settings, f"replay.capacity_groups={needed - 1}"])
    (problem,) = caught.value.problems
    assert f"replay.capacity_groups: must be at least {needed}, given {needed - 1}" in str(problem)


def test_the_most_groups_of_rounds_in_a_row_are_looked_for_among_all() -> None:
    method = load_config(GORS, ["method.cycles=5", "method.groups_per_cycle=[4,1,6,3,2]"]).method
    assert [method.most_groups(rounds) for rounds in (1, 2, 3, 9)] == [6, 9, 11, 16]


def test_rounds_that_were_done_cannot_be_of_another_size_whatever_was_given_meanwhile() -> None:
    done = load_config(GORS, ["method.cycles=6", "method.groups_per_cycle=8"]).method.round_ends
    fewer, same, more, odd = (
        load_config(GORS, [f"method.cycles={cycles}", f"method.groups_per_cycle={sizes}"]).method
        for cycles, sizes in ((3, 8), (6, 8), (8, 8), (6, "[8,8,8,8,16,16]"))
    )
    assert [method.odd_round(done) for method in (fewer, same, more)] == [None] * 3
    assert "round 5 of the 6 that this run has sampled had 8 groups, and has 16" in str(
        odd.odd_round(done)
    )


def test_on_policy_rounds_are_those_of_the_cycles_alone() -> None:
    method = load_config(RLCM, ["method.cycles=3", "method.groups_per_cycle=48"]).method
    assert [method.tickets_before(cycle) for cycle in range(3)] == [
        range(48),
        range(48, 96),
        range(96, 144),
    ]
    assert [len(method.tickets_after(cycle)) for cycle in range(3)] == [48, 48, 0]


def test_on_policy_samplers_never_run_ahead() -> None:
    assert load_config(RLCM, ["replay.max_staleness=null"]).max_staleness == 0
    assert load_config(SMOKE).max_staleness == 1


@pytest.mark.parametrize(
    ("variant", "parent", "differs"),
    [
        ("shapes-rlcm-last-call", "shapes-rlcm", {"last_call": True, "policy_batch": 256}),
        ("shapes-draft-k", "shapes-draft", {"last_steps": 5}),
        ("shapes-draft-kl", "shapes-draft", {"alpha": 0.001, "kl_over": "chain"}),
        ("shapes-refl-kl", "shapes-refl", {"alpha": 0.05, "kl_over": "chain"}),
        ("shapes-seiko-ucb", "shapes-seiko", {"surrogate": {"confidence": "ucb", "heads": 1}}),
    ],
)
def test_a_variant_s_preset_differs_from_its_parent_s_in_what_it_is_named_after(
    variant: str, parent: str, differs: dict[str, Any]
) -> None:
    own, other = (
        load_config(SMOKE.with_name(f"{name}.yaml")).method.model_dump(mode="json")
        for name in (variant, parent)
    )
    if "surrogate" in differs:
        differs = {"surrogate": {**other["surrogate"], **differs["surrogate"]}}
    assert own == {**other, **differs}
    assert own != other


@pytest.mark.parametrize("preset", ["shapes-rlcm", "shapes-pso"])
def test_the_last_of_few_steps_has_no_likelihood_and_is_left_out(preset: str) -> None:
    config = load_config(SMOKE.with_name(f"{preset}.yaml"))
    assert isinstance(config.method, OnPolicy)
    assert [config.method.steps_trained(steps) for steps in (2, 4, 8)] == [1, 3, 7]
