"""The learner's table of what the replay holds: a fold over the log.

Equal logs give equal tables: a restart folds the log again and is where it was. Rows are always in
the order of record ids, whatever the order of commits, so a rule with a seeded generator draws the
same records in every run. Knows no Redis and no latents.

A row number is valid until the next `extend` or `drop`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from buffer.records import (
    MAX_GROUP,
    START,
    EvictedEntry,
    FailedEntry,
    IndexEntry,
    LogEntry,
    parse_position,
    parse_record_id,
)

_NO_ROW = -1
_Ints = TypeVar("_Ints", int, np.ndarray)


class LogIndex:
    """Live records as columns, and which tickets are finished.

    Shape suffixes: N rows, G groups, M members, R rewards, S scored positions.

    Args:
        first_ticket: smaller ones count as finished (`Replay.skip_to`, or a log that was trimmed).

    Attributes:
        position: where the next `tail` goes on.
        num_failed: failed records seen in the log.

        index = LogIndex(group_size=6)
        while not index.finished(first, stop):
            index.extend(replay.tail(index.position, max_entries=1000, block_s=1.0))
    """

    def __init__(self, *, group_size: int, first_ticket: int = 0) -> None:
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1; got {group_size}")
        self.group_size = group_size
        self.position = START
        self.num_failed = 0
        self._columns = _columns([])
        # Finished tickets: all below `_floor`, and those of the set. Bounded by how far apart the
        # youngest and the oldest unfinished ticket are.
        self._floor = first_ticket
        self._finished: set[int] = set()
        self._terminal: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._columns["entry"])

    @property
    def ticket(self) -> np.ndarray:
        """[N], not decreasing."""
        return self._columns["ticket"]

    @property
    def member(self) -> np.ndarray:
        """[N]"""
        return self._columns["member"]

    @property
    def policy_version(self) -> np.ndarray:
        """[N]"""
        return self._columns["policy_version"]

    @property
    def reward_names(self) -> tuple[str, ...]:
        """In alphabetical order; empty as long as the table is."""
        return tuple(sorted(self.entry(0).rewards)) if len(self) else ()

    def reward(self, name: str) -> np.ndarray:
        """One reward of all rows: float32 [N, S]."""
        return self._columns["reward"][:, self.reward_names.index(name)]

    def extend(self, entries: Iterable[LogEntry]) -> None:
        """Fold in the next entries of the log. Entries seen before change nothing."""
        added: list[IndexEntry] = []
        evicted = START
        seen = parse_position(self.position)
        for entry in entries:
            if parse_position(entry.position) <= seen:
                continue
            self.position, seen = entry.position, parse_position(entry.position)
            if isinstance(entry, EvictedEntry):
                evicted = entry.upto
            else:
                self._count_terminal(entry)
            if isinstance(entry, IndexEntry):
                added.append(entry)
        if added or evicted != START:
            self._insert(added)
            self._keep(_after(self._columns["place"], parse_position(evicted)))

    def drop(self, record_ids: Iterable[str]) -> None:
        """Forget records whose latents could not be read: evicted since the log was read."""
        gone = [_key(*parse_record_id(name)) for name in record_ids]
        self._keep(~np.isin(_key(self.ticket, self.member), gone))

    def finished(self, first: int, stop: int) -> bool:
        """Every record of the tickets first, ..., stop - 1 is committed or failed."""
        return all(n < self._floor or n in self._finished for n in range(first, stop))

    def entry(self, row: int) -> IndexEntry:
        return self._columns["entry"][row]

    def entries(self, rows: Iterable[int]) -> list[IndexEntry]:
        return [self.entry(row) for row in rows]

    def rows_of(self, first: int, stop: int) -> np.ndarray:
        """Rows of the live records of the tickets first, ..., stop - 1."""
        return np.arange(*np.searchsorted(self.ticket, [first, stop]))

    def groups(
        self, rows: np.ndarray | None = None, *, min_members: int | None = None
    ) -> np.ndarray:
        """Rows by group and member [G, M], groups by ticket; -1 where a member is not live.

        Args:
            rows: only these; None for all.
            min_members: leave out groups with fewer live members; None asks for all of them.
        """
        rows = np.arange(len(self)) if rows is None else rows
        ticket_G, group_N = np.unique(self.ticket[rows], return_inverse=True)
        row_GM = np.full((len(ticket_G), self.group_size), _NO_ROW, np.int64)
        row_GM[group_N, self.member[rows]] = rows
        wanted = self.group_size if min_members is None else min_members
        return row_GM[(row_GM != _NO_ROW).sum(axis=1) >= wanted]

    def rewards_of(self, name: str, row_GM: np.ndarray) -> np.ndarray:
        """The rewards of a table of `groups` [G, M, S]; NaN where a member is not live."""
        reward_GMS = self.reward(name)[row_GM]
        reward_GMS[row_GM == _NO_ROW] = np.nan
        return reward_GMS

    def _count_terminal(self, entry: IndexEntry | FailedEntry) -> None:
        if entry.member >= self.group_size:
            raise ValueError(
                f"record {entry.record_id} is of a larger group than {self.group_size}: "
                "this log was made with another group size"
            )
        self.num_failed += isinstance(entry, FailedEntry)
        self._terminal[entry.ticket] += 1
        if self._terminal[entry.ticket] == self.group_size:
            del self._terminal[entry.ticket]
            self._finished.add(entry.ticket)
        while self._floor in self._finished:
            self._finished.remove(self._floor)
            self._floor += 1

    def _insert(self, added: Sequence[IndexEntry]) -> None:
        self._check_alike(added)
        new = _columns(added)
        if len(self) and added:
            new = {name: np.concatenate([old, new[name]]) for name, old in self._columns.items()}
        self._columns = new if added else self._columns

    def _check_alike(self, added: Sequence[IndexEntry]) -> None:
        """One table needs entries of one form."""
        for entry in added:
            model = self.entry(0) if len(self) else added[0]
            if _form(entry) != _form(model):
                raise ValueError(
                    f"record {entry.record_id} has rewards, steps and scored positions "
                    f"{_form(entry)}, others {_form(model)}: this log mixes two configurations"
                )

    def _keep(self, keep_N: np.ndarray) -> None:
        row_N = np.flatnonzero(keep_N)
        order = row_N[np.argsort(_key(self.ticket[row_N], self.member[row_N]), kind="stable")]
        self._columns = {name: column[order] for name, column in self._columns.items()}


def _columns(entries: Sequence[IndexEntry]) -> dict[str, np.ndarray]:
    """The columns of some entries; NumPy joins and sorts them without a Python loop over all."""
    cells = np.empty(len(entries), object)
    cells[:] = entries
    rewards = [[e.rewards[name] for name in sorted(e.rewards)] for e in entries]
    return {
        "entry": cells,
        "place": np.array([parse_position(e.position) for e in entries], np.int64).reshape(-1, 2),
        "ticket": np.array([e.ticket for e in entries], np.int64),
        "member": np.array([e.member for e in entries], np.int64),
        "policy_version": np.array([e.policy_version for e in entries], np.int64),
        "reward": np.array(rewards, np.float32),
    }


def _key(ticket: _Ints, member: _Ints) -> _Ints:
    """One number per record that sorts like its id."""
    return ticket * MAX_GROUP + member


def _after(place_N2: np.ndarray, upto: tuple[int, int]) -> np.ndarray:
    time_N, serial_N = place_N2.T
    return (time_N > upto[0]) | ((time_N == upto[0]) & (serial_N > upto[1]))


def _form(entry: IndexEntry) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    return tuple(sorted(entry.rewards)), entry.steps, entry.scored
