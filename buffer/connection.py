"""Reaching a Redis or Valkey server: its client, and its errors in our words.

The only file that imports `redis`. Passwords never reach a log or an error from here.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from buffer.errors import (
    ReplayAccessDenied,
    ReplayError,
    ReplayFull,
    ReplayUnavailable,
    ReplayUnfit,
)
from buffer.urls import URL_HELP, check_url, masked

Client = redis.Redis

_OLDEST_VERSION = (6, 2)
_DENIED = ("WRONGPASS", "NOAUTH", "NOPERM", "invalid password", "invalid username-password")
_PROBE_KEY = "fleetune:{probe}:write"
_PROBE = "redis.call('SET', KEYS[1], '1', 'PX', 1000) return redis.call('TIME')"


def connect(url: str, *, timeout_s: float, retries: int = 3) -> Client:
    """A client that connects when it is first used.

    It sends a command again when the answer is lost, and so may apply one twice: use it only for
    commands that are idempotent. Blocking reads must ask for less than `timeout_s`.
    """
    check_url(url)
    backoff = ExponentialWithJitterBackoff(base=0.05, cap=1.0)
    try:
        # RESP2: replies have the same form on every server from 6.2 on.
        return redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(timeout_s, 5.0),
            health_check_interval=30,
            retry=Retry(backoff, retries=retries),
        )
    except (ValueError, TypeError):
        # Without the cause: it may quote a piece of the password.
        raise ValueError(f"cannot read the Redis URL {masked(url)}; {URL_HELP}") from None


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Errors of the block in our words, with the URL masked."""
    try:
        yield
    except RedisError as error:
        raise _translate(error, masked(url)) from error


def check_connection(url: str, timeout_s: float = 10.0) -> str:
    """Make sure that a run may use this server, before anything is started.

    Returns:
        What answered, such as "valkey 9.1.2".

    Raises:
        ReplayUnavailable, ReplayAccessDenied, ReplayFull: as their names say.
        ReplayUnfit: too old, a cluster, or set up to delete records by itself.
    """
    client = connect(url, timeout_s=timeout_s)
    try:
        with translated(url):
            client.ping()
            info = client.info()
            client.eval(_PROBE, 1, _PROBE_KEY)
    finally:
        client.close()
    return _fit_server(info, masked(url))


def _fit_server(info: Mapping[str, object], where: str) -> str:
    name = "valkey" if "valkey_version" in info else "redis"
    version = str(info.get(f"{name}_version", "0"))
    compatible = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", compatible)[:2]) < _OLDEST_VERSION:
        raise ReplayUnfit(f"{where} is {name} {version}; 6.2 or newer is needed")
    if info.get("cluster_enabled"):
        raise ReplayUnfit(f"{where} is a cluster node; give a server without cluster mode")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if info.get("maxmemory") and policy.startswith("allkeys"):
        raise ReplayUnfit(
            f"{where} deletes records by itself when full (maxmemory-policy {policy}); "
            "set maxmemory-policy to noeviction"
        )
    return f"{name} {version}"


_PASSING = "MISCONF", "NOREPLICAS", "UNBLOCKED", "READONLY", "MASTERDOWN", "BUSY"
"""Of a server that takes no writes for now: its disk is full, its role changes, or a script of
somebody else takes long."""
# Up to 6.2 an error inside a script stands behind where it arose: "ERR Error running script
# (call to f_…): @user_script:2: @user_script: 2: -MISCONF …".
_PLACE = re.compile(r"@user_script: ?\d+: -?")


def _translate(error: RedisError, where: str) -> ReplayError:
    text = str(error)
    code = _PLACE.split(text)[-1].partition(" ")[0]
    denied = isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError)
    if denied or any(word in text for word in _DENIED):
        return ReplayAccessDenied(f"{where} refused the user, its password or a command: {text}")
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return ReplayFull(
            f"{where} has reached its maxmemory: raise it, or lower the replay's capacity "
            "or the bound on pending groups"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return ReplayUnavailable(f"{where} does not answer: {text}")
    if isinstance(error, ResponseError) and code == "NOGROUP":
        return ReplayUnavailable(f"{where} has lost this run's keys (was it flushed?): {text}")
    if isinstance(error, ReadOnlyError | MasterDownError) or code in _PASSING:
        return ReplayUnavailable(f"{where} takes no writes now: {text}")
    return ReplayError(f"{where}: {text}")


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself; sizes in bytes.

    Args:
        run_id: its own since it was started; empty where it does not tell.
        maxmemory: 0 for no limit.
        total_memory: of its machine, 0 where it does not tell.
        append_only: writes every change to its disk, and the last write went well.
    """

    name: str
    run_id: str
    maxmemory: int
    used_memory: int
    total_memory: int
    eviction: str
    append_only: bool
    is_replica: bool


def server_facts(url: str, timeout_s: float = 10.0) -> ServerFacts:
    """Asks a server; raises what `check_connection` raises."""
    name = check_connection(url, timeout_s)
    client = connect(url, timeout_s=timeout_s)
    try:
        with translated(url):
            info = cast(Mapping[str, Any], client.info())
    finally:
        client.close()
    return ServerFacts(
        name=name,
        run_id=str(info.get("run_id", "")),
        maxmemory=int(info.get("maxmemory", 0)),
        used_memory=int(info.get("used_memory", 0)),
        total_memory=int(info.get("total_system_memory", 0)),
        eviction=str(info.get("maxmemory_policy", "noeviction")),
        append_only=bool(info.get("aof_enabled")) and info.get("aof_last_write_status") == "ok",
        is_replica=info.get("role") == "slave",
    )
