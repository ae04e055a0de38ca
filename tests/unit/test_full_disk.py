"""A disk that is full in the middle of a run: what is told, and what can be read afterwards.

Files above a size stand for a full disk: the system cuts the write that would pass it and refuses
the next one, as it does there.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.report.card import CARD_FILE
from deploy.run.curves import Curves, read_points
from deploy.run.files import METRICS_FILE, REPORT_FILE, SUMMARY_FILE

ROOT = Path(__file__).resolve().parents[2]


def told(folder: Path, what: str, most_bytes: int) -> str:
    """What a process says that writes with so much room a file."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.full_disk_program", str(folder), what, str(most_bytes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    begun, *said = done.stdout.splitlines()
    assert begun == "begun", done.stderr
    return "\n".join(said)


@pytest.fixture
def curves(tmp_path: Path) -> Path:
    """A run's curves with two points, the file of its metrics."""
    with Curves(tmp_path) as written:
        for step in range(2):
            written.write(step, "policy", {"loss": 1.0})
    return tmp_path / METRICS_FILE


def test_curves_that_find_no_room_say_which_file_it_was_and_go_on(curves: Path) -> None:
    most = curves.stat().st_size + 10
    said = told(curves.parent, "curves", most)
    assert said.startswith(
        "the run goes on without new points in metrics.jsonl, which wait: [Errno"
    )
    assert f"File too large: '{curves}'" in said


def test_a_line_that_finds_no_room_leaves_those_before_it(curves: Path) -> None:
    before = curves.read_text()
    told(curves.parent, "curves", curves.stat().st_size + 10)
    assert curves.read_text() == before
    assert [point.step for point in read_points(curves)] == [0, 1]


def test_events_that_find_no_room_are_told_of_too(curves: Path) -> None:
    for events in (curves.parent / "tensorboard").iterdir():
        events.unlink()
    curves.write_text("")  # so that the events reach the limit first
    said = told(curves.parent, "curves", 130)
    assert "the run goes on without TensorBoard's files, which wait: " in said
    assert f"'{curves.parent}/tensorboard'" in said


def test_a_summary_that_finds_no_room_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / SUMMARY_FILE).write_text('{"status": "stopped"}')
    told(tmp_path, "summary", 100)
    assert [path.name for path in tmp_path.iterdir()] == [SUMMARY_FILE]
    assert json.loads((tmp_path / SUMMARY_FILE).read_text()) == {"status": "stopped"}


def test_a_run_whose_summary_finds_no_room_says_so_and_has_failed(tmp_path: Path) -> None:
    assert told(tmp_path, "summary", 100).splitlines() == [
        f"the run's end cannot be written: [Errno 27] File too large: '{tmp_path / SUMMARY_FILE}'",
        "failed 1",
    ]


def test_a_run_that_only_its_card_and_its_report_find_no_room_for_has_finished(
    tmp_path: Path,
) -> None:
    (tmp_path / "adapter").mkdir()
    card, report = tmp_path / "adapter" / CARD_FILE, tmp_path / REPORT_FILE
    assert told(tmp_path, "summary", 1500).splitlines() == [
        f"the result's card cannot be written: [Errno 27] File too large: '{card}'",
        f"the report cannot be written: [Errno 27] File too large: '{report}'",
        "finished 0",
    ]
    assert json.loads((tmp_path / SUMMARY_FILE).read_text())["status"] == "finished"
    assert not card.exists()
