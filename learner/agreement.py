"""How a surrogate agrees with the truth on fresh samples: in rank within a prompt, and in size.

Shape suffixes: G groups, N samples of a group.
"""

import numpy as np
from scipy.stats import rankdata


def rank_correlation(scores_GN: np.ndarray, rewards_GN: np.ndarray) -> float:
    """Spearman's ρ within a group, mean over the groups: 1 the same order, −1 the reverse.

    Equal values share the mean of their ranks. A group whose scores or rewards are all equal has
    no order and is left out.

    Returns:
        nan without any group that has an order.
    """
    ranks = [rankdata(values_GN, axis=1) for values_GN in (scores_GN, rewards_GN)]
    own, true = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    norms_G = np.sqrt((own**2).sum(axis=1) * (true**2).sum(axis=1))
    ordered_G = norms_G > 0
    if not ordered_G.any():
        return float("nan")
    return float(((own * true).sum(axis=1)[ordered_G] / norms_G[ordered_G]).mean())


def standard_gap(estimates_GN: np.ndarray, rewards_GN: np.ndarray) -> float:
    """Mean of a standardised estimate less the standardised reward.

    Above 0 the surrogate promises more than there is, in standard deviations of the reward of the
    untouched policy's samples: the sign of a policy that climbs the surrogate's errors.
    """
    return float(np.mean(estimates_GN - rewards_GN))
