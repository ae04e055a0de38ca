"""An evaluation's means: over the pictures that have a score, and of latents that are known."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.rollout import Group, Rollout
from deploy.evaluation.evaluator import Evaluator
from deploy.settings.run_config import load_config
from learner.policy.components import PipelineFolder
from reward_servers.base import Scored

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
HERE = "tests.unit.test_evaluator"
# Of three noises each of two prompts: pairs are 1, 3, 2 apart, and 0, 6, 6.
LEVELS = (0.0, 1.0, 3.0, 0.0, 0.0, 6.0)

# What diffusers, transformers and peft say of each other's loaders is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


class FailsTheFirst:
    """Has a score of 3 for a batch's second picture, and none for its first."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        return Scored(np.array([1, 3], np.float32), {0: "x"})


class FailsAll:
    """Has no score for any picture."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        raise RuntimeError("the model is gone")


class HandPolicy:
    """Draws latents of one level a picture, by its ticket; those of the first step are 9 higher."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        return [Rollout((1, 2), (0, 1), self._latents(group.ticket)) for group in groups]

    def drift(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        return {"kl_nats": np.array([float(group.ticket) for group in groups])}

    def _latents(self, ticket: int) -> np.ndarray:
        last = np.full(self.shape, LEVELS[ticket], np.float16)
        return np.stack([last + 9, last])[None]


@pytest.fixture
def evaluated(pipelines: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """What an evaluation of two pictures tells, with settings besides."""

    def evaluate(*overrides: str) -> dict[str, float]:
        models = (f"model.path={pipelines}/lcm", f"model.teacher={pipelines}/base")
        diversity = "evaluation.diversity={prompts: 2, per_prompt: 3}"
        settings = ("evaluation.samples=2", diversity, *overrides)
        config = load_config(SMOKE, ["name=n", *models, *settings])
        policy = HandPolicy(PipelineFolder.of(config.model).latent_shape)
        monkeypatch.setattr("deploy.evaluation.evaluator.policy_of", lambda *a, **k: policy)
        return Evaluator(config).evaluate(None, None)

    return evaluate


def test_the_mean_of_a_score_is_that_of_the_pictures_that_have_one(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    assert evaluated(f"evaluation.rewards.exact.kind={HERE}:FailsTheFirst")["exact_2step"] == 3.0


def test_the_share_of_scores_that_failed_is_told_with_the_means_of_the_others(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    assert "unscored" not in evaluated()
    # Of two steps each, two scores of two pictures: a quarter of four, four times.
    metrics = evaluated(f"evaluation.rewards.exact.kind={HERE}:FailsTheFirst")
    assert metrics["unscored"] == pytest.approx(0.25)


def test_a_score_that_no_picture_has_is_left_out(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    metrics = evaluated(f"evaluation.rewards.exact.kind={HERE}:FailsAll")
    assert [name for name in metrics if name.endswith("_2step")] == ["reward_2step"]


def test_the_trained_reward_is_the_weighted_sum_of_means_over_what_is_scored(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    reward = f"rewards.binding={{kind: '{HERE}:FailsTheFirst', weight: 2}}"
    assert evaluated(reward)["reward_2step"] == 6.0


def test_diversity_is_how_far_last_latents_of_a_prompt_are_apart(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    assert evaluated()["diversity"] == pytest.approx((2 + 4) / 2)


def test_drift_is_the_mean_over_all_fixed_noises(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    assert evaluated()["kl_nats"] == pytest.approx(2.5)
