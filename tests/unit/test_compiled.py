"""A compiled UNet computes what it computed, with its gradients, and keeps its names."""

import copy
import shutil

import pytest
import torch

from deploy.shapes.models import new_unet
from learner.policy.denoiser import Denoiser
from learner.policy.flops import FlopMeter, Metered
from learner.policy.text import Text
from learner.policy.trainable import make_trainable, trainable_arrays
from learner.settings.model import Model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile calls g++"),
    pytest.mark.filterwarnings("default"),
]


def test_a_compiled_unet_is_the_unet() -> None:
    torch.manual_seed(0)
    plain, model = new_unet(time_cond_proj_dim=8), Model(path="unused", compile=True)
    for parameter in make_trainable(plain, "lora", rank=2, alpha=2, targets="attention"):
        torch.nn.init.normal_(parameter, std=0.1)
    compiled = copy.deepcopy(plain)
    names = trainable_arrays(compiled).keys()
    x, t_B = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    text, guidance = Text(torch.randn(2, 5, 64)), torch.randn(2, 8)
    found = []
    for denoiser in (Denoiser(plain), Denoiser.of(compiled, model)):
        trained = [p for p in denoiser.parameters() if p.requires_grad]
        eps = denoiser(x, t_B, text, guidance)
        # Twice through one graph, as the anchor's weight is measured.
        losses = eps.square().mean(), eps.mean()
        gradients = [torch.autograd.grad(loss, trained, retain_graph=True) for loss in losses]
        found.append([eps, *(part for each in gradients for part in each)])
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert trainable_arrays(compiled).keys() == names


def test_what_a_compiled_network_costs_is_counted() -> None:
    torch.manual_seed(0)
    unet, meters = new_unet(), [FlopMeter(), FlopMeter()]
    x, t_B, text = torch.randn(2, 4, 8, 8), torch.tensor([999, 499]), Text(torch.randn(2, 5, 64))
    plain = Metered(Denoiser(unet), meters[0])
    compiled = Metered(Denoiser(copy.deepcopy(unet), compiled=True), meters[1])
    with torch.inference_mode():
        results = [network(x, t_B, text) for network in (plain, compiled)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)
    assert meters[1].total == meters[0].total > 0
