"""What a replay does when its server is away, full or refuses the client."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from buffer.connection import Client, check_connection, connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayAccessDenied, ReplayFull, ReplayUnavailable
from buffer.records import START, Record
from buffer.redis_replay import RedisReplay, ReplaySettings
from tests.services.replay_calls import (
    LEASE_S,
    MakeGroup,
    MakeScores,
    assert_balanced,
    claim,
    issue,
    put,
    wait_for,
)

pytestmark = pytest.mark.redis


def test_an_outage_is_ridden_out(tmp_path: Path, make_group: MakeGroup, scores: MakeScores) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=20)
        replay = RedisReplay.connect(settings)
        put(replay, [make_group(0)])
        names = [record.record_id for record in claim(replay)]
        os.kill(server.pid, signal.SIGKILL)
        committing = threading.Thread(
            target=lambda: replay.commit([(name, scores()) for name in names])
        )
        committing.start()
        time.sleep(0.5)
        assert server.revive()
        committing.join()
        assert len(replay.tail(START, max_entries=9)) == 2
        assert_balanced(replay)
        replay.close()


def fill_disk(client: Client, folder: Path) -> None:
    """A server that cannot write its snapshot says what it says when its disk is full."""
    (folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    save(client, "err")


def empty_disk(client: Client, folder: Path) -> None:
    (folder / "dump.rdb").rmdir()
    save(client, "ok")


def save(client: Client, status: str) -> None:
    deadline = time.monotonic() + 60
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def become_replica(client: Client, folder: Path) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")


def become_primary(client: Client, folder: Path) -> None:
    client.execute_command("REPLICAOF", "NO", "ONE")


def lack_replicas(client: Client, folder: Path) -> None:
    client.config_set("min-replicas-to-write", 1)


def need_no_replicas(client: Client, folder: Path) -> None:
    client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    ("refuse", "accept"),
    [
        pytest.param(fill_disk, empty_disk, id="disk full"),
        pytest.param(become_replica, become_primary, id="a replica"),
        pytest.param(lack_replicas, need_no_replicas, id="replicas lost"),
    ],
)
def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(
    refuse: Callable[[Client, Path], None],
    accept: Callable[[Client, Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=60)
        replay, client = RedisReplay.connect(settings), connect(server.url, timeout_s=5)
        refuse(client, tmp_path)
        admitting = threading.Thread(target=lambda: replay.admit(limit=1, policy_version=0))
        admitting.start()
        wait_for(lambda: "takes no writes now" in caplog.text)
        accept(client, tmp_path)
        admitting.join()
        assert replay.counters().admitted == 1
        client.close()
        replay.close()


def test_a_wait_for_records_goes_on_when_the_server_was_a_replica_meanwhile(
    tmp_path: Path, make_group: MakeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=60)
        replay, client = RedisReplay.connect(settings), connect(server.url, timeout_s=5)
        found: list[Record] = []
        waiting = threading.Thread(
            target=lambda: found.extend(
                replay.claim("server", max_records=9, block_s=60, lease_s=LEASE_S)
            )
        )
        waiting.start()
        wait_for(lambda: client.info("clients")["blocked_clients"] == 1)
        become_replica(client, tmp_path)
        wait_for(lambda: "UNBLOCKED" in caplog.text)
        become_primary(client, tmp_path)
        other = RedisReplay.connect(settings)
        put(other, [make_group(0)])
        waiting.join()
        assert [record.ticket for record in found] == [0, 0]
        for each in (client, other, replay):
            each.close()


def test_a_server_that_was_flushed_under_a_run_is_told_for_what_it_is(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=0.1)
        replay, client = RedisReplay.connect(settings), connect(server.url, timeout_s=5)
        client.flushall()
        with pytest.raises(ReplayUnavailable, match="has lost this run's keys"):
            claim(replay)
        client.close()
        replay.close()


def test_an_outage_that_lasts_longer_is_an_error(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=0.5)
        replay = RedisReplay.connect(settings)
        os.kill(server.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(ReplayUnavailable):
            replay.counters()
        assert 0.5 < time.monotonic() - begun < 10
        replay.close()


def test_a_nearly_full_server_takes_commits_but_no_new_groups(
    make_group: MakeGroup, scores: MakeScores
) -> None:
    with EmbeddedServer() as server:
        settings = ReplaySettings(url=server.url, run="full", capacity_records=2)
        replay = RedisReplay.connect(settings)
        put(replay, [make_group(0)])
        issue(replay, 1)
        used = replay._link.client.info("memory")["used_memory"]
        replay._link.client.config_set("maxmemory", int(used / 0.91))
        with pytest.raises(ReplayFull, match="maxmemory"):
            replay.put_group(1, make_group(1))
        assert list(replay._link.client.scan_iter("*:record:staged:*")) == []
        assert replay.commit([(record.record_id, scores()) for record in claim(replay)]) == 2
        replay._link.client.config_set("maxmemory", 2 * used)
        assert replay.put_group(1, make_group(1))
        replay.close()


def test_latents_of_failed_records_make_room_where_nothing_else_can(
    make_group: MakeGroup,
) -> None:
    with EmbeddedServer() as server:
        settings = ReplaySettings(url=server.url, run="full", capacity_records=200)
        replay = RedisReplay.connect(settings)
        client = replay._link.client
        put(replay, [make_group(ticket, size=50) for ticket in range(3)])
        for record in claim(replay, max_records=150):
            replay.fail(record.record_id, "boom", retry=False)
        issue(replay, 1)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.91))
        with pytest.raises(ReplayFull, match="maxmemory"):
            replay.put_group(3, make_group(3))
        failed = replay.quarantined(150)
        assert [record.size_bytes for record in reversed(failed)][:100] == [0] * 100
        assert {record.reason for record in failed} == {"boom"}
        assert eventually_put(replay, make_group(3))
        assert replay.counters().failed == 150
        assert_balanced(replay)
        replay.close()


def eventually_put(replay: RedisReplay, group: list[Record]) -> bool:
    """As a sampler does; the server frees what it was told to in its own time."""
    for _ in range(100):
        try:
            return replay.put_group(3, group)
        except ReplayFull:
            time.sleep(0.05)
    return False


def test_nobody_at_the_url_is_unavailable() -> None:
    with pytest.raises(ReplayUnavailable, match=r"127\.0\.0\.1:1/"):
        check_connection("redis://127.0.0.1:1/0", timeout_s=1)


@pytest.mark.parametrize("step", ["lease", "put", "claim again", "commit", "fail"])
def test_a_full_server_refuses_a_step_and_nothing_of_it_happens(
    step: str, make_group: MakeGroup, scores: MakeScores
) -> None:
    with EmbeddedServer() as server:
        replay = RedisReplay.connect(ReplaySettings(url=server.url, run="full", capacity_records=2))
        put(replay, [make_group(0)])
        name = claim(replay)[0].record_id
        replay.admit(limit=3, policy_version=0)
        replay.lease_ticket("a", lease_s=LEASE_S)
        steps = {
            "lease": lambda: replay.lease_ticket("a", lease_s=LEASE_S),
            "put": lambda: replay.put_group(1, make_group(1)),
            "claim again": lambda: replay.claim("b", max_records=9, block_s=0, lease_s=0.001),
            "commit": lambda: replay.commit([(name, scores())]),
            "fail": lambda: replay.fail(name, "boom", retry=True),
        }
        time.sleep(0.01)  # the claims are now older than the lease of "claim again"
        before = replay.counters()
        replay._link.client.config_set("maxmemory", "1")
        with pytest.raises(ReplayFull, match="maxmemory"):
            steps[step]()
        assert replay.counters() == before
        replay._link.client.config_set("maxmemory", "0")
        steps[step]()
        assert replay.counters() != before
        replay.close()


def test_a_wrong_password_is_denied_and_not_shown() -> None:
    with EmbeddedServer(transport="tcp") as server:
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied) as caught:
            check_connection(f"redis://:guess-me@{address}", timeout_s=2)
    assert "guess-me" not in str(caught.value)


def test_a_user_without_scripts_is_denied_before_the_run() -> None:
    with EmbeddedServer(transport="tcp") as server:
        admin = connect(server.url, timeout_s=2)
        admin.acl_setuser("weak", enabled=True, passwords=["+pw"], commands=["+ping", "+info"])
        admin.close()
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied, match="eval"):
            check_connection(f"redis://weak:pw@{address}", timeout_s=2)
