"""The monitor with an evaluator made by hand: what is due, what is kept, what survives."""

import itertools
import json
from pathlib import Path

import pytest

from deploy.evaluation.kept import MOST_PICTURED
from deploy.evaluation.monitor import is_due
from deploy.run.files import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    cycle_of,
    kept_file,
    pictured_cycles,
    pictures_file,
)
from deploy.run.folder import RunFolder
from deploy.run.ranks import RunFailedError
from deploy.settings.run_config import load_config
from tests.unit.monitor_world import SCORE, SMOKE, STOP, World


@pytest.mark.parametrize(
    ("published", "tried", "due"),
    [(4, 0, False), (5, 0, True), (7, 0, True), (9, 7, False), (10, 7, True)],
)
def test_an_evaluation_is_due_once_a_multiple_was_published(
    published: int, tried: int, due: bool
) -> None:
    assert is_due(published, tried, every=5) is due


def test_every_version_in_time_stands_in_the_curves_after_the_untouched_one(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3])
    for version in (0, 1, 2):
        world.publish(version)
    assert world.steps == [0, 1, 2]


def test_without_a_period_nothing_is_measured_beside_training(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2], "evaluation.every_cycles=null")
    for version in (0, 1):
        world.publish(version)
    assert (world.steps, world.evaluator.asked) == ([0], [])


def test_a_slow_evaluator_leaves_versions_out_and_queues_none(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    world.publish(0)
    world.evaluator.ready = False
    for version in (1, 2, 3, 4):
        world.publish(version)
    world.evaluator.ready = True
    world.publish(5)
    assert (world.evaluator.asked, world.steps) == ([1, 5], [0, 1, 5])


def test_an_evaluation_that_fails_is_left_out_and_the_next_one_made(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3])
    world.publish(0)
    world.evaluator.broken = True
    world.publish(1)
    world.evaluator.broken = False
    world.publish(2)
    assert world.steps == [0, 2]


def test_an_evaluation_that_hangs_is_left_out_and_the_next_one_made(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3])
    world.publish(0)
    world.evaluator.ready = False
    world.publish(1)
    assert world.evaluator.replaced == 0
    world.evaluator.late = True
    world.publish(2)
    assert (world.evaluator.replaced, world.steps) == (1, [0, 2])


def test_a_first_evaluation_that_hangs_is_begun_again(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.evaluator.ready = False
    world.publish(0)
    world.evaluator.late = True
    world.publish(0)
    assert (world.evaluator.replaced, world.steps) == (1, [0])


def test_a_disk_that_takes_nothing_loses_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    world = World(tmp_path, [0.1, 0.2, 0.3])
    with monkeypatch.context() as patched:
        patched.setattr("deploy.evaluation.kept.write_whole", refuse)
        patched.setattr("deploy.run.folder.write_whole", refuse)
        for version in (0, 1):
            world.publish(version)
    world.publish(2)
    assert world.steps == [0, 1, 2]
    assert RunFolder(tmp_path).read_before() == {SCORE: 0.1}
    told = json.loads((tmp_path / EVALUATIONS_FILE).read_text())
    assert [each["cycle"] for each in told["evaluations"]] == [1, 2]


def test_the_version_to_keep_after_the_last_cycle_is_not_measured_beside_training(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, [0.1, 0.2], "method.cycles=1")
    world.publish(0)
    world.publish(2)
    assert world.evaluator.asked == []


def test_only_the_weights_of_the_best_version_stay(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.3, 0.5, 0.4], f"evaluation.best_by={SCORE}")
    for version in range(4):
        world.publish(version)
    told = json.loads((tmp_path / EVALUATIONS_FILE).read_text())
    assert (world.kept, told["best"]) == (["cycle-000002"], 2)


def test_no_weights_are_kept_where_nobody_asks_for_the_best(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.3])
    for version in range(2):
        world.publish(version)
    assert world.kept == []


def test_the_rule_asks_the_learner_to_stop_once(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.5, 0.4, 0.3, 0.2], f"evaluation.best_by={SCORE}", STOP)
    asked = []
    for version in range(5):
        world.publish(version)
        asked.append(world.stops)
    assert asked == [0, 0, 0, 1, 1]
    assert (world.monitor.stopped_early or "").startswith(f"{SCORE} was 0.3 after cycle 3")


def test_a_stopped_run_leaves_its_best_version(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.5, 0.4, 0.3], f"evaluation.best_by={SCORE}", STOP)
    for version in range(4):
        world.publish(version)
    result = world.monitor.conclude(["last"], 3)
    assert (result.version, result.after) == ("best, of cycle 1", {SCORE: 0.5})
    assert world.evaluator.exported == [["last"], kept_file(tmp_path, 1)]


def test_where_nothing_was_better_the_untouched_policy_is_left(tmp_path: Path) -> None:
    world = World(tmp_path, [0.5, 0.4, 0.3], f"evaluation.best_by={SCORE}")
    for version in range(3):
        world.publish(version)
    result = world.monitor.conclude(["last"], 2)
    assert (result.version, world.evaluator.exported) == ("best, of cycle 0", [["last"], []])


def test_where_the_last_version_is_the_best_it_is_left_with_its_pictures(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3], f"evaluation.best_by={SCORE}")
    for version in range(3):
        world.publish(version)
    result = world.monitor.conclude(["last"], 2)
    assert (result.version, world.evaluator.exported) == ("last", [["last"]])
    assert (tmp_path / "pictures" / "after.npz").read_text() == "last"


def test_without_a_score_to_choose_by_the_last_version_is_left(tmp_path: Path) -> None:
    world = World(tmp_path, [0.9, 0.8, 0.1])
    for version in range(3):
        world.publish(version)
    result = world.monitor.conclude(["last"], 2)
    assert (result.version, result.after) == ("last", {SCORE: 0.1})


def test_the_last_version_stands_in_the_curves_once(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3])
    world.publish(0)
    world.publish(1)
    world.monitor.conclude(["last"], 2)
    assert world.steps == [0, 1, 2]


def test_what_is_under_way_at_the_end_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.9, 0.2], f"evaluation.best_by={SCORE}")
    world.publish(0)
    world.evaluator.ready = False
    world.publish(1)
    assert world.monitor.conclude(["last"], 2).version == "best, of cycle 1"


def test_a_resumed_run_measures_no_cycle_again_and_knows_its_best(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.5, 0.4, 0.3, 0.2], f"evaluation.best_by={SCORE}")
    for version in range(4):
        world.publish(version)
    world.evaluator.asked.clear()
    world.monitor = world.new_monitor(resume=True)
    for version in (2, 3, 4):  # the checkpoint was older than what was measured
        world.publish(version)
    assert (world.evaluator.asked, world.steps) == ([4], [4])
    assert (world.kept, world.monitor.conclude(["last"], 4).version) == (
        ["cycle-000001"],
        "best, of cycle 1",
    )


def test_without_the_rule_that_it_began_with_a_version_that_was_not_kept_is_not_the_best(
    tmp_path: Path,
) -> None:
    bounds = "evaluation.stop={kind: kl_above, nats: 1000}"
    world = World(tmp_path, [0.1, 0.5, 0.4, 0.3], f"evaluation.best_by={SCORE}", bounds)
    for version in range(3):
        world.publish(version)
    assert world.kept == ["cycle-000001"]
    (tmp_path / "kept" / "cycle-000001.safetensors").unlink()
    settings = ["method.cycles=20", "evaluation.every_cycles=1", f"evaluation.best_by={SCORE}"]
    world.config = load_config(SMOKE, settings)
    world.monitor = world.new_monitor(resume=True)
    assert world.monitor.conclude(["last"], 3).version == "last"


def test_what_was_measured_when_an_earlier_start_ended_is_not_measured_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, [0.1, 0.2, 0.3])
    world.publish(0)
    world.publish(1)
    world.monitor.conclude(["last"], 2)
    lines = [json.dumps({"wall_s": 0.0, **row}) for row in world.monitor.rows()]
    (tmp_path / METRICS_FILE).write_text("\n".join(lines))
    world.evaluator.asked.clear()
    world.monitor = world.new_monitor(resume=True)
    world.publish(2)
    assert world.evaluator.asked == []


def test_a_resumed_run_that_its_rule_had_ended_is_ended_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.5, 0.4, 0.3], f"evaluation.best_by={SCORE}", STOP)
    for version in range(4):
        world.publish(version)
    world.stops, world.monitor = 0, world.new_monitor(resume=True)
    world.look(0)
    assert world.stops == 1


def test_an_evaluator_without_a_place_ends_the_run_before_it_is_trained(tmp_path: Path) -> None:
    world = World(tmp_path, [0.5])
    world.evaluator.has_place = False
    with pytest.raises(RunFailedError, match="no place"):
        world.monitor.look({"published": 0, "stage": "collecting"})


def test_a_stop_is_heeded_while_the_result_is_measured(tmp_path: Path) -> None:
    world = World(tmp_path, [0.5, 0.6])

    def asked_to_stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.monitor.conclude(["last"], 1, asked_to_stop)


def test_a_long_run_keeps_pictures_of_its_ends_its_best_and_others_between(tmp_path: Path) -> None:
    best, last = 37, 100
    scores = [1.0 if cycle == best else 0.001 * cycle for cycle in range(last + 1)]
    world = World(tmp_path, scores, "method.cycles=200", f"evaluation.best_by={SCORE}")
    for version in range(last + 1):
        world.publish(version)
    kept = sorted(cycle for each in pictured_cycles(tmp_path) if (cycle := cycle_of(each)))
    assert len(kept) == MOST_PICTURED
    assert {1, best, last} <= set(kept)
    assert max(after - before for before, after in itertools.pairwise(kept)) <= 8
    assert pictures_file(tmp_path, "before").exists()
