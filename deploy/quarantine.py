"""`python -m deploy.quarantine RUN`: the records that could not be scored, and why.

    python -m deploy.quarantine runs/mine                              # list them
    python -m deploy.quarantine runs/mine --release 0000000012.003     # score one again
    python -m deploy.quarantine runs/mine --release all                # and all

Works beside a run, and on a run that is over, whose records the next start with --resume scores.
Each of its servers keeps the newest 1,000 with their latents (`MOST_QUARANTINED` in
buffer/replay_settings.py). The oldest latents go, and with them the chance to score a record again,
where a server has no room for new groups otherwise. Exit status: 0, or 2 if something given is
wrong.
"""

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from buffer.embedded import EmbeddedServer, url_of_running
from buffer.errors import ReplayError
from buffer.records import Quarantined, parse_record_id
from buffer.replay import Replay
from buffer.sharded_replay import connect_replay
from deploy.run.files import CONFIG_FILE
from deploy.run.replay_servers import replay_settings, server_folders
from deploy.settings.run_config import config_from_json


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
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
def opened(folder: Path, environ: Mapping[str, str]) -> Iterator[Replay]:
    """The replay of a run: on its Redis, on its embedded servers, or on some started for this.

    Raises:
        ValueError: there is no run in the folder.
        ReplayError: its Redis cannot be reached.
    """
    try:
        config = config_from_json((folder / CONFIG_FILE).read_text())
    except OSError as error:
        raise ValueError(f"{folder} holds no run ({error.strerror}); name its folder") from None
    with contextlib.ExitStack() as stack:
        urls = config.redis_url(environ) or " ".join(
            url_of_running(data) or stack.enter_context(EmbeddedServer(data, start_s=20)).url
            for data in server_folders(config, folder).values()
        )
        # Without patience: a person asks again.
        replay = connect_replay(replace(replay_settings(config, urls), outage_s=0.0))
        stack.callback(replay.close)
        yield replay


def _listed(replay: Replay) -> str:
    records = replay.quarantined()
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


def _released(replay: Replay, names: Sequence[str]) -> str:
    """`all`, or every id that is given; one that is no id at all ends it before any is released."""
    wanted = list(names)
    if wanted == ["all"]:
        wanted = [record.record_id for record in replay.quarantined()]
    for name in wanted:
        parse_record_id(name)
    count = replay.release(wanted)
    left = len(wanted) - count
    missed = f"; {left} are not in quarantine, or their latents are gone" if left else ""
    return f"{count} records will be scored again{missed}"


if __name__ == "__main__":
    sys.exit(main())
