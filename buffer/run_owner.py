"""Whose a run on a server is, and which of the run's servers that is: written before all else.

    start 1 begins ─► owner: token 1 ─► start 2 knows token 1 ─► owner: token 2 ─► ...

Each start of a run has a token of its own, and knows those of all starts out of its folder. So two
runs of one name do not share tickets, and of two copies of one folder only the first to go on
does: its token is one that the other does not know. Who was at work until then finds, when it next
admits tickets, that the run is another's. A server that came back without its newest writes, or
empty, names a start that is known, or none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from buffer.codec import FORMAT_VERSION
from buffer.errors import ReplayUnfit
from buffer.redis_link import RedisLink
from buffer.replay_settings import ReplaySettings


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run.

    Attributes:
        token: of this start alone; an error shows it to whoever is refused for it.
        former: the tokens of all earlier starts out of the same folder.
        is_new: the run begins, and no tickets of it may be there.
    """

    token: str
    former: Sequence[str] = ()
    is_new: bool = False


def started(settings: ReplaySettings, start: Start | None) -> ReplaySettings:
    """The settings of all processes of a start."""
    return settings if start is None else replace(settings, start=start.token)


def take_run(
    link: RedisLink, settings: ReplaySettings, start: Start | None, *, writes: bool = True
) -> None:
    """Makes a server the shard that it is said to be, the run the start's, and its queue.

    Args:
        start: None for a tool, which may use what is anybody's.
        writes: False: only look whether that can be done.

    Raises:
        ReplayUnfit: it is another shard, holds records of another format, or is another's.
    """
    shard = f"{settings.shard}/{settings.shards}"
    token, former, is_new = (start.token, start.former, start.is_new) if start else ("", (), False)
    begins = "1" if is_new else ""
    found = link.run("take", "1" if writes else "", shard, FORMAT_VERSION, token, begins, *former)
    if found:
        obstacle, there = (word.decode("utf-8", "replace") for word in found)
        raise ReplayUnfit(f"{link!r} {_told(obstacle, there, shard, settings.run)}")


def taken_over(link: RedisLink, run: str) -> ReplayUnfit:
    """For a start that is no longer the run's."""
    return ReplayUnfit(
        f"{link!r} does not hold this start's run any more: a copy of its folder has continued it, "
        "it was erased and begun again, or the server came back with what it held before. "
        f"Continue with --resume where nobody else is at work on {run!r}"
    )


def _told(obstacle: str, there: str, shard: str, run: str) -> str:
    """What is in the way, and what to do."""
    if obstacle == "format":
        return (
            f"holds a run whose records have format {there}, and this program reads "
            f"{FORMAT_VERSION}: go on with the program that began it, or begin a run of another "
            "name"
        )
    if obstacle == "shard":
        return (
            f"is server {_in_words(there)} and cannot be {_in_words(shard)}: a run keeps the "
            "number and the order of its servers, and each of them needs a server or a database "
            "of its own; go on as it began, or give it another name"
        )
    remedy = f"give this one another name, or remove them by python -m deploy.erase {run}"
    if obstacle == "owner":
        return (
            f"holds the records of another run of this name, last started by {there}. It may be "
            f"under way: {remedy}"
        )
    return (
        "holds the records of an earlier run of this name: continue that one with --resume, "
        f"{remedy}"
    )


def _in_words(place: str) -> str:
    """'2 of 3', as a person counts, of '1/3'."""
    number, _, count = place.partition("/")
    return f"{int(number) + 1} of {count}" if number.isdigit() else repr(place)
