"""What SQDF climbs: gradients reach the latents, stop before what is not trained, and are right."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.shapes.models import PIPELINES, new_unet
from learner.exploration import Climb
from learner.methods.climbed import DecodedReward, SurrogateReward
from learner.policy.components import PipelineFolder, decode_images, decode_latents
from learner.policy.precision import round_frozen
from learner.policy.text import Text
from learner.settings.surrogate import Surrogate
from learner.surrogate import new_surrogate
from reward_servers.aesthetic import ShapesAesthetic

PROMPTS = ["a red circle left of a blue square", "a cyan bar above a red ring"]
TEXT = Text(torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def vae() -> Any:
    return PipelineFolder.locate(str(PIPELINES / "base")).vae().requires_grad_(False)


def latents(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


class Redness(nn.Module):
    """Mean of the red channel, less the others'."""

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        means = images_BCHW.mean(dim=(2, 3))
        return means[:, 0] - means[:, 1:].mean(dim=1)

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255
        return self.forward(images, prompts).numpy()


def test_a_decoded_image_lies_in_0_to_1_and_its_pixels_are_the_reward_servers(vae: Any) -> None:
    wild = latents(scale=8.0)
    with torch.no_grad():
        images = decode_images(vae, wild)
        raw = vae.decode(wild / vae.config["scaling_factor"]).sample
    assert float(raw.abs().max()) > 1
    assert 0 <= float(images.min()) < 0.2 < 0.9 < float(images.max()) <= 1
    # Once, and not twice: -1 is black and +1 is white.
    torch.testing.assert_close(images, (raw / 2 + 0.5).clamp(0, 1))
    pixels = decode_latents(vae, wild)
    assert np.abs(pixels / 255 - images.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6


def test_pictures_lie_in_memory_in_the_order_of_their_axes(vae: Any) -> None:
    pixels = decode_latents(vae, latents(scale=4.0))
    assert pixels.flags.c_contiguous
    with torch.no_grad():
        images = (decode_images(vae, latents(scale=4.0)) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(pixels, images.transpose(0, 2, 3, 1))
    assert np.concatenate([pixels, pixels]).flags.c_contiguous


def test_a_decoder_in_bf16_makes_nearly_the_same_pictures_with_weights_of_either_type() -> None:
    whole: Any = PipelineFolder.locate(str(PIPELINES / "base")).vae().requires_grad_(False)
    rounded = copy.deepcopy(whole)
    round_frozen(rounded, "bf16")
    assert rounded.post_quant_conv.weight.dtype == torch.bfloat16
    found = []
    for vae in (whole, rounded):
        x = latents().requires_grad_()
        images = decode_images(vae, x, "bf16")
        assert images.dtype == torch.float32
        images.square().sum().backward()
        found.append((images, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    apart = decode_images(whole, latents()) - found[0][0].detach()
    assert 0 < float(apart.abs().mean()) < 2 / 255
    assert float(apart.abs().max()) < 16 / 255


def test_a_decoded_reward_asks_the_decoder_in_its_precision(vae: Any) -> None:
    values = [
        DecodedReward(vae, {"red": Redness()}, lambda _, x: x, precision=precision)(
            latents(), TEXT, PROMPTS
        )
        for precision in ("fp32", "bf16")
    ]
    assert not torch.equal(*values)
    torch.testing.assert_close(*values, atol=0.01, rtol=0)


def test_a_decoded_reward_says_what_its_server_says(vae: Any) -> None:
    both = {"red": Redness(), "taste": ShapesAesthetic()}
    reward = DecodedReward(vae, both, lambda name, x: (0.5 if name == "red" else 2.0) * x)
    values = reward(latents(), TEXT, PROMPTS)
    pixels = decode_latents(vae, latents())
    served = 0.5 * Redness().score(pixels, PROMPTS) + 2 * ShapesAesthetic().score(pixels, PROMPTS)
    np.testing.assert_allclose(values.numpy(), served, atol=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_a_decoded_reward_is_its_slope(vae: Any, checkpointing: bool) -> None:
    rewards = {"red": Redness()}
    reward = DecodedReward(vae, rewards, lambda _, x: x, checkpointing=checkpointing)
    x = latents().requires_grad_()
    reward(x, TEXT, PROMPTS).sum().backward()
    assert x.grad is not None
    step = 1e-2 * x.grad / x.grad.norm()
    with torch.no_grad():
        up, down = (reward(x + s, TEXT, PROMPTS).sum() for s in (step, -step))
    slope = (up - down) / (2 * step.norm())
    assert float(slope) == pytest.approx(float(x.grad.norm()), rel=0.02)
    assert all(p.grad is None for p in vae.parameters())


def test_a_surrogates_reward_has_a_gradient_to_latents_and_none_to_the_surrogate() -> None:
    surrogate = new_surrogate("conv", new_unet(), num_steps=1, heads=2, timestep=0, seed=1)
    for parameter in surrogate.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    x = latents().requires_grad_()
    settings = Surrogate(heads=2, pessimism=0.5)
    SurrogateReward(Climb(surrogate, settings))(x, TEXT, PROMPTS).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in surrogate.parameters())
