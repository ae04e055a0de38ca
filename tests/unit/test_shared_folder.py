"""Who works in a run's folder beside its driver finds there what the driver has put, or stops."""

import socket
from pathlib import Path

import pytest

from deploy.evaluation.host import EvaluatorHost
from deploy.run.build import LearnerRank
from deploy.run.folder import RunFolder
from deploy.run.parts import RunParts
from deploy.run.shared_folder import NotSharedError, SharedFolder
from deploy.settings.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.run.shared_folder._PATIENCE_S", 0.0)


def started(path: Path) -> SharedFolder:
    """The folder of a run that a driver has just begun, as its other processes get it."""
    folder = RunFolder(path)
    folder.open(load_config(SMOKE, ["name=mine"]), resume=False)
    folder.write_cluster({"address": "head:6379", "node_ip": "10.0.0.1"})
    return folder.shared


def elsewhere(path: Path) -> SharedFolder:
    """The same, on a node where another file system is mounted at its path."""
    return SharedFolder(path / "local", started(path / "shared").start)


def test_a_node_that_shares_the_folder_may_work_there(tmp_path: Path) -> None:
    started(tmp_path / "mine").check("the evaluator")


def test_a_node_that_does_not_is_told_what_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotSharedError) as caught:
        elsewhere(tmp_path).check("the evaluator")
    told = str(caught.value)
    assert told.startswith(f"the evaluator on host {socket.gethostname()} looked for")
    assert f"{tmp_path / 'local' / 'cluster.json'} and found no such file" in told
    assert "file system that all nodes share" in told
    assert "FLEETUNE_RUNS" in told
    assert "\n" not in told  # a driver tells the last line of an actor's error


def test_what_an_earlier_driver_left_on_the_node_is_not_taken_for_the_run(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path)
    started(folder.path)
    with pytest.raises(NotSharedError, match="found that of another start"):
        folder.check("the evaluator")


def test_a_file_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = started(tmp_path)
    whole = (tmp_path / "cluster.json").read_text()
    (tmp_path / "cluster.json").write_text("")
    with pytest.raises(NotSharedError, match="unreadable file"):
        folder.check("the evaluator")
    monkeypatch.setattr("deploy.run.shared_folder._PATIENCE_S", 60.0)
    monkeypatch.setattr(
        "time.sleep", lambda seconds: (tmp_path / "cluster.json").write_text(whole) and None
    )
    folder.check("the evaluator")


def test_a_learner_without_the_folder_does_not_begin_anew(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path)
    rank = LearnerRank(RunParts(load_config(SMOKE), None, folder), 1, None)
    with pytest.raises(NotSharedError, match="the learner's rank 1 on host"):
        rank.run("127.0.0.1", 1, resume=True)
    assert not folder.path.exists()


def test_an_evaluator_without_the_folder_leaves_nothing_there(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path)
    evaluator = EvaluatorHost(load_config(SMOKE), folder)
    with pytest.raises(NotSharedError, match="the evaluator on host"):
        evaluator.evaluate([], folder.path / "pictures" / "before.npz")
    with pytest.raises(NotSharedError, match="the evaluator on host"):
        evaluator.export([], folder.path)
    assert not folder.path.exists()
