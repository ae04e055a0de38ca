"""Runs of several seeds, taken together."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deploy.compare import changes, load_summaries, main, table
from deploy.settings.run_config import load_config


def summary(seed: int, before: float, after: float, **other: Any) -> dict[str, Any]:
    costs = {"wall_s": 400.0 + seed, "peak_rss_mb": 5000, "reward_queries": 1000}
    scores = {"before": {"exact": before}, "after": {"exact": after, "new": 1.0}}
    return {"status": "finished", "seed": seed, **scores, **costs, **other}


def folder_of(path: Path, content: dict[str, Any], *overrides: str) -> Path:
    path.mkdir()
    (path / "summary.json").write_text(json.dumps(content))
    own = [f"seed={content['seed']}", f"name={path.name}", *overrides]
    (path / "config.json").write_text(load_config("deploy/configs/smoke.yaml", own).to_json())
    return path


def test_a_change_and_its_interval_are_those_of_students_t() -> None:
    before, after, gained, half = changes(
        [summary(0, 0.5, 0.6), summary(1, 0.5, 0.7), summary(2, 0.5, 0.8)], "exact"
    )
    assert (before, after, gained) == pytest.approx((0.5, 0.7, 0.2))
    # t(0.975, 2) = 4.3027; deviation 0.1 over the square root of 3.
    assert half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-4)


def test_one_run_has_no_interval() -> None:
    assert math.isnan(changes([summary(0, 0.5, 0.6)], "exact")[3])
    assert "one run" in table([summary(0, 0.5, 0.6)])


def test_the_table_leaves_out_what_was_not_measured_on_both_sides() -> None:
    text = table([summary(0, 0.5, 0.6), summary(1, 0.4, 0.6)])
    assert "| exact | 0.450 |" in text
    assert "new" not in text
    assert "Seeds 0, 1; a run took 400 to 401 s" in text


def test_a_row_tells_the_means_the_change_and_where_its_interval_ends() -> None:
    text = table([summary(0, 0.5, 0.6), summary(1, 0.4, 0.6)])
    half = 12.706 * math.sqrt(0.005) / math.sqrt(2)
    interval = f"{0.15 - half:+.3f} to {0.15 + half:+.3f}"
    assert f"\n| exact | 0.450 | 0.600 | +0.150 | {interval} |\n" in text


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_a_run_that_did_not_finish_is_refused(tmp_path: Path, status: str) -> None:
    with pytest.raises(ValueError, match=f"is '{status}', not 'finished'"):
        load_summaries([folder_of(tmp_path / "a", summary(0, 0.5, 0.6, status=status))])


def test_runs_that_differ_in_more_than_their_seeds_are_no_experiment(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", summary(0, 0.5, 0.6))
    second = folder_of(tmp_path / "b", summary(1, 0.5, 0.7))
    other = folder_of(tmp_path / "c", summary(2, 0.5, 0.7), "method.cycles=9")
    again = folder_of(tmp_path / "d", summary(1, 0.5, 0.7))
    assert len(load_summaries([first, second])) == 2
    with pytest.raises(ValueError, match=r"c is another experiment .*method\.cycles: \d, not 9"):
        load_summaries([first, second, other])
    with pytest.raises(ValueError, match="seed 1 is there twice"):
        load_summaries([first, second, again])


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no readable summary\.json in .*nowhere"):
        load_summaries([tmp_path / "nowhere"])


def test_the_command_ends_with_two_where_a_folder_holds_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "a", summary(0, 0.5, 0.6))
    ended = []
    for folders in (["a"], ["a", "nowhere"]):
        monkeypatch.setattr("sys.argv", ["compare", *(str(tmp_path / name) for name in folders)])
        ended.append(main())
    assert ended == [0, 2]
