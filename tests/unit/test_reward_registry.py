"""Kinds, module:Class paths and the errors of both; JPEG sizes against files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reward_servers.jpeg import JpegSize
from reward_servers.registry import build_reward, path_of

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_a_kind_is_built_with_its_arguments() -> None:
    built = build_reward("jpeg-size", {"quality": 10, "sign": 1})
    assert built.score(PICTURE[None], [""]) == JpegSize(10, sign=1).score(PICTURE[None], [""])


def test_a_path_of_ones_own_is_imported() -> None:
    assert isinstance(build_reward("reward_servers.jpeg:JpegSize"), JpegSize)


@pytest.mark.parametrize("kind", ["jpeg", "", "a:b:c", "module.Class", "os:system()", ":X", "m:"])
def test_an_unknown_kind_says_what_is_shipped(kind: str) -> None:
    with pytest.raises(ValueError, match=r"unknown reward .*shapes-binding.*module:Class"):
        path_of(kind)


def test_a_path_is_checked_without_importing_it() -> None:
    assert path_of("not_installed_here.rewards:Mine") == "not_installed_here.rewards:Mine"


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot import 'not_installed_here'.*install it"):
        build_reward("not_installed_here:Mine")


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"'reward_servers.jpeg' has no class 'Nothing'"):
        build_reward("reward_servers.jpeg:Nothing")


def test_an_unknown_argument_says_what_the_reward_takes() -> None:
    with pytest.raises(ValueError, match=r"'qualty'.*it takes quality: int = 95, sign: int = -1"):
        build_reward("jpeg-size", {"qualty": 3})


def test_what_has_no_score_is_no_reward() -> None:
    with pytest.raises(ValueError, match=r"OrderedDict, which has no method score"):
        build_reward("collections:OrderedDict")


def test_jpeg_kilobytes_are_those_of_the_file(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture.jpg", quality=80)
    size = (tmp_path / "picture.jpg").stat().st_size
    assert JpegSize(80, sign=1).score(PICTURE[None], [""])[0] == pytest.approx(size / 1000)


def test_the_default_sign_prefers_the_plainer_picture() -> None:
    plain, noise = JpegSize().score(np.stack([np.zeros_like(PICTURE), PICTURE]), ["", ""])
    assert noise < plain < 0


@pytest.mark.parametrize(("quality", "sign"), [(0, -1), (96, -1), (50, 0)])
def test_jpeg_arguments_out_of_range_are_refused(quality: int, sign: int) -> None:
    with pytest.raises(ValueError, match=r"(quality|sign) is"):
        JpegSize(quality, sign)
