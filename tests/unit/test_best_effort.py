"""What a run writes for people, on a disk that takes nothing for a while."""

import errno
import io
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.fleet.fleets import Fleets
from deploy.profile import Profile, read_profile
from deploy.run import curves as curves_module
from deploy.run.best_effort import BestEffort
from deploy.run.curves import Curves, read_points
from deploy.run.files import DECISIONS_FILE, EVENTS_FOLDER, METRICS_FILE, PROFILE_FILE
from deploy.run.progress import Progress
from deploy.run.whole_files import append_whole

FULL = Path("/dev/full")
"""Every write to it fails with ENOSPC."""


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def shown_steps(folder: Path) -> list[int]:
    """Of the rewards that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / EVENTS_FOLDER))
    events.Reload()
    return [event.step for event in events.Scalars("cycle/reward")]


def test_an_error_of_the_disk_is_told_once_until_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writing = BestEffort("notes", meanwhile="which wait")
    for fails in (False, True, True, False, False, True):
        with writing:
            if fails:
                raise full()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the run goes on without notes, which wait",
        "notes can be written again",
        "the run goes on without notes, which wait",
    ]


def test_an_error_that_is_not_the_disks_is_raised() -> None:
    with pytest.raises(ValueError, match="ours"), BestEffort("notes"):
        raise ValueError("ours")


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    append_whole(path, "one\n")
    really_open = Path.open

    def open_a_full_disk(self: Path, *args: Any, **options: Any) -> Any:
        file = really_open(self, *args, **options)
        really_write = file.write

        def write_half(text: str) -> int:
            really_write(text[: len(text) // 2])
            file.flush()
            raise full()

        monkeypatch.setattr(file, "write", write_half)
        return file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_a_full_disk)
        with pytest.raises(OSError, match="No space"):
            append_whole(path, "two\n")
    append_whole(path, "three\n")
    assert path.read_text() == "one\nthree\n"


def test_points_that_the_disk_did_not_take_are_written_once_it_does(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    with Curves(tmp_path) as curves:
        curves.write(0, "cycle", {"reward": 0.0})
        saved = path.rename(tmp_path / "aside")
        path.symlink_to(FULL)
        for step in (1, 2):
            curves.write(step, "cycle", {"reward": 0.1 * step})
        saved.replace(path)
        curves.write(3, "cycle", {"reward": 0.3})
    assert [point.step for point in read_points(path)] == [0, 1, 2, 3]


def test_what_was_told_once_more_on_a_full_disk_stands_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise full()

    with Curves(tmp_path) as curves:
        for step in (0, 1, 2):
            curves.write(step, "cycle", {"reward": 0.0})
        with monkeypatch.context() as patched:
            patched.setattr(curves_module, "write_whole", refuse)
            patched.setattr(curves_module, "append_whole", refuse)
            for step in (1, 2, 1):  # placed anew twice
                curves.write(step, "cycle", {"reward": 1.0})
        curves.write(2, "cycle", {"reward": 1.0})
    rewards = [(p.step, p.values["reward"]) for p in read_points(tmp_path / METRICS_FILE)]
    assert rewards == [(0, 0.0), (1, 1.0), (2, 1.0)]


def test_tensorboard_is_told_all_once_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise full()

    with Curves(tmp_path) as curves:
        curves.write(0, "cycle", {"reward": 0.0})
        with monkeypatch.context() as patched:
            patched.setattr(curves._events, "add_event", refuse)
            patched.setattr(curves_module, "EventFileWriter", refuse)
            for step in (1, 2):
                curves.write(step, "cycle", {"reward": 0.1 * step})
        curves.write(3, "cycle", {"reward": 0.3})
    assert shown_steps(tmp_path) == [0, 1, 2, 3]


def test_a_full_disk_is_given_event_files_at_intervals_and_the_rest_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(0.0, 5.0)  # a look at it takes 5 s
    tries = 0

    def refuse(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise full()

    with Curves(tmp_path, clock=lambda: next(now)) as curves:
        curves.write(0, "cycle", {"reward": 0.0})
        with monkeypatch.context() as patched:
            patched.setattr(curves._events, "add_event", refuse)
            patched.setattr(curves_module, "EventFileWriter", refuse)
            for step in range(1, 19):  # in some 180 s
                curves.write(step, "cycle", {"reward": 0.0})
    assert tries == 3
    assert shown_steps(tmp_path) == list(range(19))


def test_points_that_never_found_room_are_told_of_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Curves(tmp_path) as curves:
        (tmp_path / METRICS_FILE).unlink()
        (tmp_path / METRICS_FILE).symlink_to(FULL)
        for step in range(3):
            curves.write(step, "cycle", {"reward": 0.0})
    assert "3 points are lost: metrics.jsonl could not be written to the end" in caplog.messages


def test_the_account_of_seconds_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("waited"))
    Profile(tmp_path).write()


def test_an_account_of_seconds_that_a_lost_machine_has_torn_begins_anew(tmp_path: Path) -> None:
    (tmp_path / PROFILE_FILE).write_bytes(bytes(9))
    profile = Profile(tmp_path)
    profile.add("learner", "training", 2.0)
    profile.write()
    assert read_profile(tmp_path) == {"learner": {"training": 2.0}}


def test_the_account_of_seconds_is_kept_once_the_disk_takes_it(tmp_path: Path) -> None:
    profile = Profile(tmp_path)
    profile.add("learner", "training", 2.0)
    (tmp_path / f"{PROFILE_FILE}.partial").symlink_to(FULL)
    profile.write()
    assert read_profile(tmp_path) == {}
    profile.write()
    assert read_profile(tmp_path) == {"learner": {"training": 2.0}}


def test_a_decision_that_cannot_be_kept_is_shown_all_the_same(tmp_path: Path) -> None:
    fleets = Fleets({}, desk=None, folder=tmp_path)
    (tmp_path / DECISIONS_FILE).symlink_to(FULL)
    fleets._keep("samplers", 1, 2, "the learner waits")
    assert [each["why"] for each in fleets._decisions] == ["the learner waits"]


def test_progress_that_cannot_be_printed_is_left_out() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise full()

    with Progress(total_cycles=3, stream=Full(), line_every_s=0.0) as progress:
        progress.show({"stage": "training", "cycle": 1})
