"""What a user sets about the learner's ranks and their checkpoints."""

from typing import Literal

from pydantic import Field

from learner.settings.types import Count, Gpus, NodeLabels, NonNegative, Positive, Section

REDUCED_AT_ONCE = 500_000_000
"""Most gradients that ZeRO makes room for to reduce them: DeepSpeed's default, of which it would
take all however few are trained."""
LARGE = 100_000_000
"""Parameters whose update on a host takes one thread long."""


class Learner(Section):
    """The DeepSpeed ranks and their checkpoints."""

    ranks: Count = 1
    """Processes of the learner; a batch is cut evenly among them."""
    zero_stage: Literal[0, 1, 2] = 0
    """What DeepSpeed shards over the ranks: 1 the optimiser's state, 2 the gradients too."""
    offload: Literal["none", "cpu"] = "none"
    """`cpu`: DeepSpeed's ZeRO keeps the optimiser's state, and a copy of the weights that it
    updates, in the memory of the host, and updates there: less memory of the GPU for slower steps.
    It pays where all weights of a large UNet are trained. Needs zero_stage 1 or 2, and several
    threads."""
    threads: Count = 1
    """CPU threads of one rank's torch."""
    num_cpus: NonNegative = 1.0
    """Ray CPUs of one rank."""
    num_gpus: Gpus = 0.0
    """Ray GPUs of one rank."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Labels that a Ray node must have to hold a rank; none: any node will do."""
    grad_clip: Positive = 1.0
    """Largest gradient norm of a step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more
    time."""
    checkpoint_every_cycles: Count = 5
    """Cycles between two checkpoints; the end of a run always writes one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept."""
    sample_trace: bool = True
    """Write into `samples/` where every sample came from and which cycles drew it, some 300 bytes
    each, for `deploy.trace`."""
