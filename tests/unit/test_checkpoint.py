"""Checkpoints: complete or not there, the newest, how many stay, and what cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from learner import checkpoint


def save_whole(part: Path) -> None:
    (part / "weights").write_text("whole")


def write(folder: Path, number: int, save: Callable[[Path], None] = save_whole, **kw: int) -> None:
    checkpoint.write(
        folder,
        number,
        {"next_cycle": number},
        save,
        rank=kw.get("rank", 0),
        barrier=lambda: None,
        keep=kw.get("keep", 2),
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def fail(part: Path) -> None:
    (part / "half").write_text("half")
    raise OSError("disk full")


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, 3)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.read_state(found)["next_cycle"] == 3


def test_a_checkpoint_holds_what_the_rank_saved(tmp_path: Path) -> None:
    write(tmp_path, 3)
    assert (tmp_path / "checkpoints" / "00000003" / "weights").read_text() == "whole"


def test_the_newest_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for number in (9, 11, 100):
        write(tmp_path, number, keep=9)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.name == "00000100"


def test_a_checkpoint_that_could_not_be_saved_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, fail)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.name == "00000001"


def test_what_a_torn_attempt_left_does_not_get_into_the_next_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, fail)
    write(tmp_path, 2)
    assert not (tmp_path / "checkpoints" / "00000002" / "half").exists()


def test_what_a_torn_attempt_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, fail)
    write(tmp_path, 5)
    assert names(tmp_path) == ["00000005"]


def test_a_checkpoint_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 2)
    write(tmp_path, 2, lambda part: (part / "other").touch())
    assert not (tmp_path / "checkpoints" / "00000002" / "weights").exists()


def test_a_failed_second_attempt_leaves_the_first_whole(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, fail)
    assert (tmp_path / "checkpoints" / "00000002" / "weights").read_text() == "whole"


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, number, keep=2)
    assert names(tmp_path) == ["00000003", "00000004"]


def test_damaged_ones_that_the_run_did_not_go_on_from_take_no_whole_ones_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (15, 20, 25):
        write(tmp_path, number, keep=3)
    for number in (20, 25):
        change_weights(tmp_path / "checkpoints" / f"{number:08d}")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.name == "00000015"
    write(tmp_path, 16, keep=1)
    assert names(tmp_path) == ["00000016"]
    assert "00000025 is removed: the run went on from one before it" in caplog.text


def test_another_rank_saves_its_part_and_nothing_more(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints" / "00000007.partial"
    partial.mkdir(parents=True)
    write(tmp_path, 7, rank=1)
    assert [path.name for path in partial.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"format": 99}', "has format 99; this version reads 5"),
        ("{}", "has format None"),
        ("[]", "has format None"),
        ('{"format": 1', "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_state_of_another_form_is_told_as_such(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        checkpoint.read_state(tmp_path)


def test_a_state_that_is_not_text_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.read_state(tmp_path)


def test_a_checkpoint_without_state_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.read_state(tmp_path)


def truncate_weights(folder: Path) -> None:
    (folder / "weights").write_text("who")


def change_weights(folder: Path) -> None:
    (folder / "weights").write_text("whale")


def remove_weights(folder: Path) -> None:
    (folder / "weights").unlink()


def cut_state(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def list_for_state(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


def change_a_digit_of_state(folder: Path) -> None:
    state = folder / "state.json"
    state.write_text(state.read_text().replace('"next_cycle": 4', '"next_cycle": 9'))


def have_weights_fail_to_read(folder: Path) -> None:
    (folder / "weights").unlink()
    # There, and EIO when its first byte is read, where nothing of the process lies.
    (folder / "weights").symlink_to("/proc/self/mem")


def forget_files(folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({"format": checkpoint.FORMAT, "next_cycle": 4}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate_weights,
        change_weights,
        remove_weights,
        cut_state,
        list_for_state,
        change_a_digit_of_state,
        have_weights_fail_to_read,
        forget_files,
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 3)
    write(tmp_path, 4)
    damage(tmp_path / "checkpoints" / "00000004")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.name == "00000003"
    assert "00000004 is passed over" in caplog.text


def test_with_every_checkpoint_damaged_none_is_taken_and_each_is_told(tmp_path: Path) -> None:
    for number in (3, 4):
        write(tmp_path, number)
        change_weights(tmp_path / "checkpoints" / f"{number:08d}")
    with pytest.raises(ValueError, match=r"every .*00000004: missing.*00000003: missing"):
        checkpoint.newest(tmp_path)


def test_a_kill_between_two_renames_leaves_the_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 2)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
    found = checkpoint.newest(tmp_path)
    assert found == tmp_path / "checkpoints" / "00000002"


def test_a_checkpoint_of_another_format_is_not_taken_for_damaged(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 4)
    (tmp_path / "checkpoints" / "00000004" / "state.json").write_text('{"format": 99}')
    found = checkpoint.newest(tmp_path)
    assert found is not None
    with pytest.raises(ValueError, match="99"):
        checkpoint.read_state(found)
