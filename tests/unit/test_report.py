"""The report: complete, self-contained, escaped, and there for an aborted run too."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from deploy.report.data import moments
from deploy.report.write import main, write_report
from deploy.run.curves import Curves

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
            curves.write(step, phase, {"loss": step / 10})
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
    assert alts == ["before", "after", "before", "after", "loss", "loss"]


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
    assert ("after.npz (the run did not get so far)" in page, page.count('alt="before"')) == (
        True,
        2,
    )


def test_without_a_summary_the_first_and_last_evaluation_stand_for_it(run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()
    with Curves(run_folder, resume_step=9, done_phases=("pretrain",)) as curves:
        for step, exact in ((0, 0.1), (4, 0.3), (8, 0.2)):
            curves.write(step, "evaluation", {"exact": exact})
    assert re.search(r"<td>exact</td>.*0\.1000.*0\.2000", _page(run_folder))


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


def _evaluate(folder: Path, scores: dict[int, float]) -> None:
    with Curves(folder) as curves:
        for cycle, score in scores.items():
            values = {"exact_2step": score, "reward_2step": cycle / 10, "exact_1step": 0.0}
            curves.write(cycle, "evaluation", {**values, "kl_nats": 0.1, "diversity": 1.0})
            curves.write(cycle, "fresh", {"fresh_gap_2step": 0.2, "other": 1.0})


def _section(page: str, title: str) -> str:
    return page.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]


def _change_summary(folder: Path, **values: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def test_pictures_stand_in_order_of_time_in_every_row(run_folder: Path) -> None:
    for cycle in (12, 4, 100):
        _save_pictures(run_folder, f"cycle-{cycle:06d}", ["a red circle", "a blue square"])
    tags = Tags(_section(_page(run_folder), "Pictures")).tags
    row = ["before", "cycle 4", "cycle 12", "cycle 100", "after"]
    assert [attrs["alt"] for tag, attrs in tags if tag == "img"] == row * 2


def test_of_many_evaluations_a_few_are_shown_the_best_among_them() -> None:
    names = ["before", *(f"cycle-{5 * i:06d}" for i in range(1, 31)), "after"]
    for best in (None, 15, 80):
        shown = moments(names, best)
        assert (len(shown), shown[0], shown[-1]) == (8, "before", "after")
        assert shown[1:-1] == sorted(set(shown[1:-1]))
        assert best is None or f"cycle-{best:06d}" in shown


def test_pictures_of_a_run_that_died_early_need_no_end() -> None:
    assert moments(["before", "cycle-000002"]) == ["before", "cycle-000002"]


def test_a_curve_of_two_phases_is_drawn_once_for_each(run_folder: Path) -> None:
    section = _section(_page(run_folder), "Curves")
    assert re.findall(r"</span> (\w+) <span", section) == ["pretrain", "cycle"]


def test_the_monitor_shows_scores_of_the_last_step_and_every_sign_that_there_is(
    run_folder: Path,
) -> None:
    _evaluate(run_folder, {0: 0.5, 2: 0.6, 4: 0.4})
    alts = [
        attrs["alt"]
        for tag, attrs in Tags(_section(_page(run_folder), "Over-optimisation")).tags
        if tag == "img"
    ]
    assert alts == [
        "trained reward and held-out scores",
        "KL to the untouched policy, nats a step",
        "diversity at a fixed prompt",
        "surrogate less truth, deviations",
    ]


def test_the_monitor_tells_the_best_version_and_why_the_run_ended(run_folder: Path) -> None:
    _evaluate(run_folder, {0: 0.5, 2: 0.6, 4: 0.4})
    (run_folder / "evaluations.json").write_text(json.dumps({"best": 2, "evaluations": []}))
    _change_summary(run_folder, stopped_early="exact fell", exported_version="best, of cycle 2")
    text = Tags(_section(_page(run_folder), "Over-optimisation")).text
    for told in ("best, of cycle 2", "best beside training: cycle 2", "stopped early: exact fell"):
        assert told in text


def test_without_evaluations_beside_training_the_monitor_says_how_to_have_them(
    run_folder: Path,
) -> None:
    assert "evaluation.every_cycles" in _section(_page(run_folder), "Over-optimisation")


def test_the_ledger_tells_counts_queries_and_budget(run_folder: Path) -> None:
    (run_folder / "config.json").write_text(json.dumps({"limits": {"reward_queries": 20000}}))
    _change_summary(
        run_folder,
        records={"issued": 600, "committed": 2390, "failed": 10, "evicted": 5, "pending": 1},
        reward_queries=17472,
        failures={"no red today": 10},
    )
    text = Tags(_section(_page(run_folder), "Ledger")).text
    for told in ("2,390", "17,472", "a budget of 20,000", "no red today"):
        assert told in text


def test_decisions_about_fleets_stand_with_their_reason(run_folder: Path) -> None:
    decision = {"time": 0, "role": "samplers", "from": 1, "to": 3, "why": "asked <b>"}
    (run_folder / "fleet.jsonl").write_text(json.dumps(decision) + '\n{"torn')
    section = _section(_page(run_folder), "Fleets")
    assert "1 → 3" in section
    assert "1970-01-01 00:00:00" in section
    assert "asked &lt;b&gt;" in section


@pytest.mark.parametrize("content", ["[]", "{", '{"best": "x"}'])
def test_a_broken_list_of_evaluations_does_not_end_the_report(
    run_folder: Path, content: str
) -> None:
    (run_folder / "evaluations.json").write_text(content)
    assert "Over-optimisation" in _page(run_folder)
