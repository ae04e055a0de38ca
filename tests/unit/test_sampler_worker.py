"""The sampler's loop, with hand-made tickets, weights and policy."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from actors.prompts import PromptSource
from actors.rollout import Group, Rollout
from actors.worker import SamplerWorker, WorkerSettings
from buffer.backoff import GaveUpError
from buffer.errors import ReplayFull
from buffer.records import Record, Ticket

FAST = WorkerSettings(idle_s=0.001, backoff_s=0.001, max_backoff_s=0.002, max_failures=3)


class FakeTickets:
    """Issues the given tickets once; what comes back is issued again."""

    def __init__(self, *versions: int) -> None:
        self.waiting = [Ticket(number, version) for number, version in enumerate(versions)]
        self.leased: dict[int, Ticket] = {}
        self.groups: dict[int, list[Record]] = {}
        self.renewals = 0
        self.failing_puts = 0
        self.full_puts = 0
        self.on_empty: Callable[[], None] = lambda: None

    def lease_ticket(self, owner: str, *, lease_s: float) -> Ticket | None:
        if not self.waiting:
            self.on_empty()
            return None
        ticket = self.waiting.pop(0)
        self.leased[ticket.number] = ticket
        return ticket

    def renew_ticket(self, ticket: Ticket, *, lease_s: float) -> bool:
        self.renewals += 1
        return ticket.number in self.leased

    def return_ticket(self, ticket: Ticket) -> None:
        self.waiting.insert(0, self.leased.pop(ticket.number))

    def put_group(self, ticket: int, records: Sequence[Record]) -> bool:
        if self.failing_puts:
            self.failing_puts -= 1
            raise ConnectionError("the server is away")
        if self.full_puts:
            self.full_puts -= 1
            raise ReplayFull("no room")
        self.leased.pop(ticket, None)
        new = ticket not in self.groups
        self.groups.setdefault(ticket, list(records))
        return new


class FakeWeights:
    """A board whose version the test sets."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.life = 0
        self.broken = False

    def latest(self) -> tuple[int, int]:
        return self.version, 1000 * self.life + self.version

    def fetch(self, at_least: int, /) -> tuple[int, Mapping[str, np.ndarray]]:
        if self.broken:
            raise ConnectionError("the publisher is gone")
        return self.version, {"w": np.array([self.version + 100 * self.life], np.float32)}


class FakePolicy:
    """Latents are the seed's low bits plus the weight; one hook runs before every batch."""

    def __init__(self) -> None:
        self.weight = -1.0
        self.batches: list[list[int]] = []
        self.before_sampling: Callable[[], None] = lambda: None

    def load(self, weights: Mapping[str, np.ndarray], /) -> None:
        self.weight = float(weights["w"][0])

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        self.before_sampling()
        self.batches.append([group.ticket for group in groups])
        return [self._rollout(group) for group in groups]

    def _rollout(self, group: Group) -> Rollout:
        latents = np.full((2, 2, 1, 2, 2), group.seed % 97 + self.weight, np.float16)
        return Rollout(steps=(1, 2), scored=(0, 1), latents=latents)


class Scene:
    """A worker and its three fakes."""

    def __init__(
        self,
        *ticket_versions: int,
        published: int = 0,
        loaded: int = -1,
        settings: WorkerSettings = FAST,
    ) -> None:
        self.tickets = FakeTickets(*ticket_versions)
        self.weights = FakeWeights(published)
        self.policy = FakePolicy()
        self.worker = SamplerWorker(
            self.tickets,
            PromptSource(["a cat", "a dog", "a fox"], run_seed=1),
            self.weights,
            self.policy,
            owner="sampler-0",
            settings=settings,
            loaded_version=loaded,
        )

    def run_until_empty(self) -> None:
        self.tickets.on_empty = self.worker.stop
        self.worker.run()


def test_every_ticket_becomes_a_group() -> None:
    scene = Scene(0, 0, 0)
    scene.run_until_empty()
    assert sorted(scene.tickets.groups) == [0, 1, 2]


def test_a_record_tells_its_ticket_prompt_seed_and_steps() -> None:
    scene = Scene(0)
    scene.run_until_empty()
    record = scene.tickets.groups[0][1]
    prompts = PromptSource(["a cat", "a dog", "a fox"], run_seed=1)
    told = record.record_id, record.prompt, record.seed, record.steps, record.scored
    expected = "0000000000.001", prompts.prompt_of(0), prompts.seed_of(0), (1, 2), (0, 1)
    assert told == expected


def test_several_tickets_are_sampled_in_one_batch() -> None:
    scene = Scene(0, 0, 0, settings=WorkerSettings(groups_per_batch=2, idle_s=0.001))
    scene.run_until_empty()
    assert scene.policy.batches == [[0, 1], [2]]


def test_a_new_version_is_taken_between_groups() -> None:
    scene = Scene(0, 0)

    def publish() -> None:
        scene.weights.version += 1

    scene.policy.before_sampling = publish
    scene.run_until_empty()
    stamped = {number: group[0].policy_version for number, group in scene.tickets.groups.items()}
    assert stamped == {0: 0, 1: 1}


def test_a_group_is_made_by_the_version_it_is_stamped_with() -> None:
    scene = Scene(0, published=5)
    scene.run_until_empty()
    record = scene.tickets.groups[0][0]
    assert float(record.latents[0].flat[0]) == record.seed % 97 + 5


def test_weights_that_are_loaded_already_are_not_fetched_again() -> None:
    scene = Scene(0, 0, 0)
    scene.run_until_empty()
    assert scene.worker.stats()["loads"] == 1


def test_weights_as_built_do_while_their_version_is_the_newest() -> None:
    scene = Scene(3, published=3, loaded=3)
    scene.run_until_empty()
    assert (scene.worker.stats()["loads"], sorted(scene.tickets.groups)) == (0, [0])


def test_a_version_that_is_published_again_with_other_weights_is_taken() -> None:
    scene = Scene(0, 0)
    scene.policy.before_sampling = lambda: setattr(scene.weights, "life", 1)
    scene.run_until_empty()
    record = scene.tickets.groups[1][0]
    assert float(record.latents[0].flat[0]) == record.seed % 97 + 100


def test_a_worker_follows_a_learner_that_went_back() -> None:
    scene = Scene(0, 0, published=5)

    def resume_from_an_older_checkpoint() -> None:
        scene.weights.version, scene.weights.life = 2, 1

    scene.policy.before_sampling = resume_from_an_older_checkpoint
    scene.run_until_empty()
    assert scene.tickets.groups[1][0].policy_version == 2


def test_a_ticket_waits_for_the_version_it_asks_for() -> None:
    scene = Scene(3, published=2)
    threading.Timer(0.1, lambda: setattr(scene.weights, "version", 3)).start()
    scene.run_until_empty()
    assert scene.tickets.groups[0][0].policy_version == 3


def test_a_version_that_is_never_published_is_an_error_that_names_it() -> None:
    settings = WorkerSettings(idle_s=0.001, version_timeout_s=0.01, max_failures=0)
    scene = Scene(3, published=2, settings=settings)
    with pytest.raises(GaveUpError, match=r"policy version 3 was not published within 0\.01 s"):
        scene.worker.run()


def test_leases_are_renewed_while_waiting_for_a_version() -> None:
    scene = Scene(3, published=2, settings=WorkerSettings(idle_s=0.001, lease_s=0.01))
    threading.Timer(0.2, scene.worker.stop).start()
    scene.worker.run()
    assert scene.tickets.renewals > 3


def test_a_worker_that_is_stopped_while_waiting_returns_its_lease() -> None:
    scene = Scene(3, published=2)
    threading.Timer(0.05, scene.worker.stop).start()
    scene.worker.run()
    assert [ticket.number for ticket in scene.tickets.waiting] == [0]


def test_a_batch_that_is_in_the_network_at_stop_is_put() -> None:
    scene = Scene(0, 0)
    scene.policy.before_sampling = scene.worker.stop
    scene.worker.run()
    assert (sorted(scene.tickets.groups), len(scene.tickets.waiting)) == ([0], 1)


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

    def put_only_the_first(ticket: int, records: Sequence[Record]) -> bool:
        scene.tickets.failing_puts = int(ticket == 1)
        return put(ticket, records)

    scene.tickets.put_group = put_only_the_first
    with pytest.raises(GaveUpError):
        scene.worker.run()
    assert [ticket.number for ticket in scene.tickets.waiting] == [1]


def test_a_ticket_sampled_twice_gives_bit_identical_records() -> None:
    first, second = Scene(0), Scene(0)
    first.run_until_empty()
    second.run_until_empty()
    pairs = zip(first.tickets.groups[0], second.tickets.groups[0], strict=True)
    assert all(one.latents[1].tobytes() == two.latents[1].tobytes() for one, two in pairs)


def test_a_group_that_was_put_by_another_counts_as_a_duplicate() -> None:
    scene = Scene(0)
    scene.tickets.groups[0] = []
    scene.run_until_empty()
    stats = scene.worker.stats()
    assert (stats["duplicates"], stats["groups"], stats["images"]) == (1, 0, 0)


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
    with pytest.raises(GaveUpError, match=r"members \[0, 1\].*policy version 0 has diverged"):
        scene.worker.run()


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


def test_stats_count_groups_images_and_seconds_by_stage() -> None:
    scene = Scene(0, 0)
    scene.policy.before_sampling = lambda: time.sleep(0.02)
    scene.run_until_empty()
    stats = scene.worker.stats()
    assert (stats["groups"], stats["images"], stats["policy_version"]) == (2, 4, 0)
    assert float(stats["sample_s"]) >= 0.04


def test_leases_are_renewed_while_a_batch_takes_its_time() -> None:
    scene = Scene(0, settings=WorkerSettings(idle_s=0.001, lease_s=0.1))
    scene.policy.before_sampling = lambda: time.sleep(0.3)
    scene.run_until_empty()
    assert scene.tickets.renewals >= 3


def test_a_sampler_that_hangs_loses_its_leases(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(0, settings=WorkerSettings(idle_s=0.001, lease_s=0.03, hold_s=0.1))
    scene.policy.before_sampling = lambda: time.sleep(0.5)
    scene.run_until_empty()
    assert scene.tickets.renewals < 20
    assert "sampler-0: at work for more than" in caplog.text


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


@pytest.mark.parametrize("name", ["groups_per_batch", "put_attempts"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        WorkerSettings(**{name: 0})
