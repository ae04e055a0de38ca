"""ImageReward: what is refused before a run, and the real package in its own environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_servers.base import checked_scores
from reward_servers.image_reward_model import ImageRewardModel
from reward_servers.registry import build_reward, check_reward

PYTHON = os.environ.get("FLEETUNE_IMAGE_REWARD_PYTHON", "")
PROMPTS = ["a red circle", "a blue square and a long tail of words " * 8]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"python": "/nowhere/python"}, "no Python at '/nowhere/python'"),
        ({"checkpoint": "/nowhere.pt"}, r"no checkpoint at /nowhere\.pt: .* or ImageReward-v1\.0"),
        ({"med_config": "/nowhere.json"}, r"no med_config at /nowhere\.json"),
        ({"tokenizer": "/nowhere"}, r"no vocab\.txt in /nowhere"),
        ({}, r"has no ImageReward, .*image-reward\.txt"),
    ],
)
def test_a_check_says_what_is_missing(args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_reward("image-reward", {"python": sys.executable, **args})


@pytest.mark.parametrize("offline", ["1", "0"])
def test_files_that_would_be_downloaded_are_missing_where_the_hub_may_not_be_asked(
    offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_servers.image_reward_model._NEEDED", ())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    if offline == "0":
        ImageRewardModel.check("ImageReward-v1.0")
        return
    with pytest.raises(ValueError, match=r"ImageReward\.pt, .*med_config\.json, the vocab\.txt of"):
        ImageRewardModel.check("ImageReward-v1.0")
    own = tmp_path / ".cache" / "ImageReward"
    own.mkdir(parents=True)
    (own / "ImageReward.pt").touch()
    (own / "med_config.json").touch()
    with pytest.raises(ValueError, match=r"and the vocab\.txt of bert-base-uncased cannot be had"):
        ImageRewardModel.check("ImageReward-v1.0")
    ImageRewardModel.check("ImageReward-v1.0", tokenizer=str(tmp_path))
    snapshot = tmp_path / "hub" / "models--bert-base-uncased" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.txt").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    ImageRewardModel.check("ImageReward-v1.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded checkpoint with one layer of text, its files, and what the package makes of it."""
    folder = tmp_path_factory.mktemp("image-reward")
    med = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 40,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    (folder / "med.json").write_text(json.dumps(med))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(PROMPTS).split()]
    (folder / "bert-base-uncased").mkdir()
    (folder / "bert-base-uncased/vocab.txt").write_text("\n".join(dict.fromkeys(words)))
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    pictures[1, :, :40] //= 8
    np.save(folder / "pictures.npy", pictures)
    program = Path(__file__).with_name("image_reward_program.py")
    root = Path(__file__).resolve().parents[2]
    # The package looks for its tokenizer in the folder that it is run in.
    subprocess.run([PYTHON, str(program), str(root), str(folder)], cwd=folder, check=True)
    return folder


needs_package = pytest.mark.skipif(
    not PYTHON,
    reason="FLEETUNE_IMAGE_REWARD_PYTHON names no Python of an environment with image-reward",
)


def arguments(folder: Path) -> dict[str, Any]:
    return {
        "python": PYTHON,
        "checkpoint": str(folder / "seeded.pt"),
        "med_config": str(folder / "med.json"),
        "tokenizer": str(folder / "bert-base-uncased"),
        "timeout_s": 600,
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_package
def test_scores_are_those_of_the_package(folder: Path) -> None:
    check_reward("image-reward", arguments(folder))
    reward: Any = build_reward("image-reward", arguments(folder))
    pictures = np.load(folder / "pictures.npy")
    expected = np.array(json.loads((folder / "expected.json").read_text()))
    assert np.ptp(expected, axis=0).min() > 1e-3
    assert np.ptp(expected, axis=1).min() > 1e-3
    images, prompts = np.concatenate([pictures, pictures]), np.repeat(PROMPTS, 2).tolist()
    scores = checked_scores(reward, images, prompts)
    reward.close()
    np.testing.assert_allclose(scores, expected.ravel(), atol=1e-4)


_CUT = """
import sys, torch
state = torch.load(sys.argv[1], mmap=True, weights_only=True)
kept = {name: value for name, value in state.items() if name.startswith("mlp.layers.2")}
torch.save(kept, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_package
def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path) -> None:
    """The package would score with random ones."""
    cut = str(folder / "cut.pt")
    subprocess.run([PYTHON, "-c", _CUT, str(folder / "seeded.pt"), cut], check=True)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of ImageReward, such as blip"):
        build_reward("image-reward", {**arguments(folder), "checkpoint": cut})
