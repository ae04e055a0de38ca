"""What each measure contributes to SQDF's speed and memory; a process of its own for every try.

The schemes are those of `deploy.bench.sqdf_schemes`, in turns; the reference code's way comes last
in every table, for the others to be compared with.
"""

import json
import subprocess
import sys
from typing import Any

from deploy.bench.sqdf_schemes import MEASURES, schemes
from deploy.bench.timing import Row, spread

TARGET = 0.40
"""Reward on fixed noise, from 0.28: before the network that is climbed begins to be misled."""
_MOST_STEPS = 200


def sqdf(*, repeats: int, threads: int, few: bool) -> list[Row]:
    """Policy steps a second and peak memory of every scheme; seconds to one reward of two.

    Args:
        few: as few steps and schemes as there can be, to try the benchmark itself.
    """
    reference, *others = MEASURES
    ways = [*(others[-1:] if few else others), reference]
    tries: list[dict[str, dict[str, Any]]] = []
    for repeat in range(repeats):
        order = ways if repeat % 2 == 0 else ways[::-1]
        tries.append({way: _try(way, threads=threads, few=few) for way in order})
    step_s = [
        {way: sum(found["seconds"].values()) / found["steps"] for way, found in each.items()}
        for each in tries
    ]
    rates = [{way: 1 / seconds for way, seconds in each.items()} for each in step_s]
    peaks = [{way: found["peak_mb"] for way, found in each.items()} for each in tries]
    rows = [
        *_rows("policy step of 48 states, its chains included", "steps/s", rates),
        *_rows("peak memory above the libraries'", "MB", peaks),
    ]
    if few:
        return rows
    ends = (others[-1], reference)
    reached = [
        {way: _to_target(way, threads=threads, seed=seed) for way in ends}
        for seed in range(repeats)
    ]
    steps = [{way: float(found["steps"]) for way, found in each.items()} for each in reached]
    seconds = [{way: found["reached_s"] for way, found in each.items()} for each in reached]
    return [
        *rows,
        *_rows(f"to a reward of {TARGET}", "s", seconds),
        *_rows(f"to a reward of {TARGET}", "policy steps", steps),
    ]


def _try(way: str, *, threads: int, few: bool) -> dict[str, Any]:
    """So many steps that rounds and steps have their shares."""
    per_round = schemes()[way].steps_per_round
    steps = 1 if few else max(3, per_round)
    return _scheme(way, "--steps", str(steps), "--threads", str(threads))


def _to_target(way: str, *, threads: int, seed: int) -> dict[str, Any]:
    limits = ("--steps", str(_MOST_STEPS), "--target", str(TARGET))
    found = _scheme(way, *limits, "--threads", str(threads), "--seed", str(seed))
    if found["reached_s"] is None:
        raise ValueError(
            f"{way} ended at a reward of {found['reward']:.3f} after {_MOST_STEPS} steps, "
            f"below {TARGET}"
        )
    return found


def _scheme(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "deploy.bench.sqdf_schemes", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _rows(work: str, unit: str, tries: list[dict[str, float]]) -> list[Row]:
    """A row a way; ratios to the reference's way within a repeat."""
    reference, *others = MEASURES
    return [
        Row(
            work,
            way,
            unit,
            spread([each[way] for each in tries]),
            None if way == reference else spread([each[way] / each[reference] for each in tries]),
        )
        for way in [*others, reference]
        if way in tries[0]
    ]
