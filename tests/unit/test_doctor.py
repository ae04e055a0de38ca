"""What the doctor finds, in words that tell the remedy, and how its command answers."""

import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deploy.doctor.command import (
    disk_findings,
    examine,
    gpu_findings,
    main,
    offload_findings,
    version_findings,
)
from deploy.doctor.main_memory import main_memory_bytes
from deploy.doctor.units import in_bytes
from deploy.run.bookings import Room
from deploy.settings.run_config import RunConfig, load_config
from learner.settings.learner import LARGE

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "deploy" / "configs" / "shapes-lasro.yaml")
GIB = 2**30


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A config whose run could begin on a machine without a GPU."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("FLEETUNE_RUNS", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    usage = SimpleNamespace(total=100 * GIB, used=0, free=100 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return [SMOKE, "name=n", f"folder={tmp_path}"]


def _config(*overrides: str) -> RunConfig:
    return load_config(SMOKE, ["name=n", *overrides])


def test_a_machine_that_lacks_nothing_is_told_so(
    here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(here) == 0
    assert capsys.readouterr().out == "nothing found\n"


def test_a_missing_gpu_is_a_finding_and_says_which_machine_was_looked_at(
    here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*here, "learner.num_gpus=1", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding.startswith("learner.num_gpus is 1, and this machine")
    assert "learner.num_gpus=0" in finding


def test_what_keeps_a_run_from_beginning_is_found_too(
    here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*here, "rewards.binding.kind=bindings"]) == 1
    assert "unknown reward 'bindings'" in capsys.readouterr().out


def test_sizes_that_are_not_known_are_a_note_and_no_finding(
    here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*here, "model.path=some-owner/some-model"]) == 0
    assert "memory was not planned: model.path: 'some-owner/" in capsys.readouterr().out


def test_a_plan_in_json_is_one_line(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", *here, "--json"]) == 0
    line, rest = capsys.readouterr().out.split("\n", 1)
    assert rest == ""
    plan = json.loads(line)
    assert {"unet_params", "trained_params", "flops", "bytes"} <= plan.keys()
    assert plan["flops"].keys() == {
        "sampling_picture", "decoding_picture", "surrogate_row", "policy_row",
        "policy_row_policy", "policy_row_untracked", "policy_row_frozen", "policy_row_reward",
    }  # fmt: skip
    assert plan["bytes"].keys() == {"sampler", "reward_server", "evaluator", "learner"}


@pytest.mark.slow
def test_a_plan_for_a_person_goes_by_stage(
    here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", *here]) == 0
    stages = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    stages = [stage for stage in stages if stage]
    assert stages[:5] == ["model", "sampling", "scoring", "evaluating", "learning"]


@pytest.mark.parametrize(
    ("override", "told"),
    [("model.path=some/model", "stable-diffusion-xl-base-1.0"), ("actors.cuont=1", "actors.cuont")],
)
def test_what_is_given_wrong_is_said_with_status_2(
    here: list[str], override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", *here, override]) == 2
    captured = capsys.readouterr()
    assert (told in captured.err, captured.out) == (True, "")


def test_the_versions_that_tests_run_with_are_within_their_ranges() -> None:
    assert list(version_findings()) == []


def test_a_version_out_of_range_is_told_with_its_range_and_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "peft" else real(name)
    )
    (finding,) = version_findings()
    assert finding.startswith("peft is 0.1, but fleetune needs peft")
    assert "pip install -c constraints.txt 'peft" in finding


def test_a_library_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (finding,) = version_findings()
    assert finding.startswith("peft is not installed")


def test_another_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.2")
    (finding,) = version_findings()
    assert finding.startswith("Python is 3.10.2, but fleetune needs >=3.11")


def test_a_share_of_a_gpu_needs_one_and_none_booked_needs_none() -> None:
    assert list(gpu_findings(_config(), 0)) == []
    shared = _config("actors.num_gpus=0.25")
    assert (len(list(gpu_findings(shared, 0))), list(gpu_findings(shared, 1))) == (1, [])


def test_roles_that_fit_one_by_one_and_not_together_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    config = _config("actors.num_gpus=1", "actors.count=3", "learner.num_gpus=1")
    assert list(gpu_findings(config, 4)) == []
    (finding,) = gpu_findings(config, 3)
    assert finding.startswith("actors.count: 2 of 3 find a place")
    assert "1 node has" in finding


def test_a_plan_is_compared_with_this_machine_s_gpus(
    here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=2**20)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    # A label says where on a cluster, and no label is on the one machine that is looked at.
    booked = ["learner.num_gpus=1", "learner.node_labels={fleetune-role: learner}"]
    findings, notes = examine(load_config(SMOKE, [*here[1:], *booked]), {})
    assert any("1.0 MiB of this machine's GPU" in finding for finding in findings)
    assert notes == []


def test_weights_are_compared_with_main_memory(here: list[str]) -> None:
    config = load_config(SMOKE, [*here[1:], "actors.node_labels={fleetune-role: sampler}"])
    large, small = Room("a", 8, 0, memory_bytes=2**40), Room("b", 8, 0, memory_bytes=2**20)
    findings, _ = examine(config, {}, [large, small])
    told = [each for each in findings if "of main memory" in each]
    assert [each.split(" fills")[0] for each in told] == [
        "one learner",
        "one reward server",
        "one evaluator",
    ]
    assert "and node b has 1.0 MiB: give" in told[0]
    assert told[0].endswith("or keep learner to larger ones by learner.node_labels")
    findings, _ = examine(config, {}, [large, replace(small, memory_bytes=0)])
    assert not [each for each in findings if "of main memory" in each]


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_s_limit_is_its_main_memory(name: str, tmp_path: Path) -> None:
    whole = main_memory_bytes(tmp_path)
    assert whole > 2**30
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for written, told in (("1048576\n", 2**20), ("max\n", whole), (str(2**63 - 4096), whole)):
        (tmp_path / name).write_text(written)
        assert main_memory_bytes(tmp_path) == told


def test_a_plan_is_compared_with_the_gpus_of_a_cluster_though_the_head_has_none(
    here: list[str],
) -> None:
    config = load_config(SMOKE, [*here[1:], "learner.num_gpus=1", "actors.num_gpus=3"])
    nodes = [Room("head", 0, 0), Room("worker", 8, 1, gpu_bytes=2**20)]
    findings, notes = examine(config, {}, nodes)
    (finding,) = (each for each in findings if each.startswith("the plan of one"))
    assert finding.startswith("the plan of one learner is")
    assert "1.0 MiB of node worker's GPU" in finding
    assert notes == [
        "memory was not compared for sampler: no node that may hold one has told the size of its "
        "GPUs"
    ]


def test_a_disk_holds_the_file_of_the_runs_own_server_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=25 * GIB))
    assert list(disk_findings(tmp_path, 5 * GIB, 2, 5 * GIB)) == []
    (finding,) = disk_findings(tmp_path, 5 * GIB, 2, 6 * GIB)
    assert finding.endswith("or lower learner.keep_checkpoints or replay.capacity_groups")


@pytest.mark.parametrize(
    ("checkpoint", "keep", "free", "found"),
    [
        (0, 2, 5 * GIB, 0),
        (0, 2, 5 * GIB - 1, 1),
        (6 * GIB, 3, 23 * GIB, 1),
        (6 * GIB, 3, 24 * GIB, 0),
    ],
)
def test_a_disk_holds_one_checkpoint_more_than_are_kept_and_5_gib_at_least(
    checkpoint: int,
    keep: int,
    free: int,
    found: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    findings = list(disk_findings(tmp_path / "runs" / "mine", checkpoint, keep))
    assert len(findings) == found
    assert all(f"folder: {tmp_path} has" in finding for finding in findings)


@pytest.mark.parametrize(
    ("threads", "trained", "found"), [(1, 2 * LARGE, 1), (8, 2 * LARGE, 0), (1, 10**6, 0)]
)
def test_one_thread_for_a_large_update_on_the_host_is_found(
    threads: int, trained: int, found: int
) -> None:
    moved = ("learner.offload=cpu", "learner.zero_stage=1", f"learner.threads={threads}")
    findings = list(offload_findings(_config(*moved), trained))
    assert len(findings) == found
    assert all("raise learner.threads" in finding for finding in findings)
    assert not list(offload_findings(_config(f"learner.threads={threads}"), trained))


def test_sizes_are_told_in_the_unit_that_suits_them() -> None:
    assert (in_bytes(3 * GIB), in_bytes(3 * 2**20)) == ("3.00 GiB", "3.0 MiB")
