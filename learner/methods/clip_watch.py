"""Whether a clip of probability ratios leaves a whole cycle without a gradient.

PPO's ratio is to the version that sampled, and 1 before a cycle's first update, so a cycle of
policy gradients never comes to this. PSO's is to the untouched policy and clipped either way: once
all rows are beyond it the reward teaches no more, and brings none of them back.
"""


class ClipWatch:
    """Looks at every update; tells when cycles begin, and cease, to be clipped as a whole.

    Args:
        is_all: whether the cycle before was.
    """

    def __init__(self, *, is_all: bool = False) -> None:
        self.is_all = is_all
        self._so_far = True

    def seen(self, clip_fraction: float, *, is_last: bool) -> bool | None:
        """Takes in an update.

        Args:
            clip_fraction: share of its rows that were held, over all ranks.
            is_last: of its cycle.

        Returns:
            After the last one, `is_all` where it has changed; None otherwise.
        """
        self._so_far = self._so_far and clip_fraction >= 1
        if not is_last:
            return None
        was_all, self.is_all, self._so_far = self.is_all, self._so_far, True
        return self.is_all if self.is_all != was_all else None
