"""`python -m deploy.bench`: how fast the parts are, beside a plain way of doing the same work.

    --only NAME        one benchmark, or several: --only codec --only replay
    --repeats N        rounds that the medians are taken of
    --pipeline FOLDER  two-step model to sample, decode and train
    --run FOLDER       finished run whose time is told apart (default: the newest in runs/)
    --reverb PYTHON    of an environment with dm-reverb[tensorflow]==0.14.0, the replay's peer

Run it on a machine that does nothing else. Writes JSON and a Markdown page into
deploy/bench/results; the last line of stdout is the medians as JSON.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.bench import results
from deploy.bench.timing import Row, Work, measure
from deploy.run.job_log import set_up

# Not __name__, which is __main__ here.
log = logging.getLogger("deploy.bench")
_ROOT = Path(__file__).resolve().parents[2]
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    # Before anything heavy is imported: torch's threads and the libraries' messages.
    set_up()
    _set_threads(options.threads)
    medians: dict[str, Any] = {}
    status = 0
    for name in options.only or BENCHMARKS:
        log.info("benchmark: %s", name)
        before = results.machine()
        try:
            rows = BENCHMARKS[name](options)
        except ValueError as error:
            # The others' results are worth keeping.
            sys.stderr.write(f"{name}: {error}\n")
            status = _USAGE_ERROR
            continue
        settings = {"repeats": options.repeats, "threads": options.threads}
        results.write(options.out, name, rows, machine_before=before, settings=settings)
        medians[name] = {f"{row.work}, {row.way}, {row.unit}": row.rate["median"] for row in rows}
    page = results.write_page(options.out)
    log.info("results: %s", page)
    sys.stdout.write(json.dumps(medians, ensure_ascii=False) + "\n")
    return status


def _records(part: str, options: argparse.Namespace) -> list[Row]:
    from deploy.bench import records

    return _measured(getattr(records, part)(), options)


def _replay(options: argparse.Namespace) -> list[Row]:
    from deploy.bench.replay import replay

    return replay(options.reverb, repeats=options.repeats, few=options.few)


def _shards(options: argparse.Namespace) -> list[Row]:
    from deploy.bench.shards import shards

    return shards(repeats=options.repeats, few=options.few)


def _policy(part: str, options: argparse.Namespace) -> list[Row]:
    from deploy.bench import policy

    return _measured(getattr(policy, part)(options.pipeline), options)


def _learner(options: argparse.Namespace) -> list[Row]:
    from deploy.bench.learner_steps import steps

    teacher = options.pipeline.parent / "base"
    teacher = teacher if teacher.is_dir() else options.pipeline
    return steps(options.pipeline, teacher, repeats=options.repeats, few=options.few)


def _sqdf(options: argparse.Namespace) -> list[Row]:
    from deploy.bench.sqdf import sqdf

    return sqdf(repeats=options.repeats, threads=options.threads, few=options.few)


def _pace(options: argparse.Namespace) -> list[Row]:
    from deploy.bench.pace import pace

    return pace(repeats=options.repeats, few=options.few)


def _run(options: argparse.Namespace) -> list[Row]:
    from deploy.bench.whole_run import newest, shares

    folder = options.run or newest(_ROOT / "runs")
    if folder is None:
        log.warning("no run to look back at: give --run FOLDER")
        return []
    return shares(folder)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "codec": lambda options: _records("codec", options),
    "replay": _replay,
    "shards": _shards,
    "index": lambda options: _records("index", options),
    "sampler": lambda options: _policy("sampler", options),
    "decode": lambda options: _policy("decode", options),
    "rewards": lambda options: _policy("rewards", options),
    "learner": _learner,
    "sqdf": _sqdf,
    "pace": _pace,
    "run": _run,
}


def _measured(works: Iterator[Work], options: argparse.Namespace) -> list[Row]:
    least_s = 0.0 if options.few else options.least_s
    return [
        row for work in works for row in measure(work, repeats=options.repeats, least_s=least_s)
    ]


def _set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--least-s", type=float, default=0.5, help="shortest time of one repeat")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--few", action="store_true", help="least work: to try the command itself")
    parser.add_argument(
        "--pipeline", type=Path, default=_ROOT / "deploy" / "shapes" / "pipelines" / "lcm"
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--reverb", type=Path, metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads are at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
