"""One suite over every shipped reward: what a server may rely on."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from deploy.examples.reward_service import RewardService
from deploy.shapes.verify import drawn
from reward_servers.base import RewardModel, checked_scores
from reward_servers.jpeg import JpegSize
from reward_servers.registry import SHIPPED, build_reward
from tests.tiny_blip import save_tiny_blip, save_tiny_encoder
from tests.tiny_clip import WIDTH, head_layers, save_tiny_clip

SCENES, IMAGES = next(drawn(12, np.random.default_rng(5)))
IMAGES.flags.writeable = False  # as arrays from an object store are
# Every other picture belongs to another prompt, so that scores differ.
PROMPTS = [SCENES[i - i % 2].prompt for i in range(len(SCENES))]


@pytest.fixture(scope="module")
def service() -> Iterator[RewardService]:
    """What the `http` reward asks."""
    with RewardService(("127.0.0.1", 0), JpegSize()) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def arguments(
    tmp_path_factory: pytest.TempPathFactory, service: RewardService
) -> dict[str, dict[str, Any]]:
    """Of the rewards that need some."""
    folder = tmp_path_factory.mktemp("clip")
    clip, head = save_tiny_clip(folder), folder / "head.pth"
    torch.save(head_layers(WIDTH, 4, 1), head)
    return {
        "blip-vqa": {"blip": save_tiny_blip(tmp_path_factory.mktemp("vqa"), "vqa")},
        "clip-score": {"clip": clip},
        "hpsv2": {"clip": clip},
        "pickscore": {"clip": clip},
        "text-alignment": {
            "captioner": save_tiny_blip(tmp_path_factory.mktemp("captioner"), "caption"),
            "encoder": save_tiny_encoder(tmp_path_factory.mktemp("encoder")),
        },
        "clip-aesthetic": {"clip": clip, "head": str(head)},
        "http": {"url": f"http://127.0.0.1:{service.server_address[1]}/score"},
        "isolated": {"python": sys.executable, "kind": "jpeg-size"},
    }


@pytest.fixture(params=sorted(SHIPPED), scope="module")
def model(request: pytest.FixtureRequest, arguments: dict[str, dict[str, Any]]) -> RewardModel:
    if request.param == "image-reward":
        pytest.skip("scores in an environment of its own; test_image_reward has one")
    return build_reward(request.param, arguments.get(request.param))


def scores(model: RewardModel, images: np.ndarray, prompts: list[str]) -> list[float]:
    outcomes = checked_scores(model, images, prompts)
    values = [each for each in outcomes if isinstance(each, float)]
    assert len(values) == len(outcomes), outcomes
    return values


def test_every_row_gets_a_number(model: RewardModel) -> None:
    assert len(scores(model, IMAGES, PROMPTS)) == len(PROMPTS)


def test_scores_tell_pictures_apart(model: RewardModel) -> None:
    assert len(set(scores(model, IMAGES, PROMPTS))) > 1


def test_scores_do_not_depend_on_the_batch(model: RewardModel) -> None:
    alone = [scores(model, IMAGES[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(len(PROMPTS))]
    assert alone == pytest.approx(scores(model, IMAGES, PROMPTS), abs=1e-5)


def test_scores_follow_the_order_of_rows(model: RewardModel) -> None:
    backwards = scores(model, IMAGES[::-1], PROMPTS[::-1])
    assert backwards[::-1] == pytest.approx(scores(model, IMAGES, PROMPTS), abs=1e-5)


def test_the_same_pictures_score_the_same_again(model: RewardModel) -> None:
    assert scores(model, IMAGES, PROMPTS) == scores(model, IMAGES, PROMPTS)


def test_no_pictures_have_no_scores(model: RewardModel) -> None:
    assert checked_scores(model, IMAGES[:0], []) == []
