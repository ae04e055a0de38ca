"""The worked example of metadata: its reward counts, its files fit each other."""

from pathlib import Path

import numpy as np
import pytest

from deploy.fleet.reward_pools import reward_worker
from deploy.run.parts import RunParts
from deploy.run.plan import check_environment
from deploy.run.shared_folder import SharedFolder
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import load_config
from deploy.shapes.verify import drawn
from reward_servers.base import Failure, checked_scores
from reward_servers.metadata import informed
from reward_servers.registry import build_reward, check_metadata

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "deploy" / "examples" / "counting.yaml"
KIND = "deploy.examples.counting:ColourCounts"


def squares(*colours: tuple[int, int, int]) -> np.ndarray:
    """A dark picture with a square of each colour."""
    image = np.full((32, 32, 3), 26, dtype=np.uint8)
    for i, colour in enumerate(colours):
        image[4:12, 10 * i + 1 : 10 * i + 9] = colour
    return image


RED, BLUE = (225, 35, 40), (50, 80, 235)
PICTURES = np.stack([squares(RED, BLUE), squares(RED, RED), squares()])


@pytest.mark.parametrize(
    ("counts", "scores"),
    [
        ({"red": 1, "blue": 1}, [1.0, 0.25, 0.0]),
        ({"red": 2}, [0.5, 1.0, 0.0]),
        ({"blue": 1}, [1.0, 0.0, 0.0]),
    ],
)
def test_a_picture_is_scored_by_what_its_prompt_asks_for(
    counts: dict[str, int], scores: list[float]
) -> None:
    reward = informed(build_reward(KIND), {"p": {"counts": counts}})
    assert checked_scores(reward, PICTURES, ["p"] * 3) == scores


def test_drawn_scenes_have_the_colours_that_they_name() -> None:
    scenes, images = next(drawn(16, np.random.default_rng(3)))
    table = {}
    for scene in scenes:
        colours = [thing.colour for thing in scene.things]
        table[scene.prompt] = {"counts": {name: colours.count(name) for name in colours}}
    scores = checked_scores(
        informed(build_reward(KIND), table), images, [scene.prompt for scene in scenes]
    )
    assert np.mean([score for score in scores if isinstance(score, float)]) > 0.9


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, "is missing"),
        ({"counts": {"pink": 1}}, "unknown colours"),
        ({"counts": {"red": 0}}, "whole numbers from 1, given"),
    ],
)
def test_metadata_of_no_use_is_refused_before_a_run(metadata: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_metadata(KIND, {"least": 4}, {"a prompt": metadata})


def test_the_example_starts_and_text_prompts_in_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    model = [f"model.path={tmp_path}", f"model.teacher={tmp_path}", f"folder={tmp_path}/runs"]
    config = load_config(EXAMPLE, model)
    assert check_environment(config, {}) == []
    found = prompt_set(config.prompts, 0)
    asked = found.table["an orange square left of a purple cross and a yellow ring above"]
    assert asked == {"counts": {"orange": 1, "purple": 1, "yellow": 1}}
    text = load_config(EXAMPLE, [*model, "prompts=deploy/examples/prompts.txt"])
    (problem,) = check_environment(text, {})
    assert problem.startswith("rewards.counts: reward")
    assert "is missing" in problem


def test_a_reward_with_a_fleet_of_its_own_knows_training_and_held_out_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(EXAMPLE)
    known = [prompt_set(each, 0).prompts[0] for each in (config.prompts, config.evaluation.prompts)]
    parts = RunParts(config, None, SharedFolder(tmp_path, ""))
    worker = reward_worker(parts, "counts", "reward-counts-0")
    try:
        *scores, unknown = worker.score(PICTURES, [*known, "a red circle"])
    finally:
        worker.stop()
        worker.run()
    assert scores == [0.0, 0.0]
    assert isinstance(unknown, Failure)
    assert "is not in the run's prompt set" in unknown.reason
