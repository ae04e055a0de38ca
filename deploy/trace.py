"""`python -m deploy.trace RUN_FOLDER ID`: the life of one sample, from its ticket to the updates.

    $ python -m deploy.trace runs/mine 123.4
    0000000123.004   a red circle left of a blue square
    10:02:11.120     sampled by sampler-2.0 with policy version 5 (seed 1234), queued
    10:02:14.551     scored by reward-1.0 after 3.4 s: binding 0.83
    10:02:20.007     drawn by learner-0 after 5 cycles, so by the policy 0 versions later
    10:02:21.310     drawn by learner-0 after 6 cycles, so by the policy 1 version later

An id is a ticket and a member, as logs and the quarantine name it; a ticket alone is its member 0.
`--json` prints what is known as one object. Exit status 1: the run's files do not name it.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from buffer.records import record_id
from learner.sample_trace import SAMPLES_FOLDER, SCORED_FILE, draws_of, lines_about

_ID = re.compile(r"(\d{1,10})(?:\.(\d{1,3}))?", re.ASCII)
_DRAWN = re.compile(r"drawn-(\d+)\.jsonl", re.ASCII)


def life_of(folder: Path, name: str) -> dict[str, Any]:
    """`scored`, what the log said of a record last, as one that failed may have been released; and
    `draws`, each with its rank, in order of time. None: the log said nothing.

    Draws of cycles that a resumed run made once more are left out: their updates are gone.
    """
    samples = folder / SAMPLES_FOLDER
    scored = None
    for line in lines_about(samples / SCORED_FILE, name):
        scored = line
    draws = [
        {"rank": int(match[1]), **draw}
        for path in samples.glob("drawn-*.jsonl")
        if (match := _DRAWN.fullmatch(path.name))
        for draw in draws_of(path, name)
    ]
    draws = [
        {key: draw[key] for key in ("rank", "time_ms", "version")}
        | {"times": draw["ids"].count(name)}
        for draw in draws
    ]
    return {"id": name, "scored": scored, "draws": sorted(draws, key=lambda d: d["time_ms"])}


def in_words(life: Mapping[str, Any]) -> Iterator[str]:
    """A line an event."""
    scored = life["scored"]
    if scored is None:
        yield f"{life['id']}   is not scored yet, or the run has none of this name"
    elif "failed" in scored:
        yield f"{life['id']}   failed: {scored['failed']}"
    else:
        yield f"{life['id']}   {scored['prompt']}"
        yield (
            f"{_clock(scored['queued_ms'])}     sampled by {scored['sampler'] or 'nobody known'} "
            f"with policy version {scored['version']} (seed {scored['seed']}), queued"
        )
        waited = (scored["committed_ms"] - scored["queued_ms"]) / 1000
        rewards = ", ".join(f"{name} {_numbers(v)}" for name, v in scored["rewards"].items())
        yield (
            f"{_clock(scored['committed_ms'])}     scored by {scored['scorer'] or 'nobody known'} "
            f"after {waited:.1f} s: {rewards}"
        )
    for draw in life["draws"]:
        yield f"{_clock(draw['time_ms'])}     {_draw_in_words(draw, scored)}"


def _draw_in_words(draw: Mapping[str, Any], scored: Mapping[str, Any] | None) -> str:
    times = "" if draw["times"] == 1 else f" {draw['times']} times"
    text = f"drawn{times} by learner-{draw['rank']} after {draw['version']} cycles"
    if scored is None or "version" not in scored:
        return text
    later = max(0, draw["version"] - scored["version"])
    return f"{text}, so by the policy {later} version{'' if later == 1 else 's'} later"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _clock(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%H:%M:%S.%f")[:-3]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.trace",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("id", metavar="ID", help="of a record, such as 0000000123.004 or 123.4")
    parser.add_argument("--json", action="store_true", help="one object")
    options = parser.parse_args(arguments)
    match = _ID.fullmatch(options.id)
    if match is None:
        parser.error(f"{options.id!r} is no id; give a ticket and a member, such as 123.4")
    if not (options.folder / SAMPLES_FOLDER).is_dir():
        parser.error(
            f"{options.folder} has no folder {SAMPLES_FOLDER}/: it is no run's folder, the run has "
            "not come so far, or it has learner.sample_trace: false"
        )
    life = life_of(options.folder, record_id(int(match[1]), int(match[2] or 0)))
    text = json.dumps(life) if options.json else "\n".join(in_words(life))
    sys.stdout.write(text + "\n")
    return 0 if life["scored"] is not None or life["draws"] else 1


if __name__ == "__main__":
    sys.exit(main())
