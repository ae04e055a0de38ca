"""The servers of a run's replay: those that its config names, or embedded ones in its folder."""

from collections.abc import Mapping
from pathlib import Path

from buffer.replay_settings import ReplaySettings
from buffer.urls import urls_in
from deploy.run_config import RunConfig


def server_folders(config: RunConfig, folder: Path) -> dict[str, Path]:
    """Where each embedded server of a run keeps its data, by the name of the actor that hosts it.

    The first one's folder does not depend on how many there are: a run that is resumed with
    another number finds its data there, and is refused, rather than begun anew.
    """
    count = config.replay.shards
    if count == 1:
        return {"replay-server": folder / "redis"}
    return {
        f"replay-server-{number}": folder / (f"redis-{number}" if number else "redis")
        for number in range(count)
    }


def wrong_number_of_urls(config: RunConfig, environ: Mapping[str, str]) -> str | None:
    """What is wrong where `replay.shards` and the URLs that are given do not agree."""
    count, urls = config.replay.shards, config.redis_url(environ)
    if urls is None or count in (1, len(urls_in(urls))):
        return None
    given = "replay.redis" if config.replay.redis == urls else "REDIS_URL"
    return (
        f"replay.shards: is {count}, but {given} holds {len(urls_in(urls))} URLs: leave it out, as "
        "their number says it, or give as many, with spaces between them"
    )


def replay_settings(config: RunConfig, urls: str) -> ReplaySettings:
    """Of a run on the servers at these URLs. Each of them keeps whole groups."""
    servers = len(urls_in(urls))
    groups = -(-config.replay.capacity_groups // servers) * servers
    return ReplaySettings(
        url=urls,
        run=config.name,
        capacity_records=groups * config.actors.group_size,
        capacity_bytes=config.capacity_bytes,
        max_attempts=config.replay.max_attempts,
        outage_s=config.replay.outage_s,
    )
