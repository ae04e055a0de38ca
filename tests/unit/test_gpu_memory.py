"""A plan against the GPUs that a process may be placed on, by hand-made nodes."""

from pathlib import Path

from deploy.doctor.gpu_memory import memory_findings, memory_notes, needed_bytes, shares
from deploy.run.bookings import Room, bookings
from deploy.settings.run_config import RunConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
PRESET = str(ROOT / "deploy" / "configs" / "shapes-lasro.yaml")
GIB = 2**30
HERE = Room("this machine", 8, 4, gpu_bytes=24 * GIB)


def _config(*overrides: str) -> RunConfig:
    return load_config(PRESET, ["name=n", *overrides])


def _told(config: RunConfig, sizes: dict[str, dict[str, int]], *rooms: Room) -> list[str]:
    return list(memory_findings(config, sizes, shares(bookings(config), rooms)))


def _sizes(sampler: int, learner: int) -> dict[str, dict[str, int]]:
    return {
        "sampler": {"total": sampler},
        "reward_server": {"total": 0},
        "evaluator": {"total": 0},
        "learner": {"total": learner},
    }


def test_a_plan_larger_than_its_share_of_a_gpu_is_found_with_what_makes_it_smaller() -> None:
    config = _config("actors.num_gpus=0.5", "learner.num_gpus=1")
    (finding,) = _told(config, _sizes(13 * GIB, 20 * GIB), HERE)
    assert finding.startswith("the plan of one sampler is 13.00 GiB, about 15.30 GiB with")
    assert "12.00 GiB" in finding
    (finding,) = _told(config, _sizes(9 * GIB, 25 * GIB), HERE)
    assert "learner.gradient_checkpointing=true" in finding


def test_a_plan_is_of_tensors_and_a_process_needs_a_gib_and_a_tenth_more() -> None:
    assert needed_bytes(10 * GIB) == 12 * GIB
    config = _config("learner.num_gpus=1")
    assert _told(config, _sizes(0, 20 * GIB), HERE) == []
    (finding,) = _told(config, _sizes(0, 21 * GIB), HERE)  # 24.1 of 24
    assert "about 24.10 GiB" in finding


def test_an_evaluator_that_does_not_fit_is_told_of_its_batch() -> None:
    config = _config("evaluation.num_gpus=1", "evaluation.max_batch=16")
    sizes = _sizes(0, 0) | {"evaluator": {"total": 25 * GIB}}
    (finding,) = _told(config, sizes, HERE)
    assert "evaluation.num_gpus" in finding
    assert "set evaluation.max_batch lower" in finding


def test_a_process_on_cpus_fits_whatever_the_gpu_is() -> None:
    assert _told(_config(), _sizes(100 * GIB, 100 * GIB), HERE) == []


def _node(name: str, gib: int, role: str, gpus: int = 4) -> Room:
    return Room(name, 8, gpus, {"fleetune-role": role}, gpu_bytes=gib * GIB)


SMALL, LARGE = _node("node a", 16, "sampler"), _node("node b", 80, "learner")


def test_the_smallest_gpu_that_a_process_may_be_placed_on_decides() -> None:
    config = _config("learner.num_gpus=1")
    assert _told(config, _sizes(0, 40 * GIB), LARGE) == []
    (finding,) = _told(config, _sizes(0, 40 * GIB), LARGE, SMALL)
    assert "16.00 GiB of node a's GPU" in finding


def test_a_small_gpu_is_no_matter_where_labels_or_numbers_keep_a_process_off_it() -> None:
    labelled = _config("learner.num_gpus=1", "learner.node_labels={fleetune-role: learner}")
    assert _told(labelled, _sizes(0, 40 * GIB), LARGE, SMALL) == []
    several = _config("learner.num_gpus=2")
    assert _told(several, _sizes(0, 40 * GIB), LARGE, _node("c", 16, "learner", gpus=1)) == []


def test_a_head_without_a_gpu_is_not_what_a_plan_is_compared_with() -> None:
    config = _config("actors.num_gpus=1")
    (finding,) = _told(config, _sizes(17 * GIB, 0), Room("node head", 8, 0), SMALL)
    assert finding.startswith("the plan of one sampler is 17.00 GiB")


def test_what_no_node_has_told_of_is_a_note() -> None:
    config = _config(
        "actors.num_gpus=1", "scoring.num_gpus=0.5", "scoring.node_labels={fleetune-role: reward}"
    )
    found = shares(bookings(config), [SMALL])
    assert list(memory_findings(config, _sizes(0, 0), found)) == []
    (note,) = memory_notes(found, {})
    assert note.startswith("memory was not compared for reward server: no node")
    assert list(memory_notes(shares(bookings(_config()), []), {"scoring": ["human"]})) == []


def test_a_plan_without_the_networks_of_rewards_says_so() -> None:
    found = shares(bookings(_config("scoring.num_gpus=1", "learner.num_gpus=1")), [HERE])
    (note,) = memory_notes(found, {"scoring": ["human", "mine"], "evaluation": ["human"]})
    assert note.startswith("the plan of one reward server lacks the networks of human, mine,")
