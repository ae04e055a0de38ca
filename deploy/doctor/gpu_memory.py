"""Whether the plan of a process fits its share of a GPU, wherever it may be placed.

The smallest GPU of all those nodes decides: where Ray places a process, nobody knows before.
Rewards with a fleet of their own are left out. A process needs more than its plan tells, which is
of tensors alone: see `needed_bytes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deploy.doctor.units import in_bytes
from deploy.run.bookings import Booking, Room
from deploy.settings.run_config import RunConfig

PLANS = {
    "actors": "sampler",
    "scoring": "reward_server",
    "evaluation": "evaluator",
    "learner": "learner",
}
"""Processes of a size plan, by the section that says what one of them books."""


@dataclass(frozen=True)
class Share:
    """What a process of a size plan books of a GPU.

    Args:
        process: as the plan calls it.
        room: that with the smallest GPU of those that it may be in; None: none has told of one.
    """

    process: str
    booking: Booking
    room: Room | None


def smallest_gpu_bytes() -> int:
    """Memory of the smallest GPU that torch can use here; 0: of none."""
    import torch

    gpus = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(i).total_memory for i in gpus), default=0)


def shares(wanted: Sequence[Booking], rooms: Sequence[Room]) -> list[Share]:
    """Of all processes that have a plan and book a GPU or a part of one."""
    return [
        Share(PLANS[booking.section], booking, booking.least(rooms, lambda room: room.gpu_bytes))
        for booking in wanted
        if booking.section in PLANS and booking.gpus > 0
    ]


def needed_bytes(planned: int) -> int:
    """Of a GPU, for so many bytes of tensors: a tenth more, of which its allocator can make no
    use, and a GiB for the process's context and its kernels. Both are guesses; nothing is
    measured."""
    return planned + planned // 10 + 2**30


def memory_findings(
    config: RunConfig, sizes: Mapping[str, Mapping[str, int]], found: Sequence[Share]
) -> Iterator[str]:
    """Processes whose plan is larger than their share of a GPU.

    Args:
        sizes: `bytes` of a size plan.
    """
    lowered = {
        "sampler": "lower actors.groups_per_batch",
        "reward_server": "lower scoring.max_batch",
        "evaluator": "set evaluation.max_batch lower",
        "learner": _smaller_learner(config),
    }
    for share in found:
        if share.room is None:
            continue
        section, booked = share.booking.section, share.booking.gpus
        planned, had = sizes[share.process]["total"], share.room.gpu_bytes * min(booked, 1.0)
        needed = needed_bytes(planned)
        if needed > had:
            yield (
                f"the plan of one {_name(share)} is {in_bytes(planned)}, about {in_bytes(needed)} "
                f"with what a GPU needs besides, and its {section}.num_gpus "
                f"of {booked:g} is {in_bytes(had)} of {share.room.name}'s GPU: "
                f"{lowered[share.process]}, or book a larger share or GPU"
            )


def memory_notes(found: Sequence[Share], uncounted: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Processes whose plan was compared with nothing, or lacks the networks of rewards.

    Args:
        uncounted: names of such rewards, by the section of the process.
    """
    if unknown := [_name(share) for share in found if share.room is None]:
        yield (
            f"memory was not compared for {', '.join(unknown)}: no node that may hold one has told "
            "the size of its GPUs"
        )
    for share in found:
        if names := uncounted.get(share.booking.section):
            yield (
                f"the plan of one {_name(share)} lacks the networks of {', '.join(names)}, whose "
                f"sizes are not known: see that {share.booking.section}.num_gpus leaves room"
            )


def _name(share: Share) -> str:
    return share.process.replace("_", " ")


def _smaller_learner(config: RunConfig) -> str:
    means = []
    if not config.learner.gradient_checkpointing:
        means.append("set learner.gradient_checkpointing=true")
    if config.model.precision == "fp32":
        means.append("set model.precision=bf16")
    if config.method.takes_parts:
        means.append("raise method.micro_batches")
    else:
        means.append("lower method.policy_batch")
    if config.alternation is not None:
        means.append("lower method.surrogate.batch_groups")
    return ", ".join(means)
