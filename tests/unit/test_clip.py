"""CLIP rewards on a tiny untrained model: transformers' own numbers, gradients, heads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from reward_servers.clip import ClipAesthetic, ClipFeatures, ClipScore
from reward_servers.registry import build_reward, check_differentiable, check_reward
from tests.tiny_clip import SIDE, WIDTH, head_layers, save_tiny_clip

PROMPTS = ["a red circle", "a blue square left of a green ring"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def head(tmp_path: Path) -> str:
    torch.save(head_layers(WIDTH, 8, 4, 1), tmp_path / "head.pth")
    return str(tmp_path / "head.pth")


def pictures(height: int, width: int, count: int = 2) -> np.ndarray:
    """Smooth ones: a resize in floats and one that rounds to bytes then agree closely."""
    coarse = torch.from_numpy(RNG.random((count, 3, 4, 4), dtype=np.float32))
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def of_transformers(clip: str, images: np.ndarray) -> dict[str, Tensor]:
    """Embeddings by transformers' own processor, tokenizer and model."""
    model = CLIPModel.from_pretrained(clip)
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(
        [Image.fromarray(image) for image in images], return_tensors="pt"
    )
    tokens = CLIPTokenizer.from_pretrained(clip)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    return {"image": out.image_embeds, "text": out.text_embeds}


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (96, 96), (80, 48), (48, 83)])
def test_a_score_is_the_cosine_that_transformers_tells(clip: str, shape: tuple[int, int]) -> None:
    images = pictures(*shape)
    theirs = of_transformers(clip, images)
    cosine = (theirs["image"] * theirs["text"]).sum(dim=1)
    # Theirs is resized in bytes, ours in floats, for a gradient has to pass.
    close = 1e-5 if shape == (SIDE, SIDE) else 5e-3
    np.testing.assert_allclose(ClipScore(clip).score(images, PROMPTS), cosine, atol=close)


def test_pixels_of_hard_edges_are_those_of_transformers_to_a_byte(clip: str) -> None:
    images = RNG.choice(np.array([0, 255], np.uint8), (2, 12, 12, 3)).repeat(8, 1).repeat(8, 2)
    seen: list[Tensor] = []
    reward = ClipScore(clip)
    reward.clip.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    reward.score(images, PROMPTS)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    theirs = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    off_BCHW = (seen[0] - theirs["pixel_values"]) * reward.clip.std
    assert off_BCHW.abs().max() < 1 / 255


def test_pictures_and_images_have_the_same_score(clip: str) -> None:
    images = pictures(40, 40)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    reward = ClipScore(clip)
    np.testing.assert_allclose(reward.score(images, PROMPTS), reward(tensor, PROMPTS), rtol=1e-6)


def test_a_gradient_reaches_every_corner_that_is_looked_at(clip: str) -> None:
    images = torch.rand(2, 3, 64, 96, requires_grad=True)
    ClipScore(clip)(images, PROMPTS).sum().backward()
    assert images.grad is not None
    # A square of the middle is cut out of a picture that is wider than high.
    assert (images.grad[:, :, ::63, 20:76] != 0).any(dim=(2, 3)).all()
    assert (images.grad[:, :, :, :8] == 0).all()


def test_a_step_up_the_gradient_raises_the_score(clip: str, head: str) -> None:
    for reward in (ClipScore(clip), ClipAesthetic(clip, head)):
        images = torch.full((1, 3, 32, 32), 0.5).requires_grad_()
        score = reward(images, PROMPTS[:1])
        (gradient,) = torch.autograd.grad(score.sum(), images)
        better = images.detach() + 0.02 * gradient / gradient.abs().max()
        assert reward(better, PROMPTS[:1]) > score


def test_no_weight_of_a_reward_is_trained(clip: str, head: str) -> None:
    reward = ClipAesthetic(clip, head)
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not reward.training


def test_a_long_prompt_is_cut_and_not_refused(clip: str) -> None:
    long = " ".join(["a red circle"] * 200)
    assert np.isfinite(ClipScore(clip).score(pictures(32, 32, 1), [long])).all()


def test_a_head_is_its_linear_layers_one_after_the_other(clip: str, head: str) -> None:
    images = pictures(SIDE, SIDE)
    values_BE = of_transformers(clip, images)["image"]
    state = torch.load(head, weights_only=True)
    for layer in ("layers.0", "layers.2", "layers.4"):
        values_BE = values_BE @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
    scores = ClipAesthetic(clip, head).score(images, PROMPTS)
    np.testing.assert_allclose(scores, values_BE[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ((WIDTH + 1, 4, 1), f"takes {WIDTH} numbers"),
        ((WIDTH, 4, 2), "ends in 2 numbers"),
        ((WIDTH,), "ends in 12 numbers"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    clip: str, tmp_path: Path, widths: tuple[int, ...], reason: str
) -> None:
    torch.save(head_layers(*widths), tmp_path / "head.pth")
    with pytest.raises(ValueError, match=reason):
        ClipAesthetic(clip, str(tmp_path / "head.pth"))


def test_code_in_a_file_of_weights_is_not_run(clip: str, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harmed",)  # type: ignore[return-value]

    torch.save({"layers.0.weight": Harm()}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="no weights of a head"):
        ClipAesthetic(clip, str(tmp_path / "head.pth"))
    assert not (tmp_path / "harmed").exists()


def test_a_check_looks_for_files_and_loads_nothing(
    clip: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipFeatures, "__init__", None)
    check_reward("clip-aesthetic", {"clip": clip, "head": head})
    check_reward("clip-score", {"clip": "openai/clip-vit-large-patch14"})
    with pytest.raises(ValueError, match=r"no head's weights at /nowhere\.pth"):
        check_reward("clip-aesthetic", {"clip": clip, "head": "/nowhere.pth"})
    with pytest.raises(ValueError, match=r"no CLIP model at '/nowhere'.*or a hub id"):
        check_reward("clip-score", {"clip": "/nowhere"})
    with pytest.raises(ValueError, match="missing a required argument: 'clip'"):
        check_reward("clip-score")


def test_a_folder_without_a_model_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"refuses its arguments: no CLIP model.*save_pretrained"):
        build_reward("clip-score", {"clip": str(tmp_path)})


def test_both_can_be_climbed_directly() -> None:
    check_differentiable("clip-score")
    check_differentiable("clip-aesthetic")
