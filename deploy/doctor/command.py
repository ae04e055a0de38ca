"""What a run needs, and what is missing here for it, without starting anything.

    python -m deploy.doctor CONFIG [a.b=value ...]          looks at this machine
    python -m deploy.doctor --plan CONFIG [a.b=value ...]   sizes, operations and memory
    python -m deploy.doctor --cluster CONFIG [a.b=value ...]   looks at every node of a Ray cluster

Without --plan, it checks what `deploy.launch --check` does, and the versions of Python and of the
libraries, the GPUs that are booked, the memory of the plan against theirs, the disk below the
run's folder, whether Redis can hold the replay and keeps it, and whether what has a hub id is in
the hub's cache; every finding tells its remedy. What is looked at is the machine that it runs on.

With --cluster, submitted as a job or given an --address, each node of a Ray cluster is asked as
well: its versions, its GPUs, its clock, whether it shares the runs' folder; whether all that the
config books finds a place; and the plan's memory is compared with the smallest GPU of the nodes
that a role may be placed on. Nodes that an autoscaler would add are not counted.

With --plan, sizes come from the shapes of the networks alone, without weights and without the
hub: `model.path` is a folder, or one of the hub ids in
`deploy/doctor/architectures/models.json`. What is left out, `deploy.doctor.size_plan` says.

--json prints one line of JSON instead. Exit status: 0 nothing found, 1 findings, 2 what is given
is wrong.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy.doctor.gpu_memory import (
    memory_findings,
    memory_notes,
    shares,
    smallest_gpu_bytes,
)
from deploy.doctor.main_memory import main_memory_bytes, main_memory_findings
from deploy.doctor.units import in_bytes, in_flops
from deploy.run.bookings import Booking, Room, booking_findings, bookings
from deploy.run.plan import check_environment
from deploy.settings.run_config import RunConfig, load_config
from learner.settings.learner import LARGE

_PACKAGE = "fleetune"
_LEAST_FREE_BYTES = 5 * 2**30
_LEFT_OUT = (
    "Memory is of one process. Left out: text states that are kept (model.text_cache_mb at most), "
    "and what a GPU needs besides: about a GiB and a tenth more."
)
_PARTS_OF_A_ROW = {
    "policy": "by the policy",
    "untracked": "without a gradient",
    "frozen": "by what the gradient passes",
    "reward": "by decoder or surrogate",
}


def version_findings() -> Iterator[str]:
    """Versions outside of the ranges that the installed package declares."""
    try:
        told = importlib.metadata.metadata(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        yield f"{_PACKAGE} is not installed here, so what it needs is not known: call make setup"
        return
    python, allowed = platform.python_version(), told["Requires-Python"]
    if not SpecifierSet(allowed).contains(python, prereleases=True):
        yield f"Python is {python}, but {_PACKAGE} needs {allowed}: set it up with such a Python"
    for text in importlib.metadata.requires(_PACKAGE) or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        asked = f"{need.name}{need.specifier}"
        remedy = f"pip install -c constraints.txt '{asked}'"
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{need.name} is not installed, but {_PACKAGE} needs {asked}: {remedy}"
            continue
        if not need.specifier.contains(version, prereleases=True):
            yield f"{need.name} is {version}, but {_PACKAGE} needs {asked}: {remedy}"


def gpu_findings(config: RunConfig, gpus: int) -> Iterator[str]:
    """Processes that book more GPUs than this machine has, or else more than it has for all.

    Args:
        gpus: how many that are.
    """
    booked = _bookings(config)
    if not any(booked.values()):
        return
    if max(booked.values()) <= gpus:
        room = Room("here", os.cpu_count() or 1, gpus)
        yield from booking_findings(_without_labels(config), [room])
        return
    for section, share in booked.items():
        if share > gpus:
            yield (
                f"{section}.num_gpus is {share:g}, and this machine, the only one that was looked "
                f"at, has {gpus} GPUs that torch can use: run this where they are, install a build "
                f"of torch for them, or set {section}.num_gpus=0 to compute on CPUs"
            )


def _without_labels(config: RunConfig) -> list[Booking]:
    """Bookings on the one machine that is looked at, where no node has any."""
    return [replace(each, labels={}) for each in bookings(config)]


def _bookings(config: RunConfig) -> dict[str, float]:
    """GPUs of one process, by the section that says so."""
    return {each.section: each.gpus for each in bookings(config)}


def disk_findings(
    folder: Path, checkpoint_bytes: int, keep: int, replay_bytes: int = 0
) -> Iterator[str]:
    """Less free space below a run's folder than its checkpoints, replay and pictures may take.

    Args:
        keep: checkpoints that are kept; the oldest goes when a further one is whole.
        replay_bytes: of a server of the run's own, whose file is there twice while it is rewritten.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = max(_LEAST_FREE_BYTES, checkpoint_bytes * (keep + 1) + 2 * replay_bytes)
    if free < needed:
        yield (
            f"folder: {there} has {in_bytes(free)} free, and a run with {keep} checkpoints should "
            f"find {in_bytes(needed)}: make room, set folder to another disk, or lower "
            f"learner.keep_checkpoints{' or replay.capacity_groups' if replay_bytes else ''}"
        )


def offload_findings(config: RunConfig, trained: int) -> Iterator[str]:
    """An optimizer on the host whose one thread would hold up every step.

    Args:
        trained: parameters.
    """
    learner = config.learner
    if learner.offload == "cpu" and learner.threads == 1 and trained > LARGE:
        yield (
            f"learner.offload is cpu, and one thread would update {trained / 1e6:,.0f} M "
            "parameters at every step: raise learner.threads and learner.num_cpus, or set "
            "learner.offload=none"
        )


def examine(
    config: RunConfig, environ: Mapping[str, str], nodes: Sequence[Room] | None = None
) -> tuple[list[str], list[str]]:
    """Findings on this machine, and notes of what could not be looked at.

    Args:
        nodes: of a cluster, whose GPUs the run is to use; None: it is to use this machine's.
    """
    from deploy.doctor.hub import hub_findings
    from deploy.doctor.meta_networks import Networks, parameters_of
    from deploy.doctor.redis_server import capacity_findings, examine_servers, replay_bytes
    from deploy.doctor.reward_networks import uncounted
    from deploy.doctor.scorers import SCORERS
    from deploy.doctor.size_plan import checkpoint_bytes, host_bytes, latent_values, size_plan

    notes, checkpoint, latent = [], 0, 0
    found = [*check_environment(config, environ), *version_findings()]
    if nodes is None:
        found += gpu_findings(config, _gpus_here())
    try:
        latent = latent_values(config)
        networks = Networks(config)
        found += offload_findings(config, parameters_of(networks.policy, trained=True))
        checkpoint = checkpoint_bytes(config, networks)
        wanted, rooms = _placed(config, nodes)
        found += main_memory_findings(host_bytes(config, networks), wanted, rooms)
        booked = shares(wanted, rooms)
        if any(share.room for share in booked):
            found += memory_findings(config, size_plan(config, networks)["bytes"], booked)
        # Without a cluster, a GPU that is booked and not there is a finding already.
        told = [share for share in booked if nodes is not None or share.room is not None]
        notes += memory_notes(told, {role: uncounted(config, role) for role in SCORERS})
    except ValueError as error:
        notes.append(f"memory was not planned: {error}")
    has_own = config.redis_url(environ) is None and config.replay.append_only
    found += disk_findings(
        config.run_folder(environ),
        checkpoint,
        config.learner.keep_checkpoints,
        replay_bytes(config, latent) if has_own and latent else 0,
    )
    found += capacity_findings(config, latent)
    found += examine_servers(config, environ, latent)
    missing, downloads = hub_findings(config, environ)
    return [*found, *missing], [*notes, *downloads]


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def _placed(config: RunConfig, nodes: Sequence[Room] | None) -> tuple[list[Booking], list[Room]]:
    """What processes book, and the nodes of a cluster, or else this machine."""
    if nodes is not None:
        return bookings(config), [replace(node, name=f"node {node.name}") for node in nodes]
    here = Room(
        "this machine",
        math.inf,
        _gpus_here(),
        gpu_bytes=smallest_gpu_bytes(),
        memory_bytes=main_memory_bytes(),
    )
    return _without_labels(config), [here]


def table(plan: Mapping[str, Any]) -> str:
    """A size plan for a terminal, stage by stage."""
    flops, sizes, rows, host = plan["flops"], plan["bytes"], plan["rows"], plan["host_bytes"]
    first, *evaluator = _stage(
        sizes["evaluator"], f"of {rows['evaluator']} rows", host["evaluator"]
    )
    lines = [
        ("model", plan["model"], ""),
        ("", "UNet", f"{plan['unet_params'] / 1e6:,.1f} M parameters"),
        ("", "trained", f"{plan['trained_params'] / 1e6:,.1f} M parameters"),
        ("sampling", "one picture", in_flops(flops["sampling_picture"])),
        *_stage(sizes["sampler"], f"of {rows['sampler']} rows", host["sampler"]),
        ("scoring", "decoding one picture", in_flops(flops["decoding_picture"])),
        *_stage(
            sizes["reward_server"], f"of {rows['reward_server']} pictures", host["reward_server"]
        ),
        ("evaluating", *first[1:]),
        *evaluator,
        ("learning", "one row of a policy step", in_flops(flops["policy_row"])),
        *(
            ("", f"of it {what}", in_flops(flops[f"policy_row_{name}"]))
            for name, what in _PARTS_OF_A_ROW.items()
            if flops[f"policy_row_{name}"]
        ),
    ]
    if "surrogate_row" in flops:
        surrogate = f"one of {rows['surrogate']} rows of a surrogate step"
        lines.append(("", surrogate, in_flops(flops["surrogate_row"])))
    lines += _stage(sizes["learner"], f"of {rows['policy']} rows", host["learner"])
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    rows_of_text = (
        f"{stage:<{widths[0]}}  {what:<{widths[1]}}  {size}".rstrip() for stage, what, size in lines
    )
    uncounted = plan["uncounted_rewards"]
    networks = [f"The networks of {', '.join(uncounted)} are left out, too."] if uncounted else []
    return "\n".join([*rows_of_text, _LEFT_OUT, *networks])


def _stage(sizes: Mapping[str, int], rows: str, host: int) -> list[tuple[str, str, str]]:
    named = {"activations": f"activations {rows}"}
    return [
        *(
            ("", named.get(name, name.replace("_", " ")), in_bytes(size))
            for name, size in sizes.items()
            if size
        ),
        ("", "main memory, while it is built", in_bytes(host)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if options.plan:
            from deploy.doctor.size_plan import size_plan

            plan = size_plan(config)
            sys.stdout.write((json.dumps(plan) if options.json else table(plan)) + "\n")
            return 0
        findings, nodes = list[str](), None
        if options.cluster:
            from deploy.doctor.cluster import look_at_cluster

            findings, nodes = look_at_cluster(config, os.environ, options.address)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    own, notes = examine(config, os.environ, nodes)
    findings += own
    if options.json:
        sys.stdout.write(json.dumps({"findings": findings, "notes": notes}) + "\n")
    else:
        lines = [*findings, *notes] if findings else ["nothing found", *notes]
        sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(findings))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a preset, such as deploy/configs/smoke.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replaces one setting")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--address", default="auto", help="of the cluster, where it is not found")
    parser.add_argument("--json", action="store_true")
    return parser.parse_intermixed_args(arguments)
