"""A record and its rewards, for the tests of their bytes."""

import numpy as np

from buffer.records import Record, Scores

RECORD = Record(
    record_id="0000000007.001",
    ticket=7,
    member=1,
    prompt="a red circle",
    policy_version=3,
    seed=5,
    steps=(1, 2),
    scored=(0, 1),
    latents=tuple(np.arange(24, dtype=np.float16).reshape(2, 1, 3, 4)),
    sampler="sampler-2.0",
)
SCORES = Scores({"jpeg": (0.5, 0.25), "shapes": (1.0, -2.0)})
