"""Where every sample came from and who drew it to learn from, in files of the run's folder.

    samples/scored.jsonl    a line a record that the log tells of: who sampled it, with which
                            policy version, who scored it, when, and its rewards; or why it failed
    samples/drawn-0.jsonl   a line a draw of this rank: after which cycle, and of which records;
                            and a line a start

A record's id is its trace id, from its ticket to the updates that it took part in; `deploy.trace`
reads the files. Lines are appended; a torn last one is cut off by the run that resumes.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from buffer.records import START, FailedEntry, IndexEntry, LogEntry, furthest, parse_position

log = logging.getLogger(__name__)
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
        self._is_full = False
        self._append(self._drawn, [{"started_ms": round(1000 * time.time())}])
        self._seen = parse_position(START)
        if self._scored is not None and (last := _cut_torn_line(self._scored)):
            self._seen = parse_position(json.loads(last)["position"])

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
        self._append(self._scored, lines)

    def drawn(self, policy_version: int, moment: int, entries: Sequence[IndexEntry]) -> None:
        """Records that a step is made of.

        Args:
            policy_version: of the learner, which is the number of cycles behind it.
            moment: number of the part of training; no checkpoint lies within one, but for those
                below 0.
        """
        told = {
            "time_ms": round(1000 * time.time()),
            "version": policy_version,
            "moment": moment,
            "ids": [entry.record_id for entry in entries],
        }
        self._append(self._drawn, [told])

    def _append(self, path: Path, told: Sequence[dict[str, Any]]) -> None:
        """A disk that takes no more ends the trace, and not the training."""
        if self._is_full or not told:
            return
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self._is_full = True
            log.warning("no more samples are traced: %s", error)


def drawn_name(rank: int) -> str:
    """Name of a rank's file of draws."""
    return f"drawn-{rank}.jsonl"


def lines_about(path: Path, record_id: str) -> Iterator[dict[str, Any]]:
    """The lines of a file that name a record; a damaged one is passed over."""
    wanted = json.dumps(record_id)
    return _lines(path, lambda line: wanted in line)


def _lines(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if is_wanted(line):
                    try:
                        told = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(told, dict):
                        yield told
    except FileNotFoundError:
        return


def draws_of(path: Path, record_id: str) -> list[dict[str, Any]]:
    """Of one rank, the draws of a record whose updates count.

    A start goes on from a checkpoint, so what was drawn before it at the same or a later moment is
    drawn once more: the first draw after a start tells from which. What was drawn before the first
    cycle is all kept.
    """
    found: list[dict[str, Any]] = []
    has_started = False
    for told in _lines(path, lambda line: True):
        if "started_ms" in told:
            has_started = True
            continue
        if not {"version", "moment", "ids"} <= told.keys():
            continue
        if has_started:
            found = [draw for draw in found if draw["moment"] < max(told["moment"], 0)]
            has_started = False
        if record_id in told["ids"]:
            found.append(told)
    return found


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


def _cut_torn_line(path: Path) -> str | None:
    """Leaves whole lines alone in a file; the last of them, None: there is none."""
    last, end = None, 0
    try:
        with path.open("r+b") as file:
            for line in file:
                if line.endswith(b"\n"):
                    last, end = line, end + len(line)
            file.truncate(end)
    except FileNotFoundError:
        return None
    return None if last is None else last.decode("utf-8", "replace")
