"""What a config means on this machine: what is missing, what would be done."""

from pathlib import Path

import pytest

from deploy.run.plan import check_environment, describe
from deploy.settings.run_config import RunConfig, load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    """A folder that looks like a pipeline from outside."""
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    return str(tmp_path)


def _config(pipeline: str, *overrides: str) -> RunConfig:
    return load_config(
        SMOKE, [f"model.path={pipeline}", f"model.teacher={pipeline}", "name=n", *overrides]
    )


def _complaint(config: RunConfig, environ: dict[str, str] | None = None) -> str:
    problems = check_environment(config, environ or {})
    assert len(problems) == 1, problems
    return problems[0]


def test_a_complete_environment_has_no_problem(pipeline: str) -> None:
    assert check_environment(_config(pipeline), {}) == []


def test_a_run_that_goes_on_is_compared_with_what_it_was_begun_with(
    pipeline: str, tmp_path: Path
) -> None:
    environ = {"FLEETUNE_RUNS": str(tmp_path / "runs")}
    folder = tmp_path / "runs" / "n"
    folder.mkdir(parents=True)
    written = _config(pipeline).to_json()
    (folder / "config.json").write_text(written)
    longer = _config(pipeline, "method.cycles=9", "actors.count=2")
    assert check_environment(longer, environ, resume=True) == []
    other = _config(pipeline, "seed=4", "actors.group_size=5")
    problems = check_environment(other, environ, resume=True)
    assert [text.partition(",")[0] for text in problems] == [
        "seed: was 0",
        "actors.group_size: was 3",
    ]
    (folder / "config.json").write_text("no settings")
    (problem,) = check_environment(other, environ, resume=True)
    assert problem.startswith(f"name: {folder}/config.json, what the run was begun with, cannot")
    # Without --resume that it is there at all is what is wrong.
    (problem,) = check_environment(other, environ)
    assert "holds a run already" in problem


def test_a_missing_model_folder_is_named(pipeline: str) -> None:
    text = _complaint(_config(pipeline, "model.path=no/such/folder"))
    assert text.startswith("model.path: the folder no/such/folder does not exist")


def test_a_folder_without_a_pipeline_is_told_from_a_missing_one(pipeline: str) -> None:
    empty = Path(pipeline) / "empty"
    empty.mkdir()
    assert "holds no model_index.json" in _complaint(_config(pipeline, f"model.path={empty}"))


def test_a_hub_id_is_left_to_the_hub(pipeline: str) -> None:
    assert check_environment(_config(pipeline, "model.path=some-owner/some-model"), {}) == []


@pytest.mark.parametrize(
    ("lora", "complaints"), [("owner/lcm-lora", 0), ("./nowhere", 1), ("tests/unit", 1)]
)
def test_a_consistency_lora_is_looked_for_here_unless_the_hub_has_it(
    pipeline: str, lora: str, complaints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SMOKE.parents[2])
    preset = SMOKE.with_name("smoke-sqdf.yaml")
    config = load_config(preset, [f"model.path={pipeline}", f"method.clean.lora={lora}", "name=n"])
    found = check_environment(config, {})
    assert [text.startswith("method.clean.lora: ") for text in found] == [True] * complaints


def test_a_teacher_that_nobody_asks_need_not_be_there(pipeline: str) -> None:
    overrides = ("model.teacher=no/such/folder", "method.anchor={data: none}")
    assert check_environment(_config(pipeline, *overrides), {}) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot read"), (b"\n \n", "holds no prompt"), (b"caf\xe9\n", "not UTF-8")],
)
def test_a_bad_prompt_file_is_named_with_its_fault(
    pipeline: str, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    text = _complaint(_config(pipeline, f"prompts={{file: {path}}}"))
    assert text.startswith("prompts.file: ")
    assert reason in text


def test_an_unknown_reward_is_told_the_shipped_ones(pipeline: str) -> None:
    text = _complaint(_config(pipeline, "rewards.binding.kind=bindings"))
    assert text.startswith("rewards.binding: unknown reward 'bindings'")


def test_an_unknown_argument_of_a_shipped_reward_is_found(pipeline: str) -> None:
    text = _complaint(_config(pipeline, "evaluation.rewards.exact.args.sharpness=1"))
    assert text.startswith("evaluation.rewards.exact: ")


def test_a_reward_that_cannot_be_imported_is_named(pipeline: str) -> None:
    text = _complaint(_config(pipeline, "rewards.binding.kind=not_installed_here:Mine"))
    assert text.startswith("rewards.binding: cannot import 'not_installed_here'")


def test_a_reward_of_ones_own_is_imported_and_not_built(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large_reward.py").write_text(
        "class Large:\n"
        "    def __init__(self, size=1):\n        raise MemoryError\n"
        "    def score(self, images, prompts): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = _config(pipeline, "rewards.binding.kind=large_reward:Large")
    assert check_environment(config, {}) == []


def test_an_unset_redis_url_is_missed_where_it_is_required(pipeline: str) -> None:
    text = _complaint(_config(pipeline, "replay.redis=environment"))
    assert "REDIS_URL is not set" in text


def test_an_unreachable_redis_is_reported_without_its_password(pipeline: str) -> None:
    text = _complaint(_config(pipeline), {"REDIS_URL": "redis://me:hunter2@127.0.0.1:1/0"})
    assert (text.startswith("replay.redis: "), "hunter2" in text) == (True, False)


def test_every_redis_of_several_is_asked(pipeline: str) -> None:
    urls = "redis://127.0.0.1:1/0 redis://me:hunter2@127.0.0.1:2/0"
    problems = check_environment(_config(pipeline), {"REDIS_URL": urls})
    assert [problem.partition(" does")[0] for problem in problems] == [
        "replay.redis: redis://127.0.0.1:1/0",
        "replay.redis: redis://me:***@127.0.0.1:2/0",
    ]


@pytest.mark.parametrize(("shards", "is_wrong"), [(1, False), (2, False), (3, True)])
def test_a_number_of_servers_that_is_not_that_of_the_urls_is_told(
    pipeline: str, shards: int, is_wrong: bool
) -> None:
    urls = "redis://127.0.0.1:1/0 redis://127.0.0.1:2/0"
    config = _config(pipeline, f"replay.shards={shards}")
    text = "\n".join(check_environment(config, {"REDIS_URL": urls}))
    assert ("replay.shards: is 3, but REDIS_URL holds 2 URLs" in text) == is_wrong


def test_the_plan_tells_how_many_embedded_servers_there_are(pipeline: str) -> None:
    assert "else 3 embedded servers" in describe(_config(pipeline, "replay.shards=3"))
    assert "else an embedded server\n" in describe(_config(pipeline))


def test_the_plan_counts_trajectories_and_queries(pipeline: str) -> None:
    # 8 groups of pre-training + 2 cycles × 4 groups = 16 groups of 3, both steps scored.
    plan = describe(_config(pipeline))
    assert "16 groups × 3 = 48 trajectories" in plan
    assert "96 in training" in plan


def test_the_plan_counts_rounds_that_differ(pipeline: str) -> None:
    plan = describe(_config(pipeline, "method.groups_per_cycle=[2, 5]"))
    assert "15 groups × 3 = 45 trajectories" in plan
    assert "2 × (2 to 5 groups" in plan


def test_the_plan_counts_the_evaluations(pipeline: str) -> None:
    # 2 evaluations × 8 samples × 2 steps × (1 score and the reward that is trained on).
    assert "64 in the evaluations" in describe(_config(pipeline))
