"""Asking several servers of which some are away: hand-made ones, which answer as they are told."""

import logging
import time

import pytest

from buffer.errors import ReplayFull, ReplayUnavailable
from buffer.shards import Shards


class Server:
    """Answers with its name, unless it is away or full; notes when it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: Exception | None = None
        self.asked = 0

    def answer(self) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.name


def made(*away: int, outage_s: float = 0.0) -> tuple[list[Server], Shards[Server]]:
    servers = [Server(name) for name in "abc"]
    for number in away:
        servers[number].error = ReplayUnavailable(f"{servers[number].name} is away")
    return servers, Shards(servers, outage_s=outage_s)


def test_another_server_is_asked_first_each_time() -> None:
    _, shards = made()
    assert [shards.first_found(Server.answer) for _ in range(4)] == ["a", "b", "c", "a"]


def test_who_has_nothing_is_passed_over() -> None:
    _, shards = made()
    found = shards.first_found(lambda server: server.answer() if server.name == "c" else None)
    assert found == "c"
    assert shards.first_found(lambda server: None) is None


def test_a_server_that_is_away_is_passed_over_and_soon_not_asked_at_all() -> None:
    servers, shards = made(0, outage_s=9)
    for _ in range(30):
        assert shards.first_found(Server.answer) in ("b", "c")
    assert servers[0].asked <= 2


def test_a_server_that_is_back_is_asked_again() -> None:
    servers, shards = made(0, outage_s=9)
    shards.tell(Server.answer)
    servers[0].error = None
    time.sleep(0.15)
    assert shards.tell(Server.answer) == {0: "a", 1: "b", 2: "c"}


def test_the_others_have_answered_when_one_is_given_up() -> None:
    servers, shards = made(0)
    with pytest.raises(ReplayUnavailable, match="a is away"):
        shards.settle_all(Server.answer)
    assert [server.asked for server in servers] == [1, 1, 1]


def test_a_server_known_to_be_away_comes_last() -> None:
    servers, shards = made(0, outage_s=9)
    shards.tell(Server.answer)
    servers[0].error = None
    order: list[str] = []
    shards.settle_all(lambda server: order.append(server.name))
    assert order == ["b", "c", "a"]


def test_a_refusal_is_raised_when_the_others_have_answered() -> None:
    servers, shards = made()
    servers[0].error = ReplayFull("a is full")
    with pytest.raises(ReplayFull):
        shards.settle_all(Server.answer)
    assert [server.asked for server in servers] == [1, 1, 1]


def test_a_server_that_refuses_keeps_no_other_from_being_told() -> None:
    servers, shards = made(1, outage_s=9)
    servers[0].error = ReplayFull("a is full")
    with pytest.raises(ReplayFull):
        shards.tell(Server.answer)
    assert [server.asked for server in servers] == [1, 1, 1]


def test_nobody_waits_for_a_server_whose_part_it_is_not() -> None:
    servers, shards = made(0, outage_s=9)
    assert shards.settle({2: Server.answer}) == {2: "c"}
    assert servers[0].asked == 0


def test_who_asks_once_loses_no_time_at_a_server_that_was_away_a_moment_ago() -> None:
    servers, shards = made(0, outage_s=9)
    for _ in range(5):
        with pytest.raises(ReplayUnavailable, match="a is away"):
            shards.ask_once(0, Server.answer)
    assert servers[0].asked == 1
    servers[0].error = None
    time.sleep(0.15)
    assert shards.ask_once(0, Server.answer) == "a"


def test_items_are_gathered_up_to_the_most() -> None:
    _, shards = made()
    rooms: list[int] = []

    def ask(server: Server, number: int, room: int, wait_s: float) -> list[str]:
        rooms.append(room)
        return [server.name] * min(2, room)

    assert shards.gather(ask, most=5, block_s=0) == [
        *[(0, "a")] * 2,
        *[(1, "b")] * 2,
        (2, "c"),
    ]
    assert rooms == [5, 3, 1]


def test_only_the_last_server_is_waited_at_and_each_is_the_last_in_its_turn() -> None:
    _, shards = made()
    waited: list[int] = []

    def ask(server: Server, number: int, room: int, wait_s: float) -> list[str]:
        if wait_s:
            waited.append(number)
        return ["a record"] if len(waited) == 3 else []

    assert shards.gather(ask, most=5, block_s=30) == [(1, "a record")]
    assert waited == [2, 0, 1]


def test_an_outage_is_logged_at_its_beginning_and_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers, shards = made(0, outage_s=9)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            shards.tell(Server.answer)
            time.sleep(0.06)
        servers[0].error = None
        time.sleep(0.4)
        shards.tell(Server.answer)
    assert len(caplog.records) == 2
    assert "is away" in caplog.messages[0]
    assert "answers again" in caplog.messages[1]


def test_all_servers_away_are_given_up_together() -> None:
    _, shards = made(0, 1, 2, outage_s=0.3)
    begun = time.monotonic()
    with pytest.raises(ReplayUnavailable):
        shards.first_found(Server.answer)
    assert time.monotonic() - begun >= 0.3
