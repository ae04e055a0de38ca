"""The names of a run's keys in Redis.

All start with `fleetune:{run}:`. The braces are literal: a proxy or cluster that hashes keys keeps
those of one run together.

| key            | type       | content                                                           |
|----------------|------------|-------------------------------------------------------------------|
| tickets        | hash       | `next`: first of this server's never issued; `limit`: first not   |
|                |            | admitted; `shard`: `1/3` for the second of three servers;         |
|                |            | `format` of the records; `owner`: token of the run's last start   |
| versions       | sorted set | `limit:version` by limit: tickets below have that policy version  |
| leases         | sorted set | ticket by the server's time in ms at which its lease expires      |
| holders        | hash       | ticket -> lease id, and lease id -> ticket                        |
| open           | hash       | ticket -> its records that are not yet terminal                   |
| pending        | stream     | record ids to score; consumer group `scorers`                     |
| entries        | hash       | record id -> its entry in `pending`; exists until it is terminal  |
| attempts       | hash       | record id -> attempts that failed; exists until it is terminal    |
| log            | stream     | committed, failed, evicted: see `codec.decode_entry`              |
| live           | sorted set | record id by ticket and member: committed and not evicted         |
| places         | hash       | live record id -> its entry in `log`                              |
| priorities     | sorted set | live record id by priority                                        |
| generations    | hash       | live record id -> generation of its priority                      |
| sizes          | hash       | record id -> bytes of its payload; exists as long as that does    |
| counts         | hash       | issued, committed, failed, retried, evicted (records), live_bytes |
| quarantine     | sorted set | failed record id by the server's time in ms; the oldest go        |
| reasons        | hash       | record id in `quarantine` -> why it failed                        |
| record:ID      | hash       | `h` header, `n` scored latents, `0` `1` ... latents               |
| record:staged… | hash       | the same, on its way into the run; expires                        |

A ticket below `next` is leased (in `leases`), open (in `open`) or finished (in neither). Where a
run has several servers, each holds all of these keys for the tickets that are its own: every n-th.
"""

import re

_RUN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)

GROUP = "scorers"
"""The one consumer group of `pending`."""

NAMES = (
    "tickets",
    "versions",
    "leases",
    "holders",
    "open",
    "pending",
    "entries",
    "attempts",
    "log",
    "live",
    "places",
    "priorities",
    "generations",
    "sizes",
    "counts",
    "quarantine",
    "reasons",
)
"""In the order of KEYS of every script."""


def key(run: str, name: str) -> str:
    """The key `name` of a run; ValueError for a run name that could reach another run's keys."""
    if _RUN_NAME.fullmatch(run) is None:
        raise ValueError(f"run name {run!r:.80}: 1 to 64 letters, digits, '.', '_' or '-'")
    return f"fleetune:{{{run}}}:{name}"
