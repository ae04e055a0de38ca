"""What a fetch of scored groups gives: their latents beside their rewards.

Shape suffixes: G groups, N samples of a group, K rewarded steps, C H W latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GroupBatch:
    """Scored groups. Sample (g, n) gave one clean latent and one reward at each of K steps."""

    tickets: Sequence[int]
    prompts: Sequence[str]
    latents_GNKCHW: Tensor
    rewards_GNK: Tensor

    def __post_init__(self) -> None:
        assert self.latents_GNKCHW.shape[:3] == self.rewards_GNK.shape

    def __getitem__(self, groups: slice) -> "GroupBatch":
        return GroupBatch(
            self.tickets[groups],
            self.prompts[groups],
            self.latents_GNKCHW[groups],
            self.rewards_GNK[groups],
        )
