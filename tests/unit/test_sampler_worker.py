"""The sampler's loop, with hand-made tickets, weights and policy."""

import threading
import time

import pytest

from actors.prompts import PromptSource
from actors.worker import WorkerSettings
from buffer.backoff import GaveUpError
from tests.unit.sampler_fakes import Scene


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

    def stop_when_renewed() -> None:
        for _ in range(3):
            scene.tickets.renewed.acquire(timeout=60)
        scene.worker.stop()

    threading.Thread(target=stop_when_renewed).start()
    scene.worker.run()
    assert scene.tickets.renewals >= 3


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


def test_stats_count_groups_images_and_seconds_by_stage() -> None:
    scene = Scene(0, 0)
    scene.policy.before_sampling = lambda: time.sleep(0.02)
    scene.run_until_empty()
    stats = scene.worker.stats()
    assert (stats["groups"], stats["images"], stats["policy_version"]) == (2, 4, 0)
    assert float(stats["sample_s"]) >= 0.04


def test_leases_are_renewed_while_a_batch_takes_its_time() -> None:
    scene = Scene(0, settings=WorkerSettings(idle_s=0.001, lease_s=0.1))
    scene.policy.before_sampling = lambda: [
        scene.tickets.renewed.acquire(timeout=60) for _ in range(3)
    ]
    scene.run_until_empty()
    assert scene.tickets.renewals >= 3


@pytest.mark.parametrize("name", ["groups_per_batch", "put_attempts"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        WorkerSettings(**{name: 0})
