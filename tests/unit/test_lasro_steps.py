"""What LaSRO's anchor is distilled on."""

from collections.abc import Sequence
from typing import Any

import torch

from learner.group_batch import GroupBatch
from learner.methods.lasro_policy import AnchorData
from learner.methods.lasro_steps import LasroSteps
from learner.settings.lasro import Lasro


class Asked:
    """A policy that keeps what it is anchored by."""

    anchor: AnchorData | None = None

    def step(self, prompts: Sequence[str], anchor: AnchorData | None) -> dict[str, float]:
        self.anchor = anchor
        return {}


class Groups:
    """Two groups of three; every latent is its group, sample and step, as a number of 3 digits.

    In their last step the second sample of the first group is the best, and the third of the other;
    in the step before it is the first of both.
    """

    def fetch(self, tickets: Sequence[int]) -> GroupBatch:
        number = torch.arange(2).reshape(2, 1, 1) * 100 + torch.arange(3).reshape(3, 1) * 10
        latents = (number + torch.arange(2)).float()[..., None, None, None]
        last_GN = torch.tensor([[0.0, 2.0, -5.0], [1.0, -1.0, 3.0]])
        before_GN = torch.tensor([[9.0, 0.0, 1.0]] * 2)
        rewards_GNK = torch.stack([before_GN, last_GN], dim=2)
        return GroupBatch(tickets, ["a cat", "a dog"], latents, rewards_GNK)


def test_an_anchor_is_the_best_last_latent_of_each_group() -> None:
    policy, groups = Asked(), Groups()
    fakes: Any = policy, ["a bird"]
    steps = LasroSteps(Lasro(), *fakes)
    given: Any = groups
    steps.prepare(given, [0, 1])
    steps.step()
    assert policy.anchor is not None
    assert policy.anchor.latents_NCHW.flatten().tolist() == [11.0, 121.0]
    assert list(policy.anchor.prompts) == ["a cat", "a dog"]
