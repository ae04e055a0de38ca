"""Scored groups as the learner sees them: told by the log, fetched by slices.

A group is complete when every one of its records was committed. A group with a failed record is
left out of training as a whole: its pairs would be fewer than the others'.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from buffer.admission import limit_by_window
from buffer.errors import ReplayError, ReplayFull
from buffer.index import LogIndex
from buffer.records import Counters, IndexEntry, furthest, parse_position
from learner.collectives import any_rank
from learner.group_batch import GroupBatch
from learner.group_source import GroupSource
from learner.methods.uninformed import NothingToLearnError
from learner.waits import Cause, StallError, StoppedError, held_up_by, on_all_ranks, standing

log = logging.getLogger(__name__)
_POLL_S = 0.05
_Values = TypeVar("_Values", np.ndarray, Tensor)


class ScoredGroups:
    """The learner's view of the replay.

    Args:
        steps: positions among a record's scored latents that are trained on, the end of the
            trajectory last.
        admits: whether this rank lets tickets be issued; one of all does.
        round_ends: the first ticket after each round of the run; samplers may be `max_staleness`
            of them ahead. Empty: no more is issued than what is asked for.

    Attributes:
        policy_version: of the learner now; what it fetches is told to be so much older.
        moment: number of the part of training that is under way; below 0 before the first cycle.
    """

    def __init__(
        self,
        source: GroupSource,
        *,
        steps: Sequence[int],
        admits: bool,
        round_ends: Sequence[int] = (),
    ) -> None:
        self.source = source
        self.steps = tuple(steps)
        self._replay = source.replay
        self._admits = admits
        self._round_ends = tuple(round_ends)
        self.index = LogIndex(group_size=source.group_size)
        self.policy_version = 0
        self.moment = -1
        # The first ticket that was never asked for.
        self._unasked = 0
        # What `collect` was asked for last: the first ticket after it, and the policy version.
        self._asked = 0, 0
        self._admitted = 0
        # Tickets below it may have been issued before this life of the learner.
        self._reached = 0
        # Why a server refused to admit more, while it does.
        self._full: ReplayFull | None = None
        # Whether the replay failed between two waits.
        self._has_failed = False
        # Mean and deviation of what is standardised; saved with the method.
        self.moments: dict[str, tuple[float, float]] = {}

    def catch_up(self) -> int:
        """Reads the log to its end; returns how many entries were new."""
        total = 0
        while entries := self._replay.tail(self.index.position, max_entries=1000):
            self.index.extend(entries)
            self.source.told(entries)
            total += len(entries)
        return total

    def resume(self, position: str, next_ticket: int) -> None:
        """Goes on from a log that had been read to `position`.

        A replay that has lost it has lost its groups too: those that were trained on are not
        sampled again, `next_ticket` is the first to be issued.

        Raises:
            ValueError: it has evicted what was trained on, for groups of later tickets: what
                follows the checkpoint could not be repeated, and nothing be drawn in its place.
        """
        self.index.finish_below(next_ticket)
        self._unasked = next_ticket
        # Counted first, which waits for every server: one that is away has not lost its log.
        counters = self._replay.counters()
        self._reached = counters.admitted
        self.catch_up()
        log.info(
            "the replay holds %d committed records, %d live and %d waiting; the checkpoint is at "
            "ticket %d",
            counters.committed,
            counters.live,
            counters.pending,
            next_ticket,
        )
        read = parse_position(self.index.position)
        if furthest(read, parse_position(position)) != read:
            log.warning(
                "the replay has lost what came before %s of its log, it ends at %s: going on at "
                "ticket %d",
                position,
                self.index.position,
                next_ticket,
            )
            self._replay.skip_to(next_ticket)
        self._refuse_evicted(counters.evicted, next_ticket)

    def _refuse_evicted(self, num_evicted: int, next_ticket: int) -> None:
        """The oldest are evicted first, so those before a later one are gone but for failed ones.

        Ranks refuse together: one alone would leave the others waiting.
        """
        is_evicted = num_evicted > 0 and len(self.index) > 0 and not len(self.known_rows())
        if next_ticket > 0 and any_rank(is_evicted):
            raise ValueError(
                f"the checkpoint is at ticket {next_ticket}, and the replay keeps none before it: "
                "too many later groups were scored, or may be, before the learner was lost. Remove "
                "this run's records (its folder's `redis`, or python -m deploy.erase NAME) and "
                "resume: it then goes on from the checkpoint with new samples. To prevent this, "
                "raise replay.capacity_groups, or replay.capacity_mb if it is set, "
                "or lower learner.checkpoint_every_cycles"
            )

    def collect(
        self,
        tickets: range,
        policy_version: int,
        waited: Callable[[Cause, float], object] = lambda cause, seconds: None,
    ) -> None:
        """Lets the tickets be issued and returns once each record is committed or failed.

        Ranks return together, or are stopped together; every rank must call it.

        Args:
            policy_version: what they are to be sampled with.
            waited: told the seconds of a wait and its cause, while it goes on; by the rank that
                admits tickets alone.

        Raises:
            StallError: no news for `stall_s`, or the replay has failed; says what is missing.
            StoppedError: the learner was told to stop, and something is missing.
        """
        self._asked = tickets.stop, policy_version
        self._unasked = max(self._unasked, tickets.stop)
        wanted = f"tickets {tickets.start} to {tickets.stop - 1}"
        news_at = told_at = time.monotonic()
        while True:
            num_new, counters = on_all_ranks(self._look, f"in the wait for {wanted}")
            if num_new:
                news_at = time.monotonic()
            if not any_rank(self._missing(tickets)):
                return
            if any_rank(time.monotonic() - news_at > self.source.stall_s):
                raise StallError(
                    f"no record was scored for {self.source.stall_s:.0f} s while waiting for "
                    f"{wanted}; {standing(self._replay, self._full)}. Look at the logs of samplers "
                    "and reward servers."
                )
            if any_rank(self.source.stopping.is_set()):
                raise StoppedError("stopped while waiting for scored groups")
            time.sleep(_POLL_S)
            now = time.monotonic()
            if counters is not None:
                num_missing = self.index.num_unfinished(tickets.start, tickets.stop)
                waited(held_up_by(num_missing, counters), now - told_at)
            told_at = now

    def _look(self) -> tuple[int, Counters | None]:
        """How many entries the log has got, and the counts that tickets were admitted by.

        Before a wait may end, too: what comes after is sampled while the learner learns.
        """
        found = self.catch_up(), self._admit()
        self._has_failed = False
        return found

    def _missing(self, tickets: range) -> bool:
        return not self.index.finished(tickets.start, tickets.stop)

    def top_up(self) -> None:
        """Lets more tickets be issued where there was no room for all of them.

        To be called between steps, so that samplers work while the learner does. A replay that
        fails is left to the next wait, in which all ranks fail together and lose no step.
        """
        if self._has_failed or self._admitted >= self._horizon(self._asked[0]):
            return
        try:
            self._admit()
        except ReplayError as error:
            self._has_failed = True
            log.warning("no more tickets are issued before the next wait: %s", error)

    def _admit(self) -> Counters | None:
        """Lets tickets be issued; the counts it went by, on the rank that does.

        A server that is full refuses to; the next call asks it again.
        """
        if not self._admits:
            return None
        limit, policy_version = self._asked
        counters = self._replay.counters()
        window = limit_by_window(num_finished=counters.progress, max_open=self.source.max_open)
        admitted = min(self._horizon(limit), window)
        try:
            self._replay.admit(limit=admitted, policy_version=policy_version)
        except ReplayFull as error:
            if self._full is None:
                log.warning("no more tickets are issued until there is room: %s", error)
            self._full = error
        else:
            self._admitted, self._full = admitted, None
        return counters

    def _horizon(self, limit: int) -> int:
        """Up to where tickets may be issued by now if those below `limit` are asked for."""
        later = self._round_ends[bisect_left(self._round_ends, limit) :]
        end = later[min(self.source.max_staleness, len(later) - 1)] if later else limit
        if self.source.max_records is not None:
            end = min(end, self.source.max_records // self.source.group_size)
        return max(limit, end)

    def affords(self, tickets: range) -> bool:
        """Whether the budget of queries pays for their records too; the same on every rank.

        A record that was queued again counts as often: its reward may have been asked before.

        Raises:
            StallError: the replay has failed.
        """
        budget = self.source.max_records
        if budget is None:
            return True
        counters = on_all_ranks(self._replay.counters, "while the query budget was checked")
        asked = tickets.stop * self.source.group_size + counters.retried
        return not any_rank(asked > budget)

    def complete(self, tickets: range) -> list[int]:
        """Those of the tickets whose whole group is live, in ascending order."""
        rows_GM = self.index.groups(self.index.rows_of(tickets.start, tickets.stop))
        return self.index.ticket[rows_GM[:, 0]].tolist()

    def of_version(self, tickets: Sequence[int], policy_version: int) -> list[int]:
        """Those of the tickets whose whole group that version sampled."""
        rows_GN = self._rows(tickets)
        versions_GN = self.index.policy_version[rows_GN]
        kept = (versions_GN == policy_version).all(axis=1)
        return [ticket for ticket, keep in zip(tickets, kept, strict=True) if keep]

    def entries(self, tickets: Sequence[int]) -> list[IndexEntry]:
        """The records of complete groups, member by member."""
        return self.index.entries(self._rows(tickets).flatten())

    @property
    def oldest_kept(self) -> int:
        """Tickets from here on are not evicted before more is asked for, whoever is ahead.

        A pure function of what was asked for, so the same on every rank.
        """
        ahead = max(self._horizon(self._asked[0]), self._reached)
        return max(0, ahead - self.source.capacity_groups)

    def known_rows(self) -> np.ndarray:
        """Rows of the index that may be drawn, one after the other: of tickets that were asked
        for, and that are not evicted meanwhile. The same on every rank.

        There may be others, of samplers that are ahead, of a life that was cut short, or of old
        tickets that are about to go: how many of them this rank has seen by now is chance.
        """
        return self.index.rows_of(self.oldest_kept, self._unasked)

    def check_known(self) -> None:
        """To be called where something is to be drawn from what is known.

        Raises:
            NothingToLearnError: there is nothing.
        """
        if not len(self.known_rows()):
            raise NothingToLearnError(
                "no scored picture is in the replay any more: it was lost, or another run evicts it"
            )

    def standardise(self, tickets: Sequence[int]) -> None:
        """Takes the moments of rewards from complete groups of the untouched policy.

        Values that are all alike have no deviation to divide by, and stay in their own unit.
        """
        rows_GN = self._rows(tickets)
        for name in sorted(self.source.standardised):
            values = self.index.rewards_of(name, rows_GN)[:, :, list(self.steps)].astype(np.float64)
            std = float(values.std())
            self.moments[name] = float(values.mean()), std if std > 1e-6 else 1.0

    def weighed(self, name: str, values: _Values) -> _Values:
        """What values of a reward add to the sum that is trained on."""
        mean, std = self.moments.get(name, (0.0, 1.0))
        return self.source.rewards[name] * ((values - mean) / std)

    def rewards(self, tickets: Sequence[int]) -> Tensor:
        """Weighted sums of true rewards of complete groups, float32 [G, N, K]."""
        return self._rewards(self._rows(tickets))

    def final_rewards(self) -> np.ndarray:
        """Weighted sum of the true rewards of the last trained step, [N] by `known_rows`."""
        rows_N, step = self.known_rows(), self.steps[-1]
        return sum(
            (
                self.weighed(name, self.index.reward(name)[rows_N, step].astype(np.float64))
                for name in self.source.rewards
            ),
            start=np.zeros(len(rows_N)),
        )

    def fetch(self, tickets: Sequence[int], *, to_learn: bool = True) -> GroupBatch:
        """Latents and rewards of complete groups; those evicted meanwhile are left out.

        Args:
            to_learn: False: to measure something on them.

        Raises:
            LookupError: none is left.
        """
        rows_GN = self._rows(tickets)
        entries = self.index.entries(rows_GN.flatten())
        if to_learn:
            self.tell_fetched(entries)
        wanted = [(e.record_id, e.scored[step]) for e in entries for step in self.steps]
        latents = self._replay.read_latents(wanted)
        per_group = self.source.group_size * len(self.steps)
        by_group = [latents[i : i + per_group] for i in range(0, len(latents), per_group)]
        kept = [i for i, group in enumerate(by_group) if all(x is not None for x in group)]
        if not kept:
            raise LookupError(
                f"none of the {len(tickets)} groups that were asked for is in the replay any more: "
                "raise replay.capacity_groups, or replay.capacity_mb if it is set"
            )
        rows = [latent for i in kept for latent in by_group[i] if latent is not None]
        stacked = torch.from_numpy(np.stack(rows).astype(np.float32))
        return GroupBatch(
            tickets=[tickets[i] for i in kept],
            prompts=[entries[i * self.source.group_size].prompt for i in kept],
            latents_GNKCHW=stacked.view(
                len(kept), self.source.group_size, len(self.steps), *stacked.shape[1:]
            ),
            rewards_GNK=self._rewards(rows_GN[kept]),
        )

    def tell_fetched(self, entries: Sequence[IndexEntry]) -> None:
        """To be called with all samples that this rank is about to learn from."""
        now_ms = 1000 * time.time()
        self.source.fetched(
            [max(0, self.policy_version - entry.policy_version) for entry in entries],
            [max(0.0, now_ms - entry.committed_ms) / 1000 for entry in entries],
        )
        self.source.drawn(self.policy_version, self.moment, entries)

    def _rows(self, tickets: Sequence[int]) -> np.ndarray:
        if not tickets:
            return np.empty((0, self.source.group_size), np.int64)
        return np.stack([self.index.rows_of(ticket, ticket + 1) for ticket in tickets])

    def _rewards(self, rows_GN: np.ndarray) -> Tensor:
        total = sum(
            self.weighed(name, self.index.rewards_of(name, rows_GN)[:, :, list(self.steps)])
            for name in self.source.rewards
        )
        return torch.from_numpy(np.asarray(total, dtype=np.float32))
