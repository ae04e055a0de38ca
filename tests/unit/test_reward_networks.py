"""What the plan counts of rewards: those on CLIP, by their shapes; others are named."""

from pathlib import Path

import pytest
import torch

from deploy.doctor.meta_networks import Networks, clip_config, parameters_of
from deploy.doctor.reward_networks import (
    ClipShapes,
    climbed_rewards,
    reward_weights,
    scoring_activations,
    uncounted,
)
from deploy.doctor.scorers import rewards_of
from deploy.settings.run_config import RunConfig, load_config
from reward_servers.clip import ClipFeatures
from tests.tiny_clip import save_tiny_clip

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
VIT_L, VIT_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def _config(preset: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{preset}.yaml", ["name=n", *overrides])


@pytest.mark.parametrize(("hub_id", "parameters"), [(VIT_L, 427_616_513), (VIT_H, 986_109_441)])
def test_a_clip_has_as_many_parameters_as_is_published(hub_id: str, parameters: int) -> None:
    told = clip_config(hub_id)
    assert told is not None
    assert parameters_of(ClipShapes(told)) == parameters


def test_each_process_counts_the_rewards_that_it_computes() -> None:
    more = f"evaluation.rewards={{fit: {{kind: clip-score, args: {{clip: {VIT_L}}}}}}}"
    fleet = "rewards.hps.fleet={servers: 1}"
    unweighted = "rewards.other={kind: pickscore, weight: 0}"
    config = _config("sd15-sqdf-hps", more, unweighted)
    assert set(rewards_of(config, "learner")) == {"hps"}
    assert set(rewards_of(config, "scoring")) == {"hps", "other"}
    assert set(rewards_of(config, "evaluation")) == {"hps", "other", "fit"}
    assert set(rewards_of(_config("sd15-sqdf-hps", fleet), "scoring")) == set()
    networks = Networks(config)
    in_gib = [
        reward_weights(config, networks, role) / 2**30
        for role in ("learner", "scoring", "evaluation")
    ]
    assert in_gib == pytest.approx([3.674, 2 * 3.674, 2 * 3.674 + 1.593], abs=2e-3)


def test_what_a_climbed_reward_keeps_is_what_autograd_saves_of_it(tmp_path: Path) -> None:
    """But for attention, which has no maps to keep on a GPU, and has none in the plan."""
    clip = save_tiny_clip(tmp_path)
    reward = f"rewards={{fit: {{kind: clip-score, args: {{clip: {clip}}}}}}}"
    config = _config("shapes-draft", reward, "evaluation.rewards={}")
    networks = Networks(config)
    (kept,) = climbed_rewards(config, networks)
    features = ClipFeatures(clip)
    addresses = {each.untyped_storage().data_ptr() for each in features.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in addresses:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images_BCHW = torch.rand(1, 3, *networks.image_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        features.images(images_BCHW)
    held = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert kept.activations == pytest.approx(held, rel=0.05)
    assert scoring_activations(config, networks, "scoring", 4) > 0


def test_rewards_whose_sizes_are_not_known_are_named() -> None:
    config = _config(
        "ssd1b-lasro-imagereward",
        "rewards.size={kind: jpeg-size}",
        "rewards.fit={kind: clip-score, args: {clip: owner/another}}",
    )
    assert uncounted(config, "scoring") == ["preference", "fit"]
    assert uncounted(config, "learner") == []
