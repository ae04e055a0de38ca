"""W&B beside TensorBoard, by the real package in mode offline. Needs the extra `wandb`."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deploy.callbacks import Callbacks, callbacks_of
from deploy.run.curves import Point
from deploy.run.plan import check_environment
from deploy.run.wandb_logger import missing_for
from deploy.settings.run_config import RunConfig, load_config
from deploy.settings.sections import Wandb

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
OFFLINE = "logging.wandb={mode: offline, project: shapes, tags: [a, b]}"
SUMMARY = {
    "status": "finished", "before": {"exact": 0.25}, "after": {"exact": 0.5},
    "reward_queries": 96, "reason": None,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The package, which writes nothing outside the test's folder."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield wandb
    wandb.teardown()


def config(*overrides: str) -> RunConfig:
    return load_config(SMOKE, ["name=mine", *overrides])


def point(step: int, phase: str, **values: float) -> Point:
    return Point(step, 1.0, phase, values)


def logged(folder: Path, points: list[Point], *, resumed: bool = False) -> Callbacks:
    """A run that writes these points and ends."""
    given = config(OFFLINE)
    callbacks = callbacks_of(given, folder)
    callbacks.start(given, resumed=resumed)
    callbacks.points(points)
    callbacks.end(SUMMARY, within_s=120)
    return callbacks


def records(folder: Path) -> list[list[Any]]:
    """What the offline files hold, file by file, as the package's own messages."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    files = sorted(
        folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_ctime
    )
    return [
        [wandb_internal_pb2.Record.FromString(message) for message in messages(file.read_bytes())]
        for file in files
    ]


def messages(content: bytes) -> Iterator[bytes]:
    """The messages of a LevelDB log behind its 7 bytes of W&B: blocks of 32 KiB, no piece of a
    message across two, each piece with its checksum, length and whether it is the last."""
    place, pieces = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or the end of one
            yield pieces
            pieces = b""


def rows(of_file: list[Any]) -> list[dict[str, Any]]:
    """The history, without what the package adds."""
    found = []
    for record in of_file:
        if record.HasField("history"):
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            found.append({key: v for key, v in items.items() if not key.startswith("_")})
    return found


def test_curves_have_tensorboards_names_and_steps_and_a_resumed_run_is_the_same(
    package: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    (folder / "pictures").mkdir(parents=True)
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "pictures" / "before.npz", images=images, prompts=np.array(["a", "b"]))
    first = [
        point(200, "pretrain", loss=0.5),
        point(0, "evaluation", exact=0.25),
        point(1, "cycle", reward_2step=0.75, seconds=2.0),
    ]
    stats = logged(folder, first).stats()
    assert stats == {"wandb": {"failures": 0, "dropped": 0, "out": False}}
    logged(folder, [point(2, "cycle", reward_2step=0.875)], resumed=True)
    package.teardown()  # its own process writes the rest of the files as it ends
    begun, resumed = records(folder)

    told = rows(begun)
    assert told[0] == {"pretrain/loss": 0.5, "step": 200}
    assert told[2] == {"cycle/reward_2step": 0.75, "cycle/seconds": 2.0, "step": 1}
    (pictures,) = [row for row in told if "evaluation/pictures.captions" in row]
    assert (pictures["evaluation/pictures.captions"], pictures["step"]) == (["a", "b"], 0)
    assert rows(resumed) == [{"cycle/reward_2step": 0.875, "step": 2}]

    runs = [r.run for of_file in (begun, resumed) for r in of_file if r.HasField("run")]
    saved = json.loads((folder / "wandb.json").read_text())["id"]
    assert {run.run_id for run in runs} == {saved}
    assert (runs[0].project, runs[0].display_name, list(runs[0].tags)) == (
        "shapes", "mine", ["a", "b"],
    )  # fmt: skip
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["method"]["kind"] == "lasro"
    metrics = [r.metric for r in begun if r.HasField("metric")]
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in metrics)
    last = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in begun if record.HasField("summary") for item in record.summary.update
    }  # fmt: skip
    assert last["after/exact"] == 0.5
    assert (last["status"], last["reward_queries"]) == ("finished", 96)


def test_a_failure_of_it_is_logged_once_and_ends_nothing(
    package: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb.json").write_text('{"id": "no/such id"}')
    callbacks = logged(tmp_path, [point(n, "cycle", x=1.0) for n in range(5)])
    assert callbacks.stats() == {"wandb": {"failures": 1, "dropped": 0, "out": True}}
    assert caplog.text.count("callback wandb failed") == 1


def test_a_missing_package_is_told_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert "pip install -e '.[wandb]'" in (missing_for(Wandb(mode="offline"), {}) or "")


def test_an_online_run_without_a_key_is_told_before_it_begins(package: ModuleType) -> None:
    online = config("logging.wandb={project: x}")
    text = "\n".join(check_environment(online, {}))
    assert "logging.wandb: mode: online needs the environment variable WANDB_API_KEY" in text
    assert "logging.wandb" not in "\n".join(check_environment(online, {"WANDB_API_KEY": "k"}))
    assert missing_for(Wandb(mode="offline"), {}) is None
