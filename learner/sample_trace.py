"""Where every sample came from and what learned from it, in files of the run's folder.

    samples/scored.jsonl    a line a record that the log tells of: who sampled it, with which
                            policy version, who scored it, when, and its rewards; or why it failed
    samples/drawn-0.jsonl   a line a draw of this rank: after which cycle, and of which records

A record's id is its trace id, from its ticket to the updates that it took part in; `deploy.trace`
reads the files. Lines are appended; a torn last one is cut off by the run that resumes.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from buffer.records import START, FailedEntry, IndexEntry, LogEntry, furthest, parse_position

SAMPLES_FOLDER = "samples"
SCORED_FILE = "scored.jsonl"


class SampleTrace:
    """One rank's writer.

    Args:
        folder: of the run.
        rank: all ranks tell what they draw; the first tells what is scored, too.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._drawn = folder / SAMPLES_FOLDER / drawn_name(rank)
        self._scored = folder / SAMPLES_FOLDER / SCORED_FILE if rank == 0 else None
        self._drawn.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(self._drawn)
        self._seen = parse_position(START)
        if self._scored is not None and (last := _cut_torn_line(self._scored)):
            self._seen = parse_position(last["position"])

    def told(self, entries: Sequence[LogEntry]) -> None:
        """Entries of the log; those that an earlier start wrote are not written again."""
        if self._scored is None:
            return
        lines = []
        for entry in entries:
            reached = furthest(self._seen, parse_position(entry.position))
            if reached != self._seen and isinstance(entry, IndexEntry | FailedEntry):
                lines.append(_line(entry))
            self._seen = reached
        _append(self._scored, lines)

    def drawn(self, policy_version: int, entries: Sequence[IndexEntry]) -> None:
        """Records that a step is made of.

        Args:
            policy_version: of the learner, which is the number of cycles behind it.
        """
        ids = [entry.record_id for entry in entries]
        told = {"time_ms": round(1000 * time.time()), "version": policy_version, "ids": ids}
        _append(self._drawn, [told])


def drawn_name(rank: int) -> str:
    """Name of a rank's file of draws."""
    return f"drawn-{rank}.jsonl"


def lines_about(path: Path, record_id: str) -> Iterator[dict[str, Any]]:
    """The lines of a file that name a record; a damaged one is passed over."""
    wanted = json.dumps(record_id)
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if wanted in line:
                    try:
                        told = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(told, dict):
                        yield told
    except FileNotFoundError:
        return


def _line(entry: IndexEntry | FailedEntry) -> dict[str, Any]:
    told: dict[str, Any] = {"id": entry.record_id, "position": entry.position}
    if isinstance(entry, FailedEntry):
        return {**told, "failed": entry.reason}
    return {
        **told,
        "prompt": entry.prompt,
        "seed": entry.seed,
        "version": entry.policy_version,
        "sampler": entry.sampler,
        "queued_ms": entry.queued_ms,
        "scorer": entry.scorer,
        "committed_ms": entry.committed_ms,
        "rewards": dict(entry.rewards),
    }


def _append(path: Path, told: Sequence[dict[str, Any]]) -> None:
    if told:
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def _cut_torn_line(path: Path) -> dict[str, Any] | None:
    """Leaves whole lines alone in a file; the last of them, None: there is none."""
    last, end = None, 0
    try:
        with path.open("r+b") as file:
            for line in file:
                try:
                    last = json.loads(line) if line.endswith(b"\n") else last
                except ValueError:
                    break
                end += len(line) if line.endswith(b"\n") else 0
            file.truncate(end)
    except FileNotFoundError:
        return None
    return last
