"""The learner's table of what the replay holds: a fold over the log.

Equal logs give equal tables: a restart folds the log again and is where it was. Rows are always in
the order of record ids, whatever the order of commits, so a rule with a seeded generator draws the
same records in every run. Knows no Redis and no latents.

A row number is valid until the next `extend` or `drop`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from buffer.records import (
    MAX_GROUP,
    START,
    EvictedEntry,
    FailedEntry,
    IndexEntry,
    LogEntry,
    furthest,
    parse_position,
    parse_record_id,
    position_text,
)

_NO_ROW = -1
_Ints = TypeVar("_Ints", int, np.ndarray)


class LogIndex:
    """Live records as columns, and which tickets are finished.

    Shape suffixes: N rows, G groups, M members, R rewards, S scored positions.

    Attributes:
        position: where the next `tail` goes on.
        num_failed: failed records seen in the log.

        index = LogIndex(group_size=6)
        while not index.finished(first, stop):
            index.extend(replay.tail(index.position, max_entries=1000, block_s=1.0))
    """

    def __init__(self, *, group_size: int) -> None:
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1; got {group_size}")
        self.group_size = group_size
        self.position = START
        self.num_failed = 0
        self._columns = _columns([])
        # Finished tickets: all below `_floor`, and those of the set. Bounded by how far apart the
        # youngest and the oldest unfinished ticket are.
        self._floor = 0
        self._finished: set[int] = set()
        # Of unfinished tickets, the members that are committed or failed.
        self._terminal: dict[int, set[int]] = {}

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

    @property
    def priority(self) -> np.ndarray:
        """[N], 1 until `set_priorities` has changed it."""
        return self._columns["priority"]

    def extend(self, entries: Iterable[LogEntry]) -> None:
        """Fold in the next entries of the log.

        Entries seen before change nothing, and neither does the entry of a record that is in the
        table: the log writes those of old records again when it is trimmed.
        """
        added: dict[int, IndexEntry] = {}
        gone: set[int] = set()
        seen = parse_position(self.position)
        for entry in entries:
            reached = furthest(seen, parse_position(entry.position))
            if reached == seen:
                continue
            self.position, seen = position_text(reached), reached
            if isinstance(entry, EvictedEntry):
                gone |= {_key(*parse_record_id(name)) for name in entry.record_ids}
                continue
            self._note_terminal(entry)
            if isinstance(entry, IndexEntry):
                added[_key(entry.ticket, entry.member)] = entry
        self._insert(added)
        self._forget(gone)

    def drop(self, record_ids: Iterable[str]) -> None:
        """Forget records whose latents could not be read: evicted since the log was read."""
        self._forget({_key(*parse_record_id(name)) for name in record_ids})

    def set_priorities(self, priority_of: Mapping[str, float]) -> None:
        """New priorities by record id; those of records that are not in the table are left out."""
        key_N = _key(self.ticket, self.member)
        key_U = np.array([_key(*parse_record_id(name)) for name in priority_of], np.int64)
        row_U = np.searchsorted(key_N, key_U)
        there_U = row_U < len(self)
        there_U[there_U] = key_N[row_U[there_U]] == key_U[there_U]
        self.priority[row_U[there_U]] = np.array(list(priority_of.values()))[there_U]

    def finish_below(self, ticket: int) -> None:
        """Tickets below `ticket` count as finished, whatever the log tells of them."""
        self._floor = max(self._floor, ticket)
        self._finished = {n for n in self._finished if n >= self._floor}
        self._terminal = {n: each for n, each in self._terminal.items() if n >= self._floor}
        self._raise_floor()

    def finished(self, first: int, stop: int) -> bool:
        """Every record of the tickets first, ..., stop - 1 is committed or failed."""
        return self.num_unfinished(first, stop) == 0

    def num_unfinished(self, first: int, stop: int) -> int:
        """How many of the tickets first, ..., stop - 1 have a record that is neither."""
        return sum(n not in self._finished for n in range(max(first, self._floor), stop))

    def entry(self, row: int) -> IndexEntry:
        """What the log tells of a row."""
        return self._columns["entry"][row]

    def entries(self, rows: Iterable[int]) -> list[IndexEntry]:
        """The same of several rows, in their order."""
        return [self.entry(row) for row in rows]

    def rows_of(self, first: int, stop: int) -> np.ndarray:
        """Rows of the live records of the tickets first, ..., stop - 1."""
        return np.arange(*np.searchsorted(self.ticket, [first, stop]))

    def groups(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows by group and member [G, M] of the groups whose members are all live, by ticket.

        Args:
            rows: only these; None for all.
        """
        rows = np.arange(len(self)) if rows is None else rows
        ticket_G, group_N = np.unique(self.ticket[rows], return_inverse=True)
        row_GM = np.full((len(ticket_G), self.group_size), _NO_ROW, np.int64)
        row_GM[group_N, self.member[rows]] = rows
        return row_GM[(row_GM != _NO_ROW).all(axis=1)]

    def rewards_of(self, name: str, row_GM: np.ndarray) -> np.ndarray:
        """The rewards of a table of `groups`, float32 [G, M, S]."""
        return self.reward(name)[row_GM]

    def _note_terminal(self, entry: IndexEntry | FailedEntry) -> None:
        if entry.member >= self.group_size:
            raise ValueError(
                f"record {entry.record_id} is of a larger group than {self.group_size}: "
                "this log was made with another group size"
            )
        self.num_failed += isinstance(entry, FailedEntry)
        if entry.ticket < self._floor or entry.ticket in self._finished:
            return
        members = self._terminal.setdefault(entry.ticket, set())
        members.add(entry.member)
        if len(members) == self.group_size:
            del self._terminal[entry.ticket]
            self._finished.add(entry.ticket)
            self._raise_floor()

    def _raise_floor(self) -> None:
        while self._floor in self._finished:
            self._finished.remove(self._floor)
            self._floor += 1

    def _insert(self, entry_of: Mapping[int, IndexEntry]) -> None:
        known = np.isin(list(entry_of), _key(self.ticket, self.member))
        added = [e for e, is_known in zip(entry_of.values(), known, strict=True) if not is_known]
        if not added:
            return
        self._check_alike(added)
        new = _columns(added)
        if len(self):
            new = {name: np.concatenate([old, new[name]]) for name, old in self._columns.items()}
        order = np.argsort(_key(new["ticket"], new["member"]), kind="stable")
        self._columns = {name: column[order] for name, column in new.items()}

    def _check_alike(self, added: Sequence[IndexEntry]) -> None:
        """One table needs entries of one form."""
        for entry in added:
            model = self.entry(0) if len(self) else added[0]
            if _form(entry) != _form(model):
                raise ValueError(
                    f"record {entry.record_id} has rewards, number of steps, scored positions "
                    f"{_form(entry)}, others {_form(model)}: this log mixes two configurations"
                )

    def _forget(self, gone: set[int]) -> None:
        if gone:
            stays_N = ~np.isin(_key(self.ticket, self.member), list(gone))
            self._columns = {name: column[stays_N] for name, column in self._columns.items()}


def _columns(entries: Sequence[IndexEntry]) -> dict[str, np.ndarray]:
    """The columns of some entries; NumPy joins and sorts them without a Python loop over all."""
    cells = np.empty(len(entries), object)
    cells[:] = entries
    rewards = [[e.rewards[name] for name in sorted(e.rewards)] for e in entries]
    return {
        "entry": cells,
        "ticket": np.array([e.ticket for e in entries], np.int64),
        "member": np.array([e.member for e in entries], np.int64),
        "policy_version": np.array([e.policy_version for e in entries], np.int64),
        "reward": np.array(rewards, np.float32),
        "priority": np.ones(len(entries)),
    }


def _key(ticket: _Ints, member: _Ints) -> _Ints:
    """One number per record that sorts like its id."""
    return ticket * MAX_GROUP + member


def _form(entry: IndexEntry) -> tuple[tuple[str, ...], int, tuple[int, ...]]:
    """What rows of one table share; which states were kept may differ from group to group."""
    return tuple(sorted(entry.rewards)), len(entry.steps), entry.scored
