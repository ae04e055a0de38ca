"""The report: complete, self-contained, escaped, and there for an aborted run too."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from deploy.curves import Curves
from deploy.report import main, write_report

HOSTILE = '<script>alert("x")</script> & "quoted" $a$'


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A complete run of three steps."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": "my-run", "seed": 3}), "utf-8")
    summary = {"status": "succeeded", "before": {"exact": 0.25}, "after": {"exact": 0.75}}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    with Curves(folder) as curves:
        for step, phase in enumerate(("pretrain", "cycle", "cycle")):
            curves.write(step, phase, {"eval/exact": step / 10})
    for moment in ("before", "after"):
        _save_pictures(folder, moment, ["a red circle", "a blue square"])
    return folder


def _save_pictures(folder: Path, moment: str, prompts: Sequence[str], image_size: int = 8) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    images = np.zeros((len(prompts), image_size, image_size, 3), dtype=np.uint8)
    np.savez(folder / "pictures" / f"{moment}.npz", images=images, prompts=np.array(prompts))


def _page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects every tag with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_complete_run_misses_nothing(run_folder: Path) -> None:
    assert "Missing" not in _page(run_folder)


def test_scores_stand_before_and_after_with_their_change(run_folder: Path) -> None:
    row = re.search(r"<tr><td>exact</td>(.*?)</tr>", _page(run_folder))
    assert row is not None
    assert re.findall(r">([^<]+)<", row.group(1)) == ["0.2500", "0.7500", "+0.5000"]


def test_every_prompt_has_a_picture_before_and_after(run_folder: Path) -> None:
    alts = [attrs.get("alt") for tag, attrs in Tags(_page(run_folder)).tags if tag == "img"]
    assert alts == ["before", "after", "before", "after", "curves"]


def test_the_page_loads_nothing_from_elsewhere(run_folder: Path) -> None:
    targets = [
        attrs[name]
        for _, attrs in Tags(_page(run_folder)).tags
        for name in ("src", "href")
        if name in attrs
    ]
    assert [target for target in targets if not (target or "").startswith("data:")] == []


def test_the_page_names_no_address(run_folder: Path) -> None:
    assert re.findall(r"https?://|url\(|@import", _page(run_folder)) == []


def test_the_config_and_the_versions_are_shown(run_folder: Path) -> None:
    text = Tags(_page(run_folder)).text
    assert ('"seed": 3' in text, "numpy" in text) == (True, True)


def test_text_from_files_is_never_markup(run_folder: Path) -> None:
    (run_folder / "config.json").write_text(json.dumps({"name": HOSTILE, "x": HOSTILE}), "utf-8")
    summary = {
        "status": HOSTILE,
        HOSTILE: HOSTILE,
        "after": {HOSTILE: 1},
        "versions": {HOSTILE: "1"},
    }
    (run_folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    _save_pictures(run_folder, "before", [HOSTILE])
    _save_pictures(run_folder, "after", [HOSTILE])
    with Curves(run_folder) as curves:
        curves.write(0, HOSTILE, {HOSTILE: 1.0})
    assert "script" not in {tag for tag, _ in Tags(_page(run_folder)).tags}


def test_an_empty_run_folder_gets_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    text = Tags(_page(tmp_path)).text
    parts = ("config.json", "summary.json", "metrics.jsonl", "before.npz", "after.npz")
    assert [part for part in parts if part not in text] == []


def test_an_aborted_run_shows_the_pictures_it_has(run_folder: Path) -> None:
    (run_folder / "pictures" / "after.npz").unlink()
    page = _page(run_folder)
    assert ("after.npz (the run did not get so far)" in page, page.count("<figure>")) == (True, 2)


def test_without_a_summary_the_first_and_last_evaluation_stand_for_it(run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()
    assert re.search(r"<td>exact</td>.*0\.0000.*0\.2000", _page(run_folder))


@pytest.mark.parametrize(
    "part", ["config.json", "summary.json", "metrics.jsonl", "pictures/before.npz"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00 not what it should be", b"[1, 2]"])
def test_a_broken_part_is_named_and_does_not_end_the_report(
    run_folder: Path, part: str, content: bytes
) -> None:
    (run_folder / part).write_bytes(content)
    assert part in _page(run_folder)


def test_pictures_of_the_wrong_type_are_refused_with_their_shape(run_folder: Path) -> None:
    np.savez(run_folder / "pictures" / "after.npz", images=np.zeros((2, 8, 8)), prompts=["a", "b"])
    assert "images are float64 (2, 8, 8)" in _page(run_folder)


def test_pictures_of_different_prompts_are_not_compared(run_folder: Path) -> None:
    _save_pictures(run_folder, "after", ["something", "else"])
    assert "of different prompts" in _page(run_folder)


def test_pickled_pictures_are_not_loaded(run_folder: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(run_folder / "pictures" / "after.npz", images=objects, prompts=["a"])
    assert "after.npz (cannot be read" in _page(run_folder)


def test_large_pictures_are_made_smaller(run_folder: Path) -> None:
    for moment in ("before", "after"):
        _save_pictures(run_folder, moment, ["a"], image_size=1024)
    assert len(_page(run_folder)) < 200_000


def test_the_command_writes_the_page_and_says_where(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (main([str(run_folder)]), capsys.readouterr().out) == (
        0,
        f"{run_folder / 'report.html'}\n",
    )


def test_a_folder_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none")])
    assert "is no folder" in capsys.readouterr().err
