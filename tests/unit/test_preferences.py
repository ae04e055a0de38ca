"""PickScore and HPS v2 on tiny weights: open_clip's own arithmetic, preprocessing, gradients."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from reward_servers.clip import ClipScore
from reward_servers.open_clip import clip_state
from reward_servers.preferences import Hpsv2, PickScore
from reward_servers.registry import build_reward, check_differentiable, check_reward
from tests.tiny_clip import SIDE, save_tiny_clip
from tests.tiny_open_clip import TinyOpenClip

PYTHON = os.environ.get("FLEETUNE_OPEN_CLIP_PYTHON", "")
PROMPTS = ["a red circle", "a blue square left of a green ring"]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), "gelu")


@pytest.fixture(scope="module")
def theirs(clip: str) -> TinyOpenClip:
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    torch.manual_seed(0)
    return TinyOpenClip(len(tokenizer), tokenizer.model_max_length)


@pytest.fixture
def checkpoint(theirs: TinyOpenClip, tmp_path: Path) -> str:
    """As HPS v2 is released."""
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "HPS.pt")
    return str(tmp_path / "HPS.pt")


def cosines(theirs: TinyOpenClip, reward: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Of normalised pixels and PROMPTS, by the other arithmetic."""
    tokenizer = reward.clip._tokenizer
    tokens = tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    texts = theirs.encode_text(tokens, tokenizer.eos_token_id)
    return torch.cosine_similarity(theirs.encode_image(pixels_BCHW), texts)


def tensor_of(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def test_weights_of_open_clip_score_as_open_clip_does(
    clip: str, theirs: TinyOpenClip, checkpoint: str
) -> None:
    reward = Hpsv2(clip, checkpoint)
    pixels = (tensor_of(IMAGES) - reward.clip.mean) / reward.clip.std
    expected = cosines(theirs, reward, pixels)
    assert abs(expected[0] - expected[1]) > 1e-3
    np.testing.assert_allclose(reward.score(IMAGES, PROMPTS), expected, atol=1e-5)


def test_a_picture_that_is_not_square_gets_black_around_it(
    clip: str, theirs: TinyOpenClip, checkpoint: str
) -> None:
    reward = Hpsv2(clip, checkpoint)
    wide = IMAGES[:, :13]  # its longest side is the model's, so that nothing is resized
    black = np.zeros_like(IMAGES)
    black[:, 9:22] = wide
    pixels = (tensor_of(black) - reward.clip.mean) / reward.clip.std
    np.testing.assert_allclose(
        reward.score(wide, PROMPTS), cosines(theirs, reward, pixels), atol=1e-5
    )


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 70), (20, 9)])
def test_pixels_are_those_of_its_package_to_a_byte(
    clip: str, checkpoint: str, height: int, width: int
) -> None:
    """There Pillow resizes the longest side, and black is divided between both ends."""
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    scale = SIDE / max(height, width)
    size = round(height * scale), round(width * scale)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    expected = Image.new("RGB", (SIDE, SIDE))
    expected.paste(resized, ((SIDE - size[1]) // 2, (SIDE - size[0]) // 2))
    reward = Hpsv2(clip, checkpoint)
    found = reward.clip._fitted(tensor_of(image[None]))
    torch.testing.assert_close(
        found, tensor_of(np.asarray(expected)[None].copy()), rtol=0, atol=1.01 / 255
    )


def test_both_formats_of_hps_are_one_reward(clip: str, checkpoint: str, tmp_path: Path) -> None:
    ours = Hpsv2(clip, checkpoint)
    for part in (ours.clip.model, ours.clip._tokenizer):
        part.save_pretrained(tmp_path / "hps")
    file = "preprocessor_config.json"
    (tmp_path / "hps" / file).write_bytes(Path(clip, file).read_bytes())
    again = Hpsv2(str(tmp_path / "hps"))
    np.testing.assert_array_equal(again.score(IMAGES, PROMPTS), ours.score(IMAGES, PROMPTS))


def test_pickscore_is_the_cosine_times_the_models_own_scale(clip: str) -> None:
    reward = PickScore(clip)
    with torch.no_grad():
        reward.clip.model.logit_scale.fill_(np.log(100))
    cosine = ClipScore(clip).score(IMAGES, PROMPTS)
    np.testing.assert_allclose(reward.score(IMAGES, PROMPTS), 100 * cosine, rtol=1e-4)


def test_a_processor_may_lie_elsewhere(clip: str, tmp_path: Path) -> None:
    PickScore(clip).clip.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no CLIP model"):
        PickScore(str(tmp_path))
    scores = PickScore(str(tmp_path), clip).score(IMAGES, PROMPTS)
    np.testing.assert_array_equal(scores, PickScore(clip).score(IMAGES, PROMPTS))


@pytest.mark.parametrize("kind", ["pickscore", "hpsv2"])
def test_a_step_up_the_gradient_raises_the_score(clip: str, kind: str) -> None:
    check_differentiable(kind)
    reward: Any = build_reward(kind, {"clip": clip})
    images = torch.full((1, 3, 24, 40), 0.5).requires_grad_()
    score = reward(images, PROMPTS[:1])
    (gradient,) = torch.autograd.grad(score.sum(), images)
    better = images.detach() + 0.02 * gradient / gradient.abs().max()
    assert reward(better, PROMPTS[:1]) > score


@pytest.mark.parametrize(
    ("kind", "args", "reason"),
    [
        ("hpsv2", {}, r"name HPS_v2\.1_compressed\.pt as checkpoint"),
        ("hpsv2", {"checkpoint": "/nowhere.pt"}, r"no checkpoint at /nowhere\.pt"),
        ("hpsv2", {"clip": "/nowhere"}, "no CLIP model at '/nowhere'"),
        ("pickscore", {"clip": "/nowhere"}, "or a hub id such as yuvalkirstain/PickScore_v1"),
        ("pickscore", {"processor": "/nowhere"}, "no image processor at '/nowhere'"),
    ],
)
def test_a_check_says_what_is_missing(kind: str, args: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_reward(kind, args)


def test_weights_that_are_not_of_the_model_are_refused(
    clip: str, theirs: TinyOpenClip, tmp_path: Path
) -> None:
    state, path = theirs.state_dict(), tmp_path / "bad.pt"
    torch.save({name: value for name, value in state.items() if name != "visual.proj"}, path)
    with pytest.raises(ValueError, match=r"do not fit.*visual_projection\.weight"):
        Hpsv2(clip, str(path))
    with pytest.raises(ValueError, match=r"head\.weight is no weight of open_clip's CLIP"):
        clip_state({"head.weight": torch.zeros(1)})
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"no weights of HPS can be read"):
        Hpsv2(clip, str(path))


_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from reward_servers.image_reward_model import import_torchvision
import_torchvision()
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
given = torch.load(sys.argv[2], weights_only=True)
torch.manual_seed(0)
model = CLIP(
    12,
    CLIPVisionCfg(image_size=32, patch_size=8, width=16, layers=2, head_width=8, mlp_ratio=2),
    CLIPTextCfg(context_length=given["length"], vocab_size=given["words"], width=16, heads=2,
                layers=2, mlp_ratio=2),
).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
with torch.no_grad():
    # It reads a text at its largest token.
    image, text = model.encode_image(given["pixels"]), model.encode_text(given["tokens"])
torch.save({"image": image, "text": text, "state_dict": model.state_dict()}, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON, reason="FLEETUNE_OPEN_CLIP_PYTHON names no Python of an environment with open_clip"
)
def test_the_real_open_clip_says_the_same(clip: str, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    ours = PickScore(clip).clip
    tokens = tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    assert (tokens.argmax(1) == (tokens == tokenizer.eos_token_id).int().argmax(1)).all()
    pixels = (tensor_of(IMAGES) - ours.mean) / ours.std
    given = {"pixels": pixels, "tokens": tokens}
    given |= {"words": len(tokenizer), "length": tokenizer.model_max_length}
    torch.save(given, tmp_path / "given.pt")
    (tmp_path / "program.py").write_text(_PROGRAM)
    root = Path(__file__).resolve().parents[2]
    files = [str(tmp_path / name) for name in ("program.py", "given.pt", "found.pt")]
    subprocess.run([PYTHON, files[0], str(root), *files[1:]], check=True)
    found = torch.load(files[2], weights_only=True)
    expected = torch.cosine_similarity(found["image"], found["text"])
    torch.save({"state_dict": found["state_dict"]}, tmp_path / "HPS.pt")
    scores = Hpsv2(clip, str(tmp_path / "HPS.pt")).score(IMAGES, PROMPTS)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
