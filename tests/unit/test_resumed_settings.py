"""Which settings a run that goes on must keep: those that what it has made depends on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.settings.resumed import changed_settings
from deploy.settings.run_config import RunConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
LASRO = ("smoke", "method.surrogate.backbone=unet")
SQDF = ("smoke-sqdf",)
DISCOUNTED = (*SQDF, "method.states.times=discounted")
DECODED = ("shapes-draft",)
REFL = (*DECODED, "method.path=stopped")
CHAIN = (*DECODED, "method.kl_over=chain", "method.alpha=0.1")
DDPO = ("shapes-ddpo",)
RLCM = ("shapes-rlcm",)
GORS = ("shapes-gors",)
GORS_LCM = ("shapes-gors-lcm",)
SHARDED = ("smoke", "learner.zero_stage=1")
BEST = ("smoke", "evaluation.every_cycles=1", "evaluation.best_by=exact_2step")
FILE = "prompts={file: deploy/examples/prompts.txt}"
LPIPS = "evaluation.diversity.distances={lpips: {kind: lpips, args: {backbone: a, heads: b}}}"


def config(start: Sequence[str], *changes: str) -> RunConfig:
    preset, *values = start
    return load_config(CONFIGS / f"{preset}.yaml", ["name=mine", *values, *changes])


def begun(start: Sequence[str], *changes: str) -> dict[str, Any]:
    """What the folder of such a run holds."""
    return json.loads(config(start, *changes).to_json())


def changed(start: Sequence[str], *changes: str, at_first: Sequence[str] = ()) -> list[str]:
    """Paths of what is told of a run that began so and goes on with changes."""
    problems = changed_settings(begun(start, *at_first), config(start, *changes))
    return [problem.path for problem in problems]


@pytest.mark.parametrize("preset", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_a_run_goes_on_with_the_settings_that_it_began_with(preset: str) -> None:
    assert changed((preset,)) == []


@pytest.mark.parametrize(
    ("start", "change", "path"),
    [
        (LASRO, "seed=3", "seed"),
        (LASRO, "model.path=other/pipeline", "model.path"),
        (LASRO, "model.unet=other/unet", "model.unet"),
        (LASRO, "model.vae=other/vae", "model.vae"),
        (LASRO, "model.vae_precision=bf16", "model.vae_precision"),
        (LASRO, "model.lcm_lora=other/lora", "model.lcm_lora"),
        (LASRO, "model.num_steps=4", "model.num_steps"),
        (LASRO, "model.sampler=ancestral", "model.sampler"),
        (LASRO, "model.guidance_scale=5", "model.guidance_scale"),
        (LASRO, "model.teacher=other/pipeline", "model.teacher"),
        (GORS_LCM, "model.teacher=other/pipeline", "model.teacher"),
        (LASRO, "model.trainable=full", "model.trainable"),
        (LASRO, "model.lora_rank=8", "model.lora_rank"),
        (LASRO, "model.lora_alpha=8", "model.lora_alpha"),
        (LASRO, "model.lora_targets=all", "model.lora_targets"),
        (LASRO, "prompts.count=33", "prompts.count"),
        (LASRO, "actors.group_size=4", "actors.group_size"),
        (LASRO, "actors.fixed_initial_noise=true", "actors.fixed_initial_noise"),
        (LASRO, "rewards.bright.kind=brightness", "rewards"),
        (LASRO, "rewards={other: {kind: shapes-binding}}", "rewards"),
        (LASRO, "rewards.binding.kind=shapes-exact", "rewards.binding.kind"),
        (LASRO, "rewards.binding.scale=standard", "rewards.binding.scale"),
        (LASRO, "rewards.binding.weight=2", "rewards.binding.weight"),
        (LASRO, "rewards.binding.noise=0.1", "rewards.binding.noise"),
        (LASRO, "learner.zero_stage=1", "learner.zero_stage"),
        (SHARDED, "learner.zero_stage=0", "learner.zero_stage"),
        (SHARDED, "learner.grad_clip=2", "learner.grad_clip"),
        (SHARDED, "learner.ranks=2", "learner.ranks"),
        (LASRO, "method.reward_steps=last", "method.reward_steps"),
        (LASRO, "method.surrogate.backbone=unet_encoder", "method.surrogate.backbone"),
        (LASRO, "method.surrogate.heads=3", "method.surrogate.heads"),
        (LASRO, "method.surrogate.timestep=5", "method.surrogate.timestep"),
        (LASRO, "method.pretrain.groups=9", "method.pretrain.groups"),
        (LASRO, "method.groups_per_cycle=5", "method.groups_per_cycle"),
        (SQDF, "method.states.kept=5", "method.states.kept"),
        (SQDF, "method.states.keep=last", "method.states.keep"),
        (SQDF, "method.states.times=discounted", "method.states.times"),
        (SQDF, "method.states.score_clean=true", "method.states.score_clean"),
        (SQDF, "method.states.store_reference=true", "method.states.store_reference"),
        (DISCOUNTED, "method.discount=0.8", "method.discount"),
        (DECODED, "method.path=renoised", "method.path"),
        (DECODED, "method.last_steps=2", "method.last_steps"),
        (REFL, "method.stopped_in=0.5", "method.stopped_in"),
        (CHAIN, "method.kl_over=path", "method.kl_over"),
        (CHAIN, "method.alpha=0", "method.alpha"),
        (DDPO, "method.kept_steps=7", "method.kept_steps"),
        (GORS, "method.groups_per_cycle=5", "method.groups_per_cycle"),
        (LASRO, "evaluation.prompts.count=9", "evaluation.prompts.count"),
        (LASRO, "evaluation.samples=9", "evaluation.samples"),
        (LASRO, "evaluation.seed=9", "evaluation.seed"),
        (LASRO, "evaluation.rewards.bright=brightness", "evaluation.rewards"),
        (LASRO, "evaluation.rewards.exact=brightness", "evaluation.rewards.exact.kind"),
        (LASRO, "evaluation.diversity.prompts=3", "evaluation.diversity.prompts"),
        (LASRO, "evaluation.diversity.per_prompt=3", "evaluation.diversity.per_prompt"),
        (LASRO, LPIPS, "evaluation.diversity.distances"),
        (
            (*LASRO, LPIPS),
            "evaluation.diversity.distances.lpips.kind=own:Distance",
            "evaluation.diversity.distances.lpips.kind",
        ),
        (BEST, "evaluation.best_by=reward_2step", "evaluation.best_by"),
    ],
)  # fmt: skip
def test_what_a_run_has_made_binds_a_setting(start: Sequence[str], change: str, path: str) -> None:
    assert changed(start, change) == [path]


def test_a_size_of_pictures_is_bound() -> None:
    assert changed(LASRO, "model.height=64", "model.width=32") == ["model.height", "model.width"]


def test_another_source_of_prompts_is_told_with_its_kind() -> None:
    assert changed(LASRO, FILE) == ["prompts.kind"]
    other = "prompts.file=other.txt"
    assert changed((*LASRO, FILE), other) == ["prompts.file"]


def test_of_another_method_no_setting_is_compared() -> None:
    then = begun(SQDF, "rewards.binding.kind=aesthetic")
    now = config(("shapes-draft-lv",))
    paths = [problem.path for problem in changed_settings(then, now)]
    assert [path for path in paths if path.startswith("method.")] == ["method.kind"]


@pytest.mark.parametrize(
    ("start", "changes"),
    [
        (LASRO, ("folder=elsewhere", "pace=lockstep", "actors.groups_per_batch=1")),
        (LASRO, ("model.precision=bf16", "model.attention=plain", "model.compile=true")),
        (LASRO, ("model.text_cache_mb=9", "model.text_encoders=retire", "model.vae_slicing=true")),
        (LASRO, ("actors.count=3", "scoring.servers=2", "replay.capacity_groups=64")),
        (LASRO, ("learner.ranks=2", "learner.checkpoint_every_cycles=3", "learner.grad_clip=2")),
        (SHARDED, ("learner.zero_stage=2", "learner.offload=cpu")),
        (
            LASRO,
            (
                "rewards.binding.args={url: other}",
                "rewards.binding.fleet={servers: 2}",
            ),
        ),
        (LASRO, ("evaluation.rewards.exact.args={url: other}", "evaluation.timeout_s=9")),
        (LASRO, ("evaluation.every_cycles=1", "evaluation.best_by=exact_2step")),
        (BEST, ("evaluation.best_by=null",)),
        (("smoke", "evaluation.every_cycles=1"), ("evaluation.best_by=exact_2step",)),
        (BEST, ("evaluation.stop={kind: kl_above, nats: 1}",)),
        (LASRO, ("method.policy_steps=3", "method.policy_batch=8", "method.surrogate_steps=3")),
        (LASRO, ("method.pretrain.max_steps=9", "method.accuracy_brake=0.5")),
        (LASRO, ("method.surrogate.pessimism=0.1", "method.surrogate.loss=best_worst")),
        (LASRO, ("method.anchor.data=none", "method.weight_average=0.9")),
        (("smoke",), ("method.surrogate.timestep=5",)),
        ((*LASRO, "model.trainable=full"), ("model.lora_rank=8", "model.lora_targets=all")),
        (SQDF, ("model.teacher=other/pipeline", "method.clean.lora=other/lora")),
        (LASRO, ("method.learning_rate=1e-3", "method.weight_decay=0.1")),
        (LASRO, ("method.surrogate.learning_rate=1e-3", "method.surrogate.weight_decay=0.1")),
        (SQDF, ("method.discount=0.8", "method.alpha=2", "method.target_kl=1")),
        (SQDF, ("method.states.fresh=0.5",)),
        (DECODED, ("method.alpha=0.1", "method.ceiling=1")),
        (CHAIN, ("method.alpha=0.2",)),
        (RLCM, ("method.last_call=true", "method.ratio_clip=0.1")),
        (GORS, ("method.kept_share=0.5", "method.fresh=0.5")),
        (LASRO, ("limits.reward_queries=99", "logging.wandb={}")),
    ],
)  # fmt: skip
def test_what_nothing_depends_on_may_change(start: Sequence[str], changes: Sequence[str]) -> None:
    assert changed(start, *changes) == []


def test_of_the_last_states_all_are_kept_whatever_the_discount_is() -> None:
    last = (*SQDF, "method.states.keep=last")
    assert changed(last, "method.states.times=discounted") == []
    assert changed((*last, "method.states.times=discounted"), "method.discount=0.5") == []


@pytest.mark.parametrize(
    ("start", "more", "less"),
    [
        (LASRO, "method.anchor.data=generated", "method.anchor.data=none"),
        (SQDF, "method.states.store_reference=true", "method.states.store_reference=false"),
    ],
)
def test_what_was_made_may_be_left_unused_and_what_was_not_cannot_be_used(
    start: Sequence[str], more: str, less: str
) -> None:
    assert changed(start, less, at_first=[more]) == []
    assert changed(start, more, at_first=[less]) == [more.partition("=")[0]]


def test_a_surrogate_may_be_left_and_not_be_taken_up() -> None:
    decoded = ("shapes-draft", "method.pretrain={groups: 96}")
    other = begun(decoded)
    surrogate = {**other, "method": {**other["method"], "reward": "surrogate"}}
    assert list(changed_settings(surrogate, config(decoded))) == []
    found = changed_settings(other, config(decoded, "method.reward=surrogate"))
    assert [problem.path for problem in found] == ["method.reward"]


def sizes(*values: int) -> tuple[str, str]:
    return f"method.cycles={len(values)}", f"method.groups_per_cycle={list(values)}"


@pytest.mark.parametrize(
    "then",
    [("method.cycles=20",), ("method.cycles=1",), sizes(4, 4, 4), sizes(4, 4, 9), sizes(4)],
)
def test_cycles_may_be_more_or_fewer_as_long_as_those_of_before_keep_their_sizes(
    then: Sequence[str],
) -> None:
    assert changed(LASRO, *then) == []


def test_the_first_cycle_of_another_size_is_told() -> None:
    problems = changed_settings(begun(LASRO, *sizes(4, 6, 8)), config(LASRO, *sizes(4, 6, 9, 9)))
    assert [problem.path for problem in problems] == ["method.groups_per_cycle"]
    (problem,) = changed_settings(begun(LASRO, *sizes(4, 6, 8)), config(LASRO, *sizes(4, 5, 9)))
    assert problem.text.startswith("was 6 in cycle number 2, given 5: ")
    assert "as many more as you like" in problem.text


def test_a_file_from_before_a_kl_could_be_of_a_chain_had_one_of_the_path() -> None:
    old = begun(DECODED)
    del old["method"]["kl_over"]
    (problem,) = changed_settings(old, config(CHAIN))
    assert str(problem).startswith('method.kl_over: was "path", given "chain": ')


def test_what_an_older_file_lacks_is_not_compared() -> None:
    old = begun(SQDF)
    del old["seed"], old["evaluation"], old["rewards"]["binding"]["scale"]
    del old["method"]["states"]["keep"], old["method"]["pretrain"], old["method"]["cycles"]
    now = config(SQDF, "seed=3", "evaluation.samples=9", "method.groups_per_cycle=5")
    assert list(changed_settings(old, now)) == []
    assert list(changed_settings({}, now)) == []
    assert list(changed_settings({"model": 3, "method": None}, now)) == []


def test_what_an_older_file_has_more_is_not_compared() -> None:
    old = begun(SQDF)
    old["model"]["gone"] = old["gone"] = 3
    assert list(changed_settings(old, config(SQDF))) == []


def test_all_problems_are_told_at_once_in_the_order_of_a_config() -> None:
    paths = changed(
        LASRO, "seed=1", "evaluation.samples=9", "model.lora_rank=8", "method.surrogate.heads=4"
    )
    assert paths == ["seed", "model.lora_rank", "method.surrogate.heads", "evaluation.samples"]


def test_a_problem_says_what_was_what_is_given_why_and_what_to_do() -> None:
    (problem,) = changed_settings(begun(LASRO, "model.path=a/b"), config(LASRO, "model.path=c/d"))
    assert str(problem) == (
        'model.path: was "a/b", given "c/d": its samples, weights and scores are of that model. '
        "Give it as it was, or begin another run; if it means the same, such as a model that has "
        "moved, change it in the config.json of the run's folder, too"
    )


def test_what_a_checkpoint_holds_is_not_to_be_changed_in_a_file() -> None:
    (problem,) = changed_settings(begun(SHARDED), config(SHARDED, "learner.grad_clip=0.5"))
    assert problem.text == (
        "was 1.0, given 0.5: its checkpoint holds the old one, which would stay in force. Give it "
        "as it was, or begin another run"
    )


def test_rewards_are_told_by_name_whatever_the_names_are() -> None:
    dotted = "rewards={b.c: {kind: shapes-binding}, a: {kind: shapes-exact}}"
    (problem,) = changed_settings(begun(LASRO), config(LASRO, dotted))
    assert problem.text.startswith('was ["binding"], given ["a", "b.c"]: ')
    kinds = dotted.replace("shapes-binding", "brightness")
    assert changed((*LASRO, dotted), kinds) == ["rewards.b.c.kind"]


def test_a_long_value_is_cut() -> None:
    (problem,) = changed_settings(begun(LASRO), config(LASRO, f"model.vae={'x' * 99}"))
    assert f'given "{"x" * 59}...: ' in problem.text
