"""DreamSim beside its authors' package, on random weights in files as their releases have them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.evaluation.distances import build_distance, check_distance
from reward_servers.image_reward_model import import_torchvision

# What the package and its libraries say of each other is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")
MODEL = "clip_vitb32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("dreamsim") is None:
        pytest.skip("needs `pip install dreamsim`")
    import_torchvision()
    from dreamsim.config import dreamsim_args  # pyright: ignore[reportMissingImports]
    from dreamsim.feature_extraction import (  # pyright: ignore[reportMissingImports]
        vision_transformer,
    )
    from dreamsim.model import PerceptualModel  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("dreamsim")
    torch.manual_seed(0)
    tower = vision_transformer.vit_base(patch_size=32)
    tower.pos_drop = torch.nn.LayerNorm(tower.embed_dim)
    state = {**tower.state_dict(), "proj": torch.randn(768, 512) / 768**0.5}
    torch.save({"state_dict": state}, path / f"{MODEL}_pretrain.pth.tar")
    options = dreamsim_args["model_config"][MODEL]
    model = PerceptualModel(**options, device="cpu", load_dir=str(path), normalize_embeds=True)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(path / f"{MODEL}_single_lora")
    return path


@pytest.mark.slow
def test_a_distance_is_the_packages_own(folder: Path) -> None:
    from dreamsim import dreamsim  # pyright: ignore[reportMissingImports]
    from PIL import Image

    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8) for _ in range(2))
    b[2] = a[2]
    distance: Any = build_distance("dreamsim", {"folder": str(folder), "model": MODEL})
    found = distance.distance(a, b)
    loaded: Any = dreamsim(cache_dir=str(folder), dreamsim_type=MODEL, device="cpu")
    model, prepare = loaded
    with torch.no_grad():
        expected = [
            float(model(*(prepare(Image.fromarray(image)) for image in pair)))
            for pair in zip(a, b, strict=True)
        ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[:2].min() > 1e-3 > abs(found[2])
    features = distance.features(np.concatenate([a, b]))
    by_features = distance.between(features, np.arange(3), np.arange(3, 6))
    np.testing.assert_allclose(by_features, found, atol=1e-6)


def test_what_is_lacking_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "model": MODEL}
    if importlib.util.find_spec("dreamsim") is None:
        with pytest.raises(ValueError, match="pip install dreamsim"):
            check_distance("dreamsim", args)
        return
    with pytest.raises(ValueError, match=r"lacks clip_vitb32_pretrain\.pth\.tar, clip_vitb32_sin"):
        check_distance("dreamsim", args)
    with pytest.raises(ValueError, match="dreamsim has clip_vitb32, open_clip_vitb32, ensemble"):
        check_distance("dreamsim", {**args, "model": "dino"})
