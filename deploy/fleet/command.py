"""`python -m deploy.fleet --run NAME`: a run's fleets, seen and scaled while it is under way.

    python -m deploy.fleet --run mine                              # how they are
    python -m deploy.fleet --run mine scale samplers=8 rewards=2   # have so many from now on
    python -m deploy.fleet --run mine scale rewards.clip=4         # of a reward's own fleet
    python -m deploy.fleet --run mine auto samplers=1-16           # as many as the learner needs
    python -m deploy.fleet --run mine top                          # every second, until Ctrl-C

Runs on a machine of the run's Ray cluster; a local run's is found through its folder. Actors that
are too many finish their batch and give their tickets back before they end; new ones wait for a
place, for which Ray's autoscaler is asked. The rule of `auto` is in
`deploy/fleet/autoscale.py`; `scale` takes a role back from it.
"""

import argparse
import json
import logging
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from deploy.fleet.desk import DESK, ROLES, Wish, check_wishes
from deploy.run.files import CLUSTER_FILE
from deploy.run.progress import STARTING

log = logging.getLogger(__name__)
_USAGE_ERROR = 2
_ANSWER_S = 15.0
_KNOCK_S = 5.0
_HEEDED_S = 20.0
_LOOK_EVERY_S = 1.0
_UNKNOWN = "–"
_FORMS = {"scale": re.compile(r"(\d+)"), "auto": re.compile(r"(\d+)-(\d+)")}
_EXAMPLES = {
    "scale": "role=number, such as samplers=8",
    "auto": "role=least-most, such as samplers=1-16",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2: something given is wrong, or there is no such run under way."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    options = _options(arguments)
    try:
        wishes = wishes_of(options.wishes, options.command)
        desk = _desk_of(options.run, options.address)
        if options.command == "top":
            return _top(desk)
        page = _heeded(desk, wishes) if wishes else _page_of(desk)
    except ValueError as error:
        log.error("%s", error)
        return _USAGE_ERROR
    Console().print(rendered(page))
    return 0


def wishes_of(words: Sequence[str], command: str) -> dict[str, Wish]:
    """Wishes by role, of words such as `samplers=8` for scale or `samplers=1-16` for auto.

    Raises:
        ValueError: a word that is none, a role twice, or a number that there cannot be.
    """
    if command not in _FORMS:
        return {}
    wishes: dict[str, Wish] = {}
    for word in words:
        role, _, number = word.partition("=")
        if not (match := _FORMS[command].fullmatch(number)):
            raise ValueError(f"{word!r}: {command} takes {_EXAMPLES[command]}")
        if role in wishes:
            raise ValueError(f"{role} is given twice: {' '.join(words)}")
        numbers = tuple(int(part) for part in match.groups())
        wishes[role] = numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    if not wishes:
        raise ValueError(
            f"{command} what? Give {_EXAMPLES[command]}; a run has {' and '.join(ROLES)}"
        )
    check_wishes(wishes)
    return wishes


def rendered(page: Mapping[str, Any]) -> Group:
    """A page of the desk for a terminal."""
    parts: list[Any] = [_headline(page)]
    for role, fleet in page.get("fleets", {}).items():
        parts.append(_fleet_table(role, fleet))
    if page.get("decisions"):
        parts.append(_decisions_table(page["decisions"]))
    return Group(*parts)


def _headline(page: Mapping[str, Any]) -> str:
    cycle = f"cycle {page.get('cycle', 0)}/{page.get('cycles', _UNKNOWN)}"
    counts = [f"{name} {page.get(name, _UNKNOWN)}" for name in ("samples", "queue", "failures")]
    return " | ".join([str(page.get("stage", STARTING)), cycle, *counts])


def _fleet_table(role: str, fleet: Mapping[str, Any]) -> Table:
    workers = fleet["workers"]
    at_work = sum(row["state"] == "working" for row in workers.values())
    title = f"{role}: {at_work} of {fleet['wanted']} at work"
    if bounds := fleet.get("bounds"):
        title += f", {bounds['least']} to {bounds['most']} by what is measured"
    table = Table(title=title, title_justify="left")
    table.add_column("actor")
    table.add_column("state")
    for column in ("images/s", "images", "waited", "failures"):
        table.add_column(column, justify="right")
    for name, row in workers.items():
        rate = row.get("rate")
        table.add_row(
            name,
            row["state"],
            _UNKNOWN if rate is None else f"{rate:.1f}",
            _count(row.get("images")),
            _waited(row),
            _count(row.get("failures")),
        )
    return table


def _waited(row: Mapping[str, Any]) -> str:
    """Share of its time that a worker waited for work."""
    stages = {name: value for name, value in row.items() if name.endswith("_s") and value}
    total = sum(stages.values())
    return f"{100 * stages.get('wait_s', 0.0) / total:.0f} %" if total else _UNKNOWN


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else _UNKNOWN


def _decisions_table(decisions: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="decisions", title_justify="left", show_header=False)
    for each in decisions:
        at = time.strftime("%H:%M:%S", time.localtime(each["time"]))
        table.add_row(at, f"{each['role']} {each['from']} -> {each['to']}", each["why"])
    return table


def _heeded(desk: Any, wishes: Mapping[str, Wish]) -> dict[str, Any]:
    """The page once the run has heard it.

    Raises:
        ValueError: it has no such fleet, or does not hear.
    """
    if strangers := set(wishes) - set(_page_of(desk).get("fleets", wishes)):
        there = ", ".join(_page_of(desk)["fleets"])
        raise ValueError(f"the run has no fleet {' '.join(sorted(strangers))}; it has {there}")
    _answer(desk.ask.remote(dict(wishes)))
    deadline = time.monotonic() + _HEEDED_S
    while time.monotonic() < deadline:
        page = _page_of(desk)
        fleets = page.get("fleets", {})
        if all(role in fleets and _is_heeded(fleets[role], it) for role, it in wishes.items()):
            return page
        time.sleep(0.2)
    raise ValueError(
        f"the run has not heeded it within {_HEEDED_S:.0f} s, as while it is starting or ending; "
        "the wish stands: look again with --run NAME"
    )


def _is_heeded(fleet: Mapping[str, Any], wish: Wish) -> bool:
    if isinstance(wish, int):
        return fleet["wanted"] == wish and fleet["bounds"] is None
    return fleet["bounds"] == {"least": wish[0], "most": wish[1]}


def _top(desk: Any) -> int:
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            try:
                live.update(rendered(_page_of(desk)), refresh=True)
                time.sleep(_LOOK_EVERY_S)
            except KeyboardInterrupt:
                return 0
            except ValueError:
                log.info("the run has ended")
                return 0


def _page_of(desk: Any) -> dict[str, Any]:
    return _answer(desk.page.remote())


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=_ANSWER_S)
    except RayError as error:
        raise ValueError(f"the run's controller does not answer: {error}") from error


def _desk_of(run: str, address: str | None) -> Any:
    """Handle of the run's desk.

    Raises:
        ValueError: no cluster, or no such run in it.
    """
    _join(run, address)
    try:
        return ray.get_actor(DESK, namespace=run)
    except ValueError:
        named: Any = ray.util.list_named_actors(all_namespaces=True)
        runs = sorted({actor["namespace"] for actor in named if actor["name"] == DESK})
        there = f"under way are {', '.join(runs)}" if runs else "none is under way"
        raise ValueError(f"no run named {run!r} is under way on this cluster; {there}") from None


def _join(run: str, address: str | None) -> None:
    options: dict[str, Any] = {"address": address} if address else _local_run(run)
    options = options or {"address": os.environ.get("RAY_ADDRESS") or "auto"}
    try:
        _knock(options["address"])
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster answers at {options['address']} ({str(error).splitlines()[0]}): the "
            "run may have ended; run this on a machine of its cluster, or give --address"
        ) from error


def _local_run(run: str) -> dict[str, Any]:
    """How the head of a local run is joined; empty for others."""
    file = Path(os.environ.get("FLEETUNE_RUNS") or "runs") / run / CLUSTER_FILE
    if not file.is_file():
        return {}
    known = json.loads(file.read_text(encoding="utf-8"))
    # It has a loopback address of its own, by which Ray tells nodes apart.
    if not known["node_ip"].startswith("127."):
        return {}
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    return {"address": known["address"], "_node_ip_address": known["node_ip"]}


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=_KNOCK_S).close()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, metavar="NAME")
    parser.add_argument(
        "--address", help="of Ray, host:port; default: the run's, or this machine's"
    )
    parser.add_argument(
        "command", nargs="?", choices=("show", "scale", "auto", "top"), default="show"
    )
    parser.add_argument("wishes", nargs="*", metavar="ROLE=NUMBER")
    options = parser.parse_args(arguments)
    if options.wishes and options.command not in _FORMS:
        parser.error(f"only {' and '.join(_FORMS)} take {' '.join(options.wishes)}")
    return options
