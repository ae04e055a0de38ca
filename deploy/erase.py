"""`python -m deploy.erase NAME`: a run's keys leave the Redis servers of REDIS_URL.

    REDIS_URL=... python -m deploy.erase mine

For servers of your own, where the records of a run stay when it has ended, and its name with them;
an embedded server's lie in the run's folder and go with that. The same URL as the run's, with its
user and TLS. What is left of the run in `$FLEETUNE_RUNS` or `./runs` is not touched: resumed, it
goes on from its checkpoint with new samples.

A run whose folder a driver holds is refused; one of which this machine does not see the folder is
not noticed. Exit status: 0, or 2 if something given is wrong or a server does not answer.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from buffer.errors import ReplayError
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from buffer.urls import check_url, urls_in
from deploy.run.folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.erase",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the run")
    run = parser.parse_args(arguments).name
    try:
        count = erase(run, os.environ)
    except (ReplayError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"removed {count:,} keys of the run {run!r}\n")
    return 0


def erase(run: str, environ: Mapping[str, str]) -> int:
    """Removes all keys of a run; returns how many there were.

    Raises:
        ValueError: no server is given, or the run is under way.
        ReplayError: a server does not answer, or refuses this user.
    """
    urls = urls_in(environ.get("REDIS_URL", ""))
    if not any(urls):
        raise ValueError(
            "REDIS_URL is not set: give the servers that the run was on; an embedded server's "
            "records go with the run's folder"
        )
    for url in urls:
        check_url(url)
    folder = RunFolder(Path(environ.get("FLEETUNE_RUNS") or "runs") / run)
    if folder.is_held():
        raise ValueError(f"the run in {folder.path} is under way: stop it first")
    return sum(_erase_on(url, run) for url in urls)


def _erase_on(url: str, run: str) -> int:
    # One server at a time, and not as a part of the replay: nothing has to fit together any more.
    replay = RedisReplay(ReplaySettings(url=url, run=run, capacity_records=1))
    with contextlib.closing(replay):
        return replay.erase()


if __name__ == "__main__":
    sys.exit(main())
