"""`python -m deploy.bench.scale`: does a large fleet make as much more, for no more a sample?

    --records N    largest run whose costs are measured (default 1,000,000)
    --samplers N   largest fleet (default 64)
    --repeats N    of every measure (default 3)
    --few          least work: to try the command itself

Three parts: samplers and rewards that only wait, 1 to 64 of them; what a sample costs the server
and the learner after 10³ to 10⁶; what an actor costs the driver. Writes into deploy/bench/results;
the last line of stdout is JSON:

    linear_share_at_64   rate of the largest fleet, of so many times the rate of one
    samples_per_s        of every fleet
    us_per_sample        records issued before -> microseconds of processor time a sample, of the
                         server and the learner, who serve all samplers
    growth               the same costs over those of a small run that took turns
    us_by_part           the same by part; sampler and reward server grow with the fleets
    us_per_lease         leases that are held -> microseconds of the server for one more
    ms_per_look          actors -> milliseconds of the driver, twice a second
    saturation           samples a second at which server or learner are busy all the time, and
                         actors at which the driver is
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from buffer.embedded import EmbeddedServer
from deploy.bench import results
from deploy.bench.scale_costs import SERVING, costs, lease_cost
from deploy.bench.scale_fleet import LOOK_EVERY_S, by_actor_ms, look_costs
from deploy.bench.scale_samplers import rate
from deploy.bench.timing import Row, spread
from deploy.run.job_log import set_up

# Not __name__, which is __main__ here.
log = logging.getLogger("deploy.bench.scale")
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_FLEETS = (1, 4, 16, 64)
_DRIVEN = (8, 16, 32)
_HELD = (1, 64, 1000)
_CAPACITY = 1200
_TOTAL = " + ".join(SERVING)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    set_up()
    before = results.machine()
    figures: dict[str, Any] = {}
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleetune-scale-")))
        server = stack.enter_context(EmbeddedServer(folder))
        rows += _samplers(server.url, options, figures)
        rows += _costs(server.url, options, figures)
    rows += _driver(options, figures)
    figures["saturation"] = _saturation(figures)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    results.write(
        options.out,
        "scale",
        rows,
        machine_before=before,
        settings=settings | {"load_1min_after": results.machine()["load_1min"]},
        command="deploy.bench.scale",
    )
    results.write_page(options.out)
    sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")
    return 0


def _samplers(url: str, options: argparse.Namespace, figures: dict[str, Any]) -> list[Row]:
    """Fleets in turns, so that each is compared with one sampler of the same minutes."""
    fleets = [size for size in _FLEETS if size < options.samplers] + [options.samplers]
    rounds, latency_s = (4, 0.2) if options.few else (8, 1.5)
    rate_FR = np.zeros((len(fleets), options.repeats))
    for repeat in range(options.repeats):
        for i, size in enumerate(fleets):
            rate_FR[i, repeat] = rate(url, size, rounds=rounds, latency_s=latency_s)
            log.info("%d samplers: %.1f samples/s", size, rate_FR[i, repeat])
    share_FR = rate_FR / rate_FR[0] / np.array(fleets)[:, None]
    figures[f"linear_share_at_{fleets[-1]}"] = _rounded(np.median(share_FR[-1]))
    figures["samples_per_s"] = {
        size: _rounded(np.median(rate_R)) for size, rate_R in zip(fleets, rate_FR, strict=True)
    }
    return [
        Row(
            "samplers that wait",
            str(size),
            "samples/s",
            spread(rate_FR[i]),
            spread(share_FR[i]) if i else None,
        )
        for i, size in enumerate(fleets)
    ]


def _costs(url: str, options: argparse.Namespace, figures: dict[str, Any]) -> list[Row]:
    sizes = [size for size in _SIZES if size < options.records] + [options.records]
    found = costs(
        url,
        sizes,
        capacity=_CAPACITY,
        groups=20 if options.few else 200,
        repeats=options.repeats,
        say=log.info,
    )
    rows: list[Row] = []
    figures |= {"us_per_sample": {}, "growth": {}, "us_by_part": {}}
    for size, of_size, medians in found:
        rows += of_size
        total = of_size[-1]
        assert total.ratio is not None
        figures["us_per_sample"][size] = medians.pop(_TOTAL)
        figures["growth"][size] = total.ratio["median"]
        figures["us_by_part"][size] = medians
    leases = 20 if options.few else 1000
    held = {n: lease_cost(url, n, leases=leases, repeats=options.repeats) for n in _HELD}
    figures["us_per_lease"] = {n: row.rate["median"] for n, row in held.items()}
    return [*rows, *held.values()]


def _driver(options: argparse.Namespace, figures: dict[str, Any]) -> list[Row]:
    sizes, looks = ((1, 2), 2) if options.few else (_DRIVEN, 40)
    rows = dict(look_costs(sizes, looks=looks))
    figures["ms_per_look"] = {size: row.rate["median"] for size, row in rows.items()}
    return list(rows.values())


def _saturation(figures: dict[str, Any]) -> dict[str, float]:
    """Where each of the single processes would have no time left, at the largest run's costs."""
    of_part = list(figures["us_by_part"].values())[-1]
    by_actor, constant = by_actor_ms(figures["ms_per_look"])
    actors = (1000 * LOOK_EVERY_S - constant) / by_actor if by_actor > 0 else float("inf")
    return {
        "redis_samples_per_s": _rounded(1e6 / of_part["redis"]),
        "learner_samples_per_s": _rounded(1e6 / of_part["learner"]),
        "driver_ms_by_actor": _rounded(by_actor),
        "driver_actors": _rounded(actors),
    }


def _rounded(value: float | np.floating) -> float:
    return float(f"{value:.4g}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=int, default=_SIZES[-1])
    parser.add_argument("--samplers", type=int, default=_FLEETS[-1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--few", action="store_true", help="least work: to try the command itself")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.records < 100 or options.samplers < 2:
        parser.error("--repeats is at least 1, --records 100, --samplers 2")
    return options


if __name__ == "__main__":
    sys.exit(main())
