"""The vocabulary of the replay: what is stored, what the log tells, what is counted.

Every class checks itself when it is made, so a `Record` or an `IndexEntry` that exists is valid.
Knows nothing of bytes or Redis.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

MAX_TICKET = 10**10 - 1
"""Ten digits in a record id: ids then sort like (ticket, member)."""
MAX_GROUP = 1000
MAX_STEPS = 1000
MAX_VERSION = 2**53
"""Lua counts in float64."""
MAX_PROMPT_BYTES = 8192
MAX_REASON_BYTES = 2000
MAX_OWNER_BYTES = 200
"""Of whoever sampled or scored a record."""
MAX_REWARDS = 64
MAX_LATENT_SIDE = 65535

_RECORD_ID = re.compile(r"([0-9]{10})\.([0-9]{3})", re.ASCII)
_REWARD_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
_PLACE = re.compile(r"(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})", re.ASCII)

START = "0-0"
"""The position before the first entry of a log, on however many servers it is."""
Places = tuple[tuple[int, int], ...]
"""A position: of each server's log two numbers that compare in log order."""
_AT_START: Places = ((0, 0),)


def record_id(ticket: int, member: int) -> str:
    """The name of one trajectory; names sort like (ticket, member)."""
    _check_range("ticket", ticket, MAX_TICKET)
    _check_range("member", member, MAX_GROUP - 1)
    return f"{ticket:010d}.{member:03d}"


def parse_record_id(text: str) -> tuple[int, int]:
    """(ticket, member) of a record id; ValueError for anything else."""
    match = _RECORD_ID.fullmatch(text)
    if match is None:
        raise ValueError(f"not a record id (ten digits, a dot, three digits): {text[:40]!r}")
    return int(match[1]), int(match[2])


def parse_position(text: str) -> Places:
    """The places that a log position names; ValueError for anything else."""
    matches = [_PLACE.fullmatch(place) for place in text.split(",")]
    if not all(matches):
        raise ValueError(
            "not a log position (such as '1700000000000-0', or one for each server, "
            f"'1700000000000-0,1700000000001-3'): {text[:60]!r}"
        )
    return tuple((int(match[1]), int(match[2])) for match in matches if match)


def position_text(places: Iterable[tuple[int, int]]) -> str:
    """The position that `parse_position` reads."""
    return ",".join(f"{milliseconds}-{number}" for milliseconds, number in places)


def places_in(places: Places, servers: int) -> Places:
    """A position in the logs of so many servers: `START` is one in any number of them.

    Raises:
        ValueError: it is a position in the logs of another number of servers.
    """
    if places == _AT_START:
        return _AT_START * servers
    if len(places) != servers:
        raise ValueError(
            f"the log position {position_text(places)} is one on {len(places)} servers, not on "
            f"{servers}: a run goes on with as many servers as it began with"
        )
    return places


def furthest(places: Places, others: Places) -> Places:
    """Where a reader of both is: at the later place on every server."""
    servers = max(len(places), len(others))
    return tuple(map(max, places_in(places, servers), places_in(others, servers)))


@dataclass(frozen=True)
class Ticket:
    """The right and duty to make one group.

    `lease_id` names this very lease, so that an owner whose lease was given to another cannot
    prolong it.
    """

    number: int
    policy_version: int
    lease_id: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """One trajectory: the latents kept of one initial noise of a ticket's group.

    Attributes:
        seed: of the whole group, 64 bit.
        steps: label of every kept latent, strictly increasing, such as (1, 2).
        scored: positions in `steps` whose latent is a clean image that rewards score.
        latents: fp16 [C, H, W], one per entry of `steps`, all of one shape, scaled (multiplied
            by the VAE's scaling factor).
        sampler: who made it; empty where nobody says.
    """

    record_id: str
    ticket: int
    member: int
    prompt: str
    policy_version: int
    seed: int
    steps: tuple[int, ...]
    scored: tuple[int, ...]
    latents: tuple[np.ndarray, ...] = field(repr=False)
    sampler: str = ""

    def __post_init__(self) -> None:
        _check_identity(self)
        _check_latents(self.latents, len(self.steps))


@dataclass(frozen=True)
class Scores:
    """The rewards of one record: name -> one finite number per scored position."""

    rewards: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        check_rewards(self.rewards)

    @property
    def num_scored(self) -> int:
        """Numbers of each reward: one a scored latent."""
        return len(next(iter(self.rewards.values())))


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """One committed record, as the log tells it.

    Attributes:
        scorer: the reward server that committed it; empty where nobody says.
        queued_ms, committed_ms: when it was queued for the last time, and when it was given its
            rewards, in milliseconds since 1970 of the server's clock.
    """

    position: str
    record_id: str
    ticket: int
    member: int
    prompt: str
    policy_version: int
    seed: int
    steps: tuple[int, ...]
    scored: tuple[int, ...]
    rewards: Mapping[str, tuple[float, ...]]
    sampler: str = ""
    scorer: str = ""
    queued_ms: int = 0
    committed_ms: int = 0

    def __post_init__(self) -> None:
        parse_position(self.position)
        _check_identity(self)
        check_rewards(self.rewards)
        _check_text("scorer", self.scorer, MAX_OWNER_BYTES)
        for name in ("queued_ms", "committed_ms"):
            _check_range(name, getattr(self, name), MAX_VERSION)
        if any(len(values) != len(self.scored) for values in self.rewards.values()):
            raise ValueError(f"{self.record_id}: needs {len(self.scored)} numbers per reward")


@dataclass(frozen=True, kw_only=True)
class FailedEntry:
    """One record that no reward server could score. It has no rewards and no latents any more."""

    position: str
    record_id: str
    ticket: int
    member: int
    reason: str

    def __post_init__(self) -> None:
        parse_position(self.position)
        _check_name(self)


@dataclass(frozen=True, kw_only=True)
class EvictedEntry:
    """The replay was full, or the records were consumed: their latents are gone."""

    position: str
    record_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        parse_position(self.position)
        for name in self.record_ids:
            parse_record_id(name)


LogEntry = IndexEntry | FailedEntry | EvictedEntry


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A failed record that is kept for inspection.

    Attributes:
        failed_at: seconds since 1970, of the server's clock.
        size_bytes: of its header and latents; 0: they are gone, it cannot be released.
    """

    record_id: str
    reason: str
    failed_at: float
    size_bytes: int


@dataclass(frozen=True)
class Counters:
    """All counts of a run, read at one instant.

    Always `issued_records == committed + failed + pending`, and
    `issued == leased + open_tickets + progress`.

    Attributes:
        admitted: tickets with a smaller number may be issued.
        issued: tickets handed out at least once.
        leased: issued, and their group not put yet (expired leases too).
        open_tickets: tickets whose group is put and has a record that is not yet terminal.
        progress: tickets whose records are all committed or failed.
        issued_records: records put.
        pending: records put, not yet committed or failed.
        claimed: pending records that a reward server holds (expired claims too).
        committed: records with rewards, evicted ones included.
        failed: records quarantined with their reason.
        retried: times that a record was queued again after a failure or an expired claim.
        evicted: committed records whose latents are gone.
        live: committed records whose latents can be read.
        live_bytes: of these latents and their headers.
    """

    admitted: int
    issued: int
    leased: int
    open_tickets: int
    progress: int
    issued_records: int
    pending: int
    claimed: int
    committed: int
    failed: int
    retried: int
    evicted: int
    live: int
    live_bytes: int


def check_rewards(rewards: Mapping[str, tuple[float, ...]]) -> None:
    """ValueError unless every reward has a proper name and as many finite numbers as the others."""
    if not 1 <= len(rewards) <= MAX_REWARDS:
        raise ValueError(f"{len(rewards)} rewards; 1 to {MAX_REWARDS} are allowed")
    for name, values in rewards.items():
        if not isinstance(name, str) or _REWARD_NAME.fullmatch(name) is None:
            raise ValueError(f"reward name {name!r:.80}: 1 to 64 letters, digits or _ . : -")
        if not all(type(value) is float and math.isfinite(value) for value in values):
            raise ValueError(f"reward {name!r} needs finite floats; got {values!r:.80}")
    lengths = {len(values) for values in rewards.values()}
    if len(lengths) != 1 or not 1 <= lengths.pop() <= MAX_STEPS:
        raise ValueError("every reward needs one number per scored latent, at least one")


def _check_identity(entry: Record | IndexEntry) -> None:
    _check_name(entry)
    _check_range("policy_version", entry.policy_version, MAX_VERSION)
    _check_range("seed", entry.seed, 2**64 - 1)
    _check_text("prompt", entry.prompt, MAX_PROMPT_BYTES)
    _check_text("sampler", entry.sampler, MAX_OWNER_BYTES)
    _check_increasing("steps", entry.steps, 2**31 - 1)
    _check_increasing("scored", entry.scored, len(entry.steps) - 1)


def _check_name(entry: Record | IndexEntry | FailedEntry) -> None:
    if entry.record_id != record_id(entry.ticket, entry.member):
        raise ValueError(f"{entry.record_id!r:.40} is not ticket {entry.ticket}.{entry.member}")


def _check_range(name: str, value: int, highest: int) -> None:
    # `type`, not isinstance: True is an int too, and so is a numpy integer's lookalike.
    if type(value) is not int or not 0 <= value <= highest:
        raise ValueError(f"{name} must be an int from 0 to {highest}; got {value!r:.80}")


def _check_text(name: str, text: str, max_bytes: int) -> None:
    if not isinstance(text, str) or len(text.encode("utf-8")) > max_bytes:
        raise ValueError(f"{name} must be text of at most {max_bytes} bytes; got {text!r:.80}")


def _check_increasing(name: str, values: tuple[int, ...], highest: int) -> None:
    if type(values) is not tuple or not 1 <= len(values) <= MAX_STEPS:
        raise ValueError(f"{name} must be a tuple of 1 to {MAX_STEPS} ints; got {values!r:.80}")
    for value in values:
        _check_range(name, value, highest)
    if any(later <= earlier for earlier, later in itertools.pairwise(values)):
        raise ValueError(f"{name} must strictly increase; got {values!r:.80}")


def _check_latents(latents: tuple[np.ndarray, ...], count: int) -> None:
    if len(latents) != count:
        raise ValueError(f"{count} steps need as many latents; got {len(latents)}")
    for latent in latents:
        check_latent(latent)
        if latent.shape != latents[0].shape:
            raise ValueError(f"latents of one record differ: {latent.shape}, {latents[0].shape}")


def _all_finite(latent: np.ndarray) -> bool:
    """`np.isfinite(latent).all()`, in a fraction of the time: fp16 is slow, its bits are not.

    Infinities and NaN are 0x7c00 to 0x7fff and 0xfc00 to 0xffff: the largest of the bits read as
    signed numbers, and the largest of them read as unsigned ones.
    """
    if not latent.flags.c_contiguous:
        return bool(np.isfinite(latent).all())
    return latent.view(np.int16).max() < 0x7C00 and latent.view(np.uint16).max() < 0xFC00


def check_latent(latent: np.ndarray) -> None:
    """ValueError unless `latent` is a finite fp16 array [C, H, W]."""
    if not isinstance(latent, np.ndarray) or latent.dtype != np.float16:
        raise ValueError(
            f"a latent must be a float16 array; got {getattr(latent, 'dtype', latent)}"
        )
    if latent.ndim != 3 or not 1 <= min(latent.shape) <= max(latent.shape) <= MAX_LATENT_SIDE:
        raise ValueError(f"a latent must have shape [C, H, W]; got {list(latent.shape)}")
    if not _all_finite(latent):
        raise ValueError(
            "a latent holds NaN or infinity: the policy has diverged, or fp16 overflowed"
        )
