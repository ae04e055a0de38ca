"""The noise of a trajectory: a function of its group's seed, whoever draws it.

So a learner knows the noise of every step of a trajectory that a sampler drew, and stores none.
Shape suffix: G members of a group.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INITIAL_NOISE = 0
"""The stream of the noise that a member starts from; stream i + 1 is injected after step i."""


def member_noise(seed: int, member: int, shape: Sequence[int], stream: int) -> Tensor:
    """Standard normal float32 noise that depends on the arguments alone.

    Not on the device, the batch, the number of samplers, or what was drawn before. Philox takes
    the whole (seed, member, stream) as its key; torch's CPU generator uses only 32 bits of a
    seed, in which the groups of a long run would collide.

    Args:
        seed: 64 bit.
        member: of the group, below 2**32, as is `stream`.
    """
    key = np.array([seed, (member << 32) | stream], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def group_noise(
    seed: int, group_size: int, shape: Sequence[int], stream: int, *, shared: bool = False
) -> Tensor:
    """The noise of every member of a group, [G, *shape].

    Args:
        shared: all members get member 0's noise. For the initial noise this is on-policy
            exploration: the members then differ only by what is injected later.
    """
    members = [0] * group_size if shared else range(group_size)
    return torch.stack([member_noise(seed, member, shape, stream) for member in members])
