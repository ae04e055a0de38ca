"""The sampler's loop when something fails: what is tried again, given back and given up."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from actors.rollout import Group, Rollout
from actors.worker import WorkerSettings
from buffer.backoff import GaveUpError
from buffer.records import Record, Ticket
from tests.unit.sampler_fakes import FAST, Scene


def test_a_failing_put_is_tried_again() -> None:
    scene = Scene(0)
    scene.tickets.failing_puts = 2
    scene.run_until_empty()
    assert (sorted(scene.tickets.groups), scene.worker.stats()["failures"]) == ([0], 0)


def test_a_put_that_keeps_failing_returns_the_ticket_and_samples_it_again() -> None:
    scene = Scene(0)
    scene.tickets.failing_puts = FAST.put_attempts + 1
    scene.run_until_empty()
    assert scene.policy.batches == [[0], [0]]


def test_only_the_groups_that_were_not_put_are_returned() -> None:
    settings = WorkerSettings(groups_per_batch=2, put_attempts=1, max_failures=0)
    scene = Scene(0, 0, settings=settings)
    put = scene.tickets.put_group

    def put_only_the_first(
        ticket: int, records: Sequence[Record], failed: Mapping[int, str]
    ) -> bool:
        scene.tickets.failing_puts = int(ticket == 1)
        return put(ticket, records, failed)

    scene.tickets.put_group = put_only_the_first
    with pytest.raises(GaveUpError):
        scene.worker.run()
    assert [ticket.number for ticket in scene.tickets.waiting] == [1]


def test_loaded_weights_do_while_newer_ones_cannot_be_fetched() -> None:
    scene = Scene(0, 0)

    def lose_the_publisher() -> None:
        scene.weights.version, scene.weights.broken = 1, True

    scene.policy.before_sampling = lose_the_publisher
    scene.run_until_empty()
    assert scene.tickets.groups[1][0].policy_version == 0


def test_weights_that_a_ticket_needs_and_nobody_has_are_a_failure() -> None:
    scene = Scene(0)
    scene.weights.broken = True
    with pytest.raises(GaveUpError, match="ConnectionError: the publisher is gone"):
        scene.worker.run()


def test_a_policy_that_diverged_never_reaches_the_buffer() -> None:
    scene = Scene(0)
    scene.policy.before_sampling = lambda: setattr(scene.policy, "weight", float("nan"))
    with pytest.raises(GaveUpError, match=r"tickets \[0\] .*policy version 0 has diverged"):
        scene.worker.run()


def test_one_member_that_is_not_finite_is_set_aside_and_the_others_are_put() -> None:
    scene = Scene(0, 0, settings=replace(FAST, groups_per_batch=2))
    sample = scene.policy.sample

    def odd(groups: Sequence[Group]) -> list[Rollout]:
        rollouts = sample(groups)
        rollouts[0].latents[1, 0, 0, 0, 0] = np.nan
        return rollouts

    scene.policy.sample = odd
    scene.run_until_empty()
    members = {number: [r.member for r in group] for number, group in scene.tickets.groups.items()}
    assert members == {0: [0], 1: [0, 1]}
    assert list(scene.tickets.failed) == [(0, 1)]
    stats = scene.worker.stats()
    assert (stats["groups"], stats["images"], stats["failures"]) == (2, 3, 0)


def test_a_worker_gives_up_after_its_budget_of_failures() -> None:
    scene = Scene(0)

    def fail() -> None:
        raise RuntimeError("out of memory")

    scene.policy.before_sampling = fail
    with pytest.raises(GaveUpError, match=r"sampler-0 failed 4 times in a row.*out of memory"):
        scene.worker.run()


def test_a_success_between_failures_keeps_the_worker_alive() -> None:
    scene = Scene(*[0] * 12)
    calls = iter(range(1000))

    def fail_every_other_time() -> None:
        if next(calls) % 2:
            raise RuntimeError("a hiccup")

    scene.policy.before_sampling = fail_every_other_time
    scene.run_until_empty()
    assert len(scene.tickets.groups) == 12


def test_a_worker_that_gives_up_returns_its_lease() -> None:
    scene = Scene(0)
    scene.tickets.failing_puts = 1000
    with pytest.raises(GaveUpError):
        scene.worker.run()
    assert not scene.tickets.leased


def test_a_lease_that_cannot_be_returned_does_not_hide_the_first_error() -> None:
    scene = Scene(0, settings=WorkerSettings(max_failures=0))
    scene.weights.broken = True

    def fail(ticket: Ticket) -> None:
        raise ConnectionError("the server is away too")

    scene.tickets.return_ticket = fail
    with pytest.raises(GaveUpError, match="the publisher is gone"):
        scene.worker.run()


def test_waiting_for_tickets_does_not_renew_the_budget_of_failures() -> None:
    scene = Scene(settings=FAST)
    calls = iter(range(1000))

    def fail_every_other_time() -> None:
        if next(calls) % 2:
            raise ConnectionError("the server is away")

    scene.tickets.on_empty = fail_every_other_time
    with pytest.raises(GaveUpError, match="failed 4 times"):
        scene.worker.run()


def test_a_sampler_that_hangs_loses_its_leases(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(0, settings=WorkerSettings(idle_s=0.001, lease_s=0.03, hold_s=0.1))
    told = "sampler-0: at work for more than"

    def hang() -> None:
        deadline = time.monotonic() + 60
        while told not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)

    scene.policy.before_sampling = hang
    scene.run_until_empty()
    assert told in caplog.text
    assert scene.tickets.renewals <= 40  # a first batch has four times 0.1 s, a beat takes 0.01 s


def test_a_group_waits_for_room_in_a_full_replay() -> None:
    scene = Scene(0, settings=replace(FAST, full_s=0.001, max_failures=0))
    scene.tickets.full_puts = 20
    scene.run_until_empty()
    stats = scene.worker.stats()
    assert (stats["full"], stats["failures"], scene.policy.batches) == (20, 0, [[0]])


def test_a_worker_that_is_stopped_while_the_replay_is_full_returns_its_ticket() -> None:
    scene = Scene(0, settings=replace(FAST, full_s=30))
    scene.tickets.full_puts = 1000
    threading.Timer(0.1, scene.worker.stop).start()
    scene.worker.run()
    assert [ticket.number for ticket in scene.tickets.waiting] == [0]


def test_a_wait_for_a_version_is_no_hang() -> None:
    settings = WorkerSettings(idle_s=0.001, lease_s=0.03, hold_s=0.05, version_timeout_s=60)
    scene = Scene(1, settings=settings)
    threading.Timer(0.4, lambda: setattr(scene.weights, "version", 1)).start()
    scene.run_until_empty()
    assert (sorted(scene.tickets.groups), scene.worker.stats()["failures"]) == ([0], 0)
    assert scene.tickets.renewals > 5


def test_weights_that_hang_on_their_way_into_the_network_are_a_hang() -> None:
    hung = threading.Event()
    settings = WorkerSettings(idle_s=0.001, lease_s=0.03, hold_s=0.1)
    scene = Scene(0, settings=settings, on_hang=hung.set)

    def hang(weights: Mapping[str, np.ndarray], /) -> None:
        hung.wait(20)

    scene.policy.load = hang
    scene.run_until_empty()
    assert hung.is_set()


def test_a_sampler_that_has_lost_its_gpu_ends_at_once_and_returns_its_ticket() -> None:
    scene = Scene(0)

    def lose() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    scene.policy.before_sampling = lose
    with pytest.raises(RuntimeError, match="illegal memory access"):
        scene.worker.run()
    assert scene.worker.stats()["failures"] == 0
    assert [ticket.number for ticket in scene.tickets.waiting] == [0]


def test_a_sampler_whose_gpu_has_no_room_tries_again() -> None:
    scene = Scene(0)
    calls = iter(range(1000))

    def find_no_room_once() -> None:
        if not next(calls):
            raise RuntimeError("CUDA error: out of memory")

    scene.policy.before_sampling = find_no_room_once
    scene.run_until_empty()
    assert (scene.worker.stats()["failures"], sorted(scene.tickets.groups)) == (1, [0])
