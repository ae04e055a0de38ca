"""`python -m deploy.quarantine RUN`: the records that could not be scored, and why.

    python -m deploy.quarantine runs/mine                              # list them
    python -m deploy.quarantine runs/mine --release 0000000012.003     # score one again
    python -m deploy.quarantine runs/mine --release all                # and all

Works beside a run, and on a run that is over, whose records the next start with --resume scores.
The replay keeps the newest 1,000 with their latents. Exit status: 0, or 2 if something given is
wrong.
"""

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from buffer.embedded import EmbeddedServer, url_of_running
from buffer.errors import ReplayError
from buffer.records import Quarantined, parse_record_id
from buffer.redis_replay import RedisReplay, ReplaySettings
from deploy.report_data import CONFIG_FILE
from deploy.run_config import RunConfig, config_from_json

_MOST = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.quarantine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--release", nargs="+", default=[], metavar="ID", help="ids, or all")
    options = parser.parse_args(arguments)
    try:
        with opened(options.folder, os.environ) as replay:
            text = _released(replay, options.release) if options.release else _listed(replay)
    except (ReplayError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    return 0


@contextlib.contextmanager
def opened(folder: Path, environ: Mapping[str, str]) -> Iterator[RedisReplay]:
    """The replay of a run: on its Redis, on its embedded server, or on one started for this.

    Raises:
        ValueError: there is no run in the folder.
        ReplayError: its Redis cannot be reached.
    """
    try:
        config = config_from_json((folder / CONFIG_FILE).read_text())
    except OSError as error:
        raise ValueError(f"{folder} holds no run ({error.strerror}); name its folder") from None
    with contextlib.ExitStack() as stack:
        url = config.redis_url(environ) or url_of_running(folder / "redis")
        if url is None:
            url = stack.enter_context(EmbeddedServer(folder / "redis", start_s=20)).url
        replay = RedisReplay.connect(_settings(config, url))
        stack.callback(replay.close)
        yield replay


def _settings(config: RunConfig, url: str) -> ReplaySettings:
    return ReplaySettings(
        url=url,
        run=config.name,
        capacity_records=config.replay.capacity_groups * config.actors.group_size,
        capacity_bytes=config.capacity_bytes,
        max_attempts=config.replay.max_attempts,
    )


def _listed(replay: RedisReplay) -> str:
    records = replay.quarantined(_MOST)
    if not records:
        return "no record is in quarantine"
    reasons = Counter(record.reason for record in records)
    return "\n".join(
        [
            *(_line(record) for record in records),
            "",
            *(f"{count} × {reason}" for reason, count in reasons.most_common()),
        ]
    )


def _line(record: Quarantined) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.failed_at))
    return f"{record.record_id}  {when}  {record.size_bytes:>9,} bytes  {record.reason}"


def _released(replay: RedisReplay, names: Sequence[str]) -> str:
    """`all`, or every id that is given; one that is no id at all ends it before any is released."""
    wanted = list(names)
    if wanted == ["all"]:
        wanted = [record.record_id for record in replay.quarantined(_MOST)]
    for name in wanted:
        parse_record_id(name)
    count = replay.release(wanted)
    left = len(wanted) - count
    missed = f"; {left} are not in quarantine, or their latents are gone" if left else ""
    return f"{count} records will be scored again{missed}"


if __name__ == "__main__":
    sys.exit(main())
