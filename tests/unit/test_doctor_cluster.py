"""What the doctor tells of nodes, bookings, servers and the hub's cache, by hand-made facts."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from buffer.connection import ServerFacts
from deploy.doctor.cluster import NodeFacts, answer, cluster_findings
from deploy.doctor.files import named_files
from deploy.doctor.hub import cache_folder, hub_findings, hub_ids, lacking
from deploy.doctor.main_memory import main_memory_bytes
from deploy.doctor.redis_server import (
    capacity_findings,
    latents_kept,
    redis_findings,
    replay_bytes,
)
from deploy.run.bookings import Booking, Room, booking_findings, bookings
from deploy.settings.run_config import RunConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "deploy" / "configs"
GIB = 2**30
HERE = {"Python": "3.11.7", "ray": "2.60.0"}
NODE = NodeFacts("a", cpus=8, gpus=0, versions=HERE)
SERVER = ServerFacts("valkey 9", "a", 8 * GIB, 0, 32 * GIB, "noeviction", True, False)


def config(preset: str = "shapes-lasro", *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{preset}.yaml", ["name=n", *overrides])


def told_of(node: NodeFacts) -> list[str]:
    return list(cluster_findings(config(), [node], HERE, Path("/shared/runs")))


def test_a_node_like_the_head_with_room_for_all_is_fine() -> None:
    assert told_of(NODE) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"versions": {**HERE, "ray": "2.59.0"}}, "has ray 2.59.0, and the head 2.60.0"),
        ({"versions": {"Python": "3.11.7"}}, "has ray none"),
        ({"gpus": 2.0, "torch_gpus": 1}, "2 GPUs by Ray's count, and torch can use 1"),
        ({"sees_folder": False}, "does not share /shared/runs"),
        ({"skew_s": 3.0}, "3.0 s ahead of"),
        ({"skew_s": -2.5}, "2.5 s behind"),
    ],
)
def test_what_is_wrong_with_a_node_is_one_finding(change: dict[str, object], told: str) -> None:
    (finding,) = told_of(replace(NODE, **change))
    assert told in finding


def test_a_node_that_does_not_answer_has_no_room_either() -> None:
    findings = told_of(replace(NODE, error="timed out"))
    assert findings[0].startswith("node a does not answer: timed out")
    assert any(finding.startswith("learner.ranks: 0 of 1") for finding in findings[1:])


def test_an_answer_of_a_node_holds_the_smallest_of_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [SimpleNamespace(total_memory=size * GIB) for size in (80, 24)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    files = [str(tmp_path), str(tmp_path / "none")]
    told = NodeFacts("b", cpus=8, gpus=2, **answer(str(tmp_path), "token", "b", files))
    assert told.missing == files[1:]
    assert (told.torch_gpus, told.room.gpu_bytes) == (2, 24 * GIB)
    assert told.room.memory_bytes == main_memory_bytes()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert answer(str(tmp_path), "token", "b", [])["gpu_bytes"] == 0


@pytest.mark.parametrize(
    ("labels", "overrides", "told"),
    [
        ({"fleetune-role": "scoring"}, [], ["reward", "prompts"]),
        ({"fleetune-role": "scoring"}, ["rewards.mine.fleet={node_labels: {x: y}}"], ["prompts"]),
        ({"fleetune-role": "scoring"}, ["rewards.mine.fleet={}"], ["reward", "prompts"]),
        ({}, [], ["reward", "evaluation", "prompts"]),
        ({"fleetune-role": "other"}, ["evaluation.node_labels={x: y}"], ["prompts"]),
    ],
)
def test_files_are_looked_for_on_the_nodes_whose_processes_read_them(
    labels: dict[str, str], overrides: list[str], told: list[str], tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in ("reward", "evaluation", "prompts")}
    for path in paths.values():
        path.write_text("a cat\n")
    run = config(
        "shapes-rlcm",
        f"rewards={{mine: {{kind: image-reward, args: {{python: {paths['reward']}}}}}}}",
        f"evaluation.rewards={{own: {{kind: hpsv2, args: {{checkpoint: {paths['evaluation']}}}}}}}",
        f"prompts={paths['prompts']}",
        "scoring.node_labels={fleetune-role: scoring}",
        "evaluation.node_labels={}" if not labels else "evaluation.node_labels={a: b}",
        *overrides,
    )
    assert set(named_files(run).values()) == {str(path) for path in paths.values()}
    node = replace(NODE, labels=labels, missing=[str(path) for path in paths.values()])
    found = cluster_findings(run, [node], HERE, Path("/shared/runs"))
    lacks = [each for each in found if each.startswith("node a has no ")]
    assert [each.split(",")[0].rpartition("/")[2] for each in lacks] == told


def test_a_clock_a_second_off_is_no_finding() -> None:
    assert told_of(replace(NODE, skew_s=1.0)) == []


def test_bookings_are_of_every_role() -> None:
    wanted = bookings(config("shapes-lasro", "actors.count=3", "actors.num_cpus=2"))
    assert [each.role for each in wanted] == [
        "learner.ranks", "actors.count", "scoring.servers", "evaluation",
    ]  # fmt: skip
    assert (wanted[1].count, wanted[1].cpus) == (3, 2)


def test_a_fleet_of_one_reward_is_booked_too() -> None:
    wanted = bookings(config("shapes-lasro", "rewards.binding.fleet={servers: 2, num_gpus: 1}"))
    (fleet,) = (each for each in wanted if each.role.startswith("rewards."))
    assert (fleet.role, fleet.count, fleet.gpus) == ("rewards.binding.fleet.servers", 2, 1)
    (finding,) = booking_findings([fleet], [Room("a", 8, 1)])
    assert "lower rewards.binding.fleet.servers or rewards.binding.fleet.num_gpus" in finding


@pytest.mark.parametrize(
    ("count", "gpus", "there", "fits"),
    [(3, 0.6, 2, False), (2, 0.6, 2, True), (5, 0.4, 2, False), (4, 0.4, 2, True), (1, 2, 2, True)],
)
def test_a_part_of_a_gpu_is_of_one_gpu(count: int, gpus: float, there: int, fits: bool) -> None:
    found = list(booking_findings([Booking("actors.count", count, 0, gpus)], [Room("a", 8, there)]))
    assert (found == []) == fits


def test_what_fits_in_sum_but_on_no_node_is_told() -> None:
    wanted = [Booking("learner.ranks", 1, 8, 0)]
    rooms = [Room("a", 4, 0), Room("b", 4, 0)]
    (finding,) = booking_findings(wanted, rooms)
    assert "0 of 1" in finding
    assert "2 nodes have 8 CPUs" in finding


def test_fractions_of_a_gpu_share_one() -> None:
    rooms = [Room("a", 8, 1)]
    assert list(booking_findings([Booking("actors.count", 10, 0.1, 0.1)], rooms)) == []
    assert list(booking_findings([Booking("actors.count", 11, 0.1, 0.1)], rooms)) != []


def test_the_largest_is_placed_first() -> None:
    wanted = [Booking("scoring.servers", 2, 1, 0.5), Booking("learner.ranks", 1, 1, 1)]
    assert list(booking_findings(wanted, [Room("a", 4, 1), Room("b", 4, 1)])) == []


def test_a_role_takes_no_room_on_nodes_without_its_labels() -> None:
    wanted = [Booking("actors.count", 1, 1, 0, {"role": "sampler"})]
    assert list(booking_findings(wanted, [Room("a", 8, 0, {"role": "sampler"})])) == []
    (finding,) = booking_findings(wanted, [Room("a", 8, 0, {"role": "learner"})])
    assert "0 nodes with role=sampler" in finding


def server_findings(needed: int = 0, **changes: object) -> list[str]:
    return list(redis_findings(replace(SERVER, **changes), needed, "redis://h"))


def test_a_server_with_room_that_keeps_everything_is_fine() -> None:
    assert server_findings(needed=7 * GIB) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eviction": "volatile-lru"}, "set maxmemory-policy to noeviction"),
        ({"append_only": False}, "set appendonly yes"),
        ({"is_replica": True}, "give the URL of its primary"),
    ],
)
def test_a_server_that_would_lose_records_is_told(changes: dict[str, object], told: str) -> None:
    (finding,) = server_findings(**changes)
    assert told in finding


@pytest.mark.parametrize(
    ("changes", "needed", "found"),
    [
        ({"maxmemory": 10 * GIB}, 9 * GIB, False),
        ({"maxmemory": 10 * GIB}, 9 * GIB + 1, True),
        ({"maxmemory": 10 * GIB, "used_memory": GIB}, 8 * GIB, False),
        ({"maxmemory": 10 * GIB, "used_memory": GIB}, 8 * GIB + 1, True),
        ({"maxmemory": 0}, 16 * GIB, False),
        ({"maxmemory": 0}, 16 * GIB + 1, True),
        ({"maxmemory": 0, "total_memory": 0}, 99 * GIB, False),
    ],
)
def test_a_replay_needs_its_room(changes: dict[str, object], needed: int, found: bool) -> None:
    assert bool(server_findings(needed, **changes)) == found


@pytest.mark.parametrize(
    ("preset", "overrides", "kept"),
    [
        ("shapes-lasro", [], 2),
        ("shapes-sqdf", ["method.states.kept=4", "method.states.score_clean=false"], 5),
        ("shapes-gors", [], 1),
        ("shapes-ddpo", ["method.kept_steps=10"], 11),
        ("shapes-draft", [], 2),
        ("shapes-refl", [], 2),
        ("shapes-draft-lv", [], 1),
    ],
)
def test_a_record_holds_what_its_method_keeps(preset: str, overrides: list[str], kept: int) -> None:
    assert latents_kept(config(preset, *overrides)) == kept


def test_a_limit_in_bytes_bounds_the_replay() -> None:
    wide = replay_bytes(config("shapes-lasro", "replay.capacity_groups=100000"), 16384)
    limit = ["replay.capacity_groups=100000", "replay.capacity_mb=64"]
    assert replay_bytes(config("shapes-lasro", *limit), 16384) < wide / 2


def sd15(*overrides: str) -> RunConfig:
    return config("sd15-sqdf-aesthetic", *overrides)


def test_models_rewards_and_adapters_are_looked_for() -> None:
    assert set(hub_ids(sd15()).values()) == {
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "latent-consistency/lcm-lora-sdv1-5",
        "openai/clip-vit-large-patch14",
    }
    assert hub_ids(config()) == {}


def cached(folder: Path, hub_id: str, *names: str) -> Path:
    """Files of a repository, weights by default, as the hub's client lays them down."""
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    for place in ("blobs", "refs", "snapshots/abc"):
        (repository / place).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    for number, name in enumerate(names or ("config.json", "model.safetensors")):
        (repository / "blobs" / str(number)).write_text("{}")
        path = repository / "snapshots" / "abc" / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(repository / "blobs" / str(number))
    return repository


def test_a_snapshot_counts_while_all_its_files_are_there(tmp_path: Path) -> None:
    repository = cached(tmp_path, "a/b")
    assert lacking(tmp_path, "a/b") is None
    (repository / "blobs" / "more.incomplete").touch()
    assert lacking(tmp_path, "a/b") == "a/b, whose download was broken off,"
    (repository / "blobs" / "more.incomplete").unlink()
    (repository / "blobs" / "1").unlink()
    assert lacking(tmp_path, "a/b") == "model.safetensors of a/b"
    assert lacking(tmp_path, "a/c") == "a/c"


def test_a_snapshot_that_another_revision_is_read_of_does_not_count(tmp_path: Path) -> None:
    repository = cached(tmp_path, "a/b")
    (repository / "refs" / "main").write_text("def")
    assert lacking(tmp_path, "a/b") == "a/b"


def test_a_tokenizer_alone_is_no_model(tmp_path: Path) -> None:
    """Other programs fetch that of CLIP by itself."""
    cached(tmp_path, "a/b", "config.json", "vocab.json")
    assert lacking(tmp_path, "a/b") == "a file of weights in a/b"
    assert lacking(tmp_path, "a/b", weights=False) is None


PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "text_encoder_2": [None, None],
}


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (["unet/x.safetensors", "scheduler/scheduler_config.json"], None),
        (["unet/x.safetensors"], "scheduler/ of a/b"),
        (["unet/config.json", "scheduler/x.json"], "a file of weights in unet/ of a/b"),
        (["scheduler/scheduler_config.json"], "unet/ of a/b"),
    ],
)
def test_a_pipeline_has_all_of_its_parts_that_are_read(
    names: list[str], lacks: str | None, tmp_path: Path
) -> None:
    repository = cached(tmp_path, "a/b", "model_index.json", *names)
    (repository / "blobs" / "0").write_text(json.dumps(PIPELINE))
    assert lacking(tmp_path, "a/b") == lacks


def test_weights_in_several_files_are_all_there(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    repository = cached(tmp_path, "a/b", index, "model-1.safetensors")
    shards = {"x": "model-1.safetensors", "y": "model-2.safetensors"}
    (repository / "blobs" / "0").write_text(json.dumps({"weight_map": shards}))
    assert lacking(tmp_path, "a/b") == "model-2.safetensors of a/b"


def test_of_an_architecture_whose_weights_are_a_checkpoint_none_are_looked_for(
    tmp_path: Path,
) -> None:
    hps, environ = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", {"HF_HUB_CACHE": str(tmp_path)}
    cached(tmp_path, hps, "config.json")
    for checkpoint, found in (
        ("/w/HPS_v2.1_compressed.pt", []),
        ("", [f"a file of weights in {hps}"]),
    ):
        args = f"{{checkpoint: '{checkpoint}'}}" if checkpoint else "{}"
        run = config("shapes-rlcm", f"rewards={{taste: {{kind: hpsv2, args: {args}}}}}")
        _, notes = hub_findings(run, environ)
        assert [note.split(": ")[1].split(" is not")[0] for note in notes] == found


def test_what_is_not_cached_is_a_finding_offline_and_a_note_else(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    cached(cache_folder(environ), "stable-diffusion-v1-5/stable-diffusion-v1-5")
    findings, notes = hub_findings(sd15(), environ)
    assert (findings, len(notes)) == ([], 2)
    findings, notes = hub_findings(sd15(), {**environ, "HF_HUB_OFFLINE": "1"})
    assert (len(findings), notes) == (2, [])
    assert f"HF_HOME={tmp_path} hf download latent-consistency/lcm-lora-sdv1-5" in findings[0]


def test_models_that_a_reward_takes_by_default_are_looked_for() -> None:
    ids = hub_ids(config("shapes-rlcm", "rewards={pick: {kind: pickscore}}"))
    assert ids["rewards.pick.args.clip"] == "yuvalkirstain/PickScore_v1"


def test_the_cache_is_where_the_hub_s_client_has_it() -> None:
    assert cache_folder({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == Path("/c")
    assert cache_folder({}) == Path.home() / ".cache" / "huggingface" / "hub"


def test_a_replay_bounded_by_size_must_hold_what_a_restarted_learner_needs() -> None:
    small, large = (
        load_config("deploy/configs/shapes-lasro.yaml", ["name=n", f"replay.capacity_mb={size}"])
        for size in (1, 500)
    )
    (finding,) = capacity_findings(small, 256)
    raised = load_config(
        "deploy/configs/shapes-lasro.yaml",
        ["name=n", f"replay.capacity_mb={finding.split('raise it to ')[1].split(',')[0]}"],
    )
    assert list(capacity_findings(large, 256)) == list(capacity_findings(raised, 256)) == []
