"""The worked examples do what the pages say of them."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.prompt_sets import load_text
from buffer.records import Record, Scores, record_id
from deploy.examples.brightness import Brightness
from deploy.run.plan import check_environment
from deploy.settings.run_config import RunConfig, load_config
from deploy.shapes.world import HELD_OUT
from reward_servers.base import RewardModel
from reward_servers.registry import build_reward
from reward_servers.scene import parse
from reward_servers.server import RewardServer, ServerSettings

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "deploy" / "examples" / "own.yaml"
KIND = "deploy.examples.brightness:Brightness"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The example's config with a folder that looks like a pipeline, as a user would set it."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    model = (f"model.path={tmp_path}", f"model.teacher={tmp_path}", f"folder={tmp_path}/runs")
    return load_config(OWN, [*model, "rewards.brightness.args.target=0.8"])


def _plain(level: int, count: int = 1) -> np.ndarray:
    return np.full((count, 4, 4, 3), level, dtype=np.uint8)


def test_the_example_config_has_nothing_to_complain_about(config: RunConfig) -> None:
    assert check_environment(config, {}) == []


def test_an_override_reaches_the_arguments_of_the_own_reward(config: RunConfig) -> None:
    assert config.rewards["brightness"].args == {"target": 0.8}


def test_the_config_builds_the_own_reward(config: RunConfig) -> None:
    reward = config.rewards["brightness"]
    assert isinstance(build_reward(reward.kind, reward.args), Brightness)


@pytest.mark.parametrize(("level", "score"), [(0, 0.5), (255, 0.5), (51, 0.7), (128, 0.998)])
def test_a_plain_picture_scores_by_its_distance_from_the_target(level: int, score: float) -> None:
    assert Brightness(0.5).score(_plain(level), [""])[0] == pytest.approx(score, abs=1e-3)


def test_green_is_brighter_than_blue() -> None:
    green, blue = _plain(0), _plain(0)
    green[..., 1], blue[..., 2] = 255, 255
    scores = Brightness(1.0).score(np.concatenate([green, blue]), ["", ""])
    assert scores.tolist() == pytest.approx([0.7152, 0.0722])


def test_scores_are_one_float32_a_picture() -> None:
    scores = Brightness().score(_plain(9, count=3), [""] * 3)
    assert (scores.dtype, scores.shape) == (np.float32, (3,))


def test_a_target_that_no_picture_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"refuses its arguments: target is 2; .* from 0 to 1"):
        build_reward(KIND, {"target": 2})


class OneRecord:
    """A replay that hands out one record and keeps its scores."""

    def __init__(self, record: Record) -> None:
        self._waiting = [record]
        self.scores: Scores | None = None
        self.settled = threading.Event()

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        taken, self._waiting = self._waiting, []
        time.sleep(0 if taken else block_s)
        return taken

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
        ((_, self.scores),) = scored
        self.settled.set()
        return 1

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        self.settled.set()
        return True

    def renew_claims(self, owner: str, record_ids: Sequence[str]) -> int:
        return len(record_ids)

    def unclaim(self, record_ids: Sequence[str]) -> int:
        return 0


def _record() -> Record:
    """Of two scored latents, whose first value is the brightness that they decode to."""
    return Record(
        record_id=record_id(0, 0),
        ticket=0,
        member=0,
        prompt="a red circle left of a green square",
        policy_version=0,
        seed=1,
        steps=(1, 2),
        scored=(0, 1),
        latents=tuple(np.full((4, 2, 2), level, dtype=np.float16) for level in (0.0, 0.8)),
    )


def _decode(latents_BCHW: np.ndarray) -> np.ndarray:
    return np.concatenate([_plain(round(255 * float(each[0, 0, 0]))) for each in latents_BCHW])


def _served(reward: RewardModel) -> OneRecord:
    replay = OneRecord(_record())
    settings = ServerSettings(batch_wait_s=0.01, block_s=0.02)
    server = RewardServer(replay, _decode, {"brightness": reward}, owner="r", settings=settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    replay.settled.wait(30)
    server.stop()
    thread.join(30)
    return replay


def test_a_reward_server_scores_every_step_with_the_own_reward() -> None:
    scores = _served(build_reward(KIND, {"target": 0.8})).scores
    assert scores is not None
    assert scores.rewards["brightness"] == pytest.approx((0.2, 1.0), abs=1e-3)


def test_the_training_prompts_hold_no_held_out_combination() -> None:
    things = {thing for prompt in _prompts("prompts.txt") for thing in parse(prompt).things}
    assert things & HELD_OUT == set()


def test_every_evaluation_prompt_holds_a_held_out_combination() -> None:
    scenes = [parse(prompt) for prompt in _prompts("held-out-prompts.txt")]
    assert [scene.prompt for scene in scenes if not HELD_OUT & set(scene.things)] == []


def _prompts(name: str) -> list[str]:
    return list(load_text(ROOT / "deploy" / "examples" / name).prompts)
