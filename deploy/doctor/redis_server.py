"""Whether a Redis server can hold what a run's replay may grow to, and keep it."""

from collections.abc import Iterator, Mapping

from buffer.codec import latent_frame_bytes
from buffer.connection import ServerFacts
from buffer.replay_settings import PUT_SHARE
from buffer.urls import masked, urls_in
from deploy.doctor.units import in_bytes
from deploy.settings.checks import groups_to_hold
from deploy.settings.run_config import RunConfig

_STRING_BYTES = 10
"""Of Redis' string beside the latent's frame that it holds."""
_RECORD_BYTES = 3000
"""Of a record beside its latents: header, log and index entries, and Redis' own of all these."""


def latents_kept(config: RunConfig) -> int:
    """Most latents that a trajectory's record holds."""
    if config.model.is_few_step:
        return config.model.num_steps
    from learner.states import kept_strata

    strata = kept_strata(config.method, config.model)
    states = 0 if strata is None else len(strata.edges) - 1
    return 1 + states * config.method.latents_per_state


def replay_bytes(config: RunConfig, latent_values: int) -> int:
    """What the replay of a run may grow to, on all of its servers together.

    Args:
        latent_values: numbers of one latent, C·H·W.
    """
    frame = latent_frame_bytes(latent_values)
    payload, latent = latents_kept(config) * frame, _allocated(frame + _STRING_BYTES)
    kept = config.replay.capacity_groups * config.actors.group_size
    if config.capacity_bytes:
        kept = min(kept, -(-config.capacity_bytes // payload))
    records = kept + config.replay.max_pending_records
    return records * (latents_kept(config) * latent + _RECORD_BYTES)


def capacity_findings(config: RunConfig, latent_values: int) -> Iterator[str]:
    """Of a replay that is bounded by its size, and so evicts more than its groups tell."""
    if not (config.capacity_bytes and latent_values):
        return
    payload = latents_kept(config) * latent_frame_bytes(latent_values)
    needed = groups_to_hold(config) * config.actors.group_size
    if config.capacity_bytes // payload < needed:
        yield (
            f"replay.capacity_mb = {config.replay.capacity_mb:g} has room for "
            f"{config.capacity_bytes // payload} trajectories, and a learner that is restarted "
            f"needs {needed} of them: raise it to {-(-needed * payload // 2**20)}, or lower "
            "learner.checkpoint_every_cycles"
        )


def _allocated(size: int) -> int:
    """What jemalloc, the allocator of Redis and Valkey, sets aside for so many bytes: it knows four
    sizes between two powers of two, and a latent is a little larger than such a power."""
    step = 2 ** max(4, (size - 1).bit_length() - 3)
    return -(-size // step) * step


def redis_findings(facts: ServerFacts, needed_bytes: int, where: str) -> Iterator[str]:
    """What is wrong with one server.

    Args:
        needed_bytes: this server's share of the replay; 0: not known.
        where: its URLs, masked.
    """
    told = f"{where} ({facts.name})"
    if facts.eviction != "noeviction":
        yield (
            f"{told} has maxmemory-policy {facts.eviction}, which deletes records when it is full: "
            "set maxmemory-policy to noeviction, as deploy/redis/redis.conf does"
        )
    if not facts.append_only:
        yield (
            f"{told} keeps no append-only file, or could not write it: its records are lost when "
            "it ends; set appendonly yes, and see that its disk has room"
        )
    if facts.is_replica:
        yield f"{told} is a replica, which takes no writes: give the URL of its primary"
    if facts.maxmemory:
        limit = int(PUT_SHARE * facts.maxmemory)
        by = f"maxmemory less {1 - PUT_SHARE:.0%} for scores"
    else:  # a rewrite of the file holds what changes twice
        limit, by = facts.total_memory // 2, "half of its machine's memory"
    left = max(0, limit - facts.used_memory)
    if limit and left < needed_bytes:
        yield (
            f"{told} has {in_bytes(left)} left of {in_bytes(limit)}, {by}, and the replay may grow "
            f"to {in_bytes(needed_bytes)} there: raise maxmemory, lower replay.capacity_groups, "
            "set replay.capacity_mb, or spread over more servers"
        )


def examine_servers(
    config: RunConfig, environ: Mapping[str, str], latent_values: int
) -> Iterator[str]:
    """Of all servers that the run is given; one that cannot be reached is told elsewhere.

    One that several URLs lead to holds the share of each, in a database of its own.
    """
    from buffer.connection import server_facts
    from buffer.errors import ReplayError

    if (text := config.redis_url(environ)) is None:
        return
    urls = urls_in(text)
    each = replay_bytes(config, latent_values) // len(urls) if latent_values else 0
    found: dict[str, tuple[ServerFacts, list[str]]] = {}
    for url in urls:
        try:
            facts = server_facts(url, timeout_s=5.0)
        except (ReplayError, OSError, ValueError):
            continue
        found.setdefault(facts.run_id or url, (facts, []))[1].append(masked(url))
    for facts, told in found.values():
        yield from redis_findings(facts, each * len(told), ", ".join(told))
