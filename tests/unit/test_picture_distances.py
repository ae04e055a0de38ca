"""Distances of pictures: LPIPS beside its formula, and anybody's own class."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deploy.evaluation.distances import (
    PictureDistance,
    build_distance,
    check_distance,
    mean_distance,
)
from deploy.run.plan import check_environment
from deploy.settings.run_config import load_config

PYTHON = os.environ.get("FLEETUNE_LPIPS_PYTHON", "")
SHAPES = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}
"""Of AlexNet's convolutions, by torchvision's numbers."""


class Brighter:
    """How much brighter a picture is on average."""

    def distance(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> np.ndarray:
        means = [images.reshape(len(images), -1).mean(axis=1) for images in (a_NHWC, b_NHWC)]
        return np.abs(means[0] - means[1]).astype(np.float32)


class PairByPair:
    """Another distance, asked for every pair by itself."""

    def __init__(self, other: PictureDistance) -> None:
        self._other = other

    def distance(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> np.ndarray:
        return self._other.distance(a_NHWC, b_NHWC)


class OnceEach(Brighter):
    """`Brighter` by its features, and how many pictures it was shown."""

    seen = 0

    def features(self, images_NHWC: np.ndarray) -> np.ndarray:
        self.seen += len(images_NHWC)
        return images_NHWC.reshape(len(images_NHWC), -1).mean(axis=1)

    def between(
        self, features: np.ndarray, first_N: np.ndarray, second_N: np.ndarray
    ) -> np.ndarray:
        return np.abs(features[first_N] - features[second_N]).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights by chance, in files as their authors name them."""
    folder, generator = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    backbone: dict[str, Tensor] = {"classifier.1.weight": torch.zeros(2, 2)}
    heads = {}
    for number, (place, shape) in enumerate(SHAPES.items()):
        fan_in = shape[1] * shape[2] * shape[3]
        weight = torch.randn(shape, generator=generator) / fan_in**0.5
        backbone[f"features.{place}.weight"] = weight
        backbone[f"features.{place}.bias"] = torch.randn(shape[0], generator=generator) / 10
        heads[f"lin{number}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    torch.save(backbone, folder / "alexnet.pth")
    torch.save(heads, folder / "alex.pth")
    return {"backbone": str(folder / "alexnet.pth"), "heads": str(folder / "alex.pth")}


def pictures(count: int, seed: int = 0, side: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def lpips_by_hand(files: dict[str, str], a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    """The paper's equation 1 with the constants of its code, in float64, layer by layer."""
    backbone = torch.load(files["backbone"], weights_only=True)
    heads = torch.load(files["heads"], weights_only=True)

    def maps(image_HWC: np.ndarray) -> list[Tensor]:
        x = torch.tensor(image_HWC / 255 * 2 - 1).permute(2, 0, 1)[None]
        for channel, (shift, scale) in enumerate(
            zip((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450), strict=True)
        ):
            x[:, channel] = (x[:, channel] - shift) / scale
        found = []
        for number, place in enumerate(SHAPES):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (
                backbone[f"features.{place}.{name}"].double() for name in ("weight", "bias")
            )
            stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[number]
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    total = 0.0
    for number, (of_a, of_b) in enumerate(zip(maps(a_HWC), maps(b_HWC), strict=True)):
        weight = heads[f"lin{number}.model.1.weight"].double()[0, :, 0, 0]
        total += float(((of_a - of_b).square() * weight[:, None, None]).sum(dim=1).mean())
    return total


def test_lpips_is_its_formula(files: dict[str, str]) -> None:
    distance = build_distance("lpips", files)
    a, b = pictures(3), pictures(3, seed=1)
    expected = [lpips_by_hand(files, *pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(distance.distance(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(distance.distance(b, a), expected, rtol=1e-4)
    assert not distance.distance(a, a).any()
    many = distance.distance(np.repeat(a, 50, axis=0), np.repeat(b, 50, axis=0))
    np.testing.assert_allclose(many, np.repeat(expected, 50), rtol=1e-4)


_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from reward_servers.image_reward_model import import_torchvision
import_torchvision()
import lpips, numpy, shutil, torch
torch.manual_seed(0)
# The package holds the heads; the backbone would be fetched.
model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
# Its layers have torchvision's numbers, each in one of five slices.
backbone = {"features." + name.split(".", 1)[1]: w for name, w in model.net.state_dict().items()}
torch.save(backbone, "alexnet.pth")
shutil.copy(lpips.__path__[0] + "/weights/v0.1/alex.pth", "alex.pth")
pairs = zip(numpy.load("a.npy"), numpy.load("b.npy"))
with torch.no_grad():
    found = [float(model(lpips.im2tensor(a), lpips.im2tensor(b))) for a, b in pairs]
numpy.save("found.npy", numpy.array(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON, reason="FLEETUNE_LPIPS_PYTHON names no Python of an environment with lpips"
)
def test_lpips_is_that_of_the_real_package(tmp_path: Path) -> None:
    """With the published heads, on a backbone by chance."""
    a = pictures(3, side=64)
    b = np.concatenate([pictures(1, seed=1, side=64), a[1:2] // 2, 255 - a[2:]])
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([PYTHON, "-c", _PROGRAM, root], cwd=tmp_path, check=True)
    expected = np.load(tmp_path / "found.npy")
    assert expected.min() > 1e-3
    files = {"backbone": str(tmp_path / "alexnet.pth"), "heads": str(tmp_path / "alex.pth")}
    found = build_distance("lpips", files).distance(a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_mean_is_over_the_pairs_of_a_prompt_and_never_between_two() -> None:
    levels: Sequence[int] = (0, 10, 30, 100, 100, 100)
    images = np.stack([np.full((4, 4, 3), level, dtype=np.uint8) for level in levels])
    assert mean_distance(Brighter(), images, per_prompt=3) == pytest.approx((10 + 30 + 20) / 6)


def test_a_picture_s_features_are_computed_once_for_all_of_its_pairs() -> None:
    images, distance = pictures(10, side=4), OnceEach()
    assert mean_distance(distance, images, per_prompt=5) == pytest.approx(
        mean_distance(Brighter(), images, per_prompt=5)
    )
    assert distance.seen == 10


def test_lpips_by_features_is_that_of_the_pairs(files: dict[str, str]) -> None:
    images, distance = pictures(24), build_distance("lpips", files)
    of_pairs = mean_distance(PairByPair(distance), images, per_prompt=12)  # 66 pairs: two batches
    assert mean_distance(distance, images, per_prompt=12) == pytest.approx(of_pairs, abs=1e-6)


_PLACED = """
class Placed:
    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def distance(self, a, b):
        raise NotImplementedError
"""


def test_a_distance_that_takes_a_device_is_told_the_evaluators(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "placed_distance.py").write_text(_PLACED)
    monkeypatch.syspath_prepend(tmp_path)
    told: Any = build_distance("placed_distance:Placed", {}, "cuda")
    named: Any = build_distance("placed_distance:Placed", {"device": "cpu"}, "cuda")
    assert (told.device, named.device) == ("cuda", "cpu")
    check_distance("lpips", {**files, "device": "cpu"})
    lpips: Any = build_distance("lpips", files, "meta")
    weights = [*lpips._layers.parameters(), *lpips._heads.parameters()]
    assert {weight.device.type for weight in weights} == {"meta"}


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        ("lpipps", {}, "unknown distance 'lpipps'; shipped are dreamsim, lpips"),
        ("lpips", {"backbone": "nowhere.pth", "heads": "nowhere.pth"}, r"nowhere\.pth of lpips do"),
        ("lpips", {"net": "vgg"}, "it takes backbone: str, heads: str"),
        ("no_such_module:Thing", {}, "cannot import 'no_such_module' for distance"),
        ("pathlib:PurePath", {}, "has no method distance"),
    ],
)
def test_a_wrong_distance_is_an_error_before_anything_starts(
    kind: str, args: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_distance(kind, args)


def test_a_config_s_distances_are_looked_at(tmp_path: Path) -> None:
    setting = "evaluation.diversity.distances={mine: {kind: lpipps}}"
    config = load_config("deploy/configs/smoke.yaml", [setting, f"folder={tmp_path}"])
    problems = [p for p in check_environment(config, {}) if "distances" in p]
    assert len(problems) == 1
    assert problems[0].startswith("evaluation.diversity.distances.mine: unknown distance")


def test_files_that_hold_something_else_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="holds no weights"):
        build_distance("lpips", {**files, "heads": str(broken)})
    swapped = {"backbone": files["heads"], "heads": files["backbone"]}
    with pytest.raises(ValueError, match="does not hold the weights of LPIPS"):
        build_distance("lpips", swapped)
