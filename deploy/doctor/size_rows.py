"""How many rows of network calls a process of a run holds at once; counts alone, no torch."""

from deploy.settings.run_config import RunConfig
from learner.settings.graph_rows import GraphRows


def graph_rows(config: RunConfig) -> GraphRows:
    """Of one rank's micro-batch."""
    return config.method.graph_rows(config.model, config.learner.ranks)


def surrogate_rows(config: RunConfig) -> int:
    """Latents of one rank's surrogate step, which go through in one call; 0: none is learned."""
    if (learning := config.alternation) is None:
        return 0
    groups = learning.surrogate.batch_groups // config.learner.ranks
    return groups * config.actors.group_size * config.rewarded_steps
