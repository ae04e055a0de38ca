"""Files that are the old one or the new one, never half."""

from pathlib import Path

import pytest

from deploy.run.whole_files import replacing, write_whole


def test_a_file_is_replaced_by_what_is_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "old")
    write_whole(tmp_path / "a.json", "näw")
    assert (tmp_path / "a.json").read_bytes() == "näw".encode()


def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "old")

    def write_half() -> None:
        with replacing(tmp_path / "a.json") as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_until_all_is_written_the_old_file_is_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "old")
    with replacing(tmp_path / "a.json") as partial:
        partial.write_text("half")
        assert (tmp_path / "a.json").read_text() == "old"
        partial.write_text("new")
    assert (tmp_path / "a.json").read_text() == "new"
