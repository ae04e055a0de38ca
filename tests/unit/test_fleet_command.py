"""`deploy.fleet`: what is asked for, and how a page reads."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.fleet.command import main, rendered, wishes_of

ROOT = Path(__file__).resolve().parents[2]
PAGE: dict[str, Any] = {
    "stage": "training",
    "cycle": 3,
    "cycles": 20,
    "samples": 480,
    "queue": 12,
    "failures": 0,
    "fleets": {
        "samplers": {
            "wanted": 2,
            "bounds": {"least": 1, "most": 16},
            "workers": {
                "sampler-0": {
                    "state": "working",
                    "rate": 8.25,
                    "images": 1480,
                    "wait_s": 1.0,
                    "sample_s": 3.0,
                    "failures": 2,
                },
                "sampler-1": {"state": "placing", "rate": None},
            },
        }
    },
    "decisions": [{"time": 0.0, "role": "samplers", "from": 1, "to": 2, "why": "asked for"}],
}


def text_of(page: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(width=120, file=out).print(rendered(page))
    return out.getvalue()


def test_numbers_are_read_by_role() -> None:
    assert wishes_of(["samplers=8", "rewards=2"], "scale") == {"samplers": 8, "rewards": 2}


def test_bounds_are_read_by_role() -> None:
    assert wishes_of(["samplers=1-16"], "auto") == {"samplers": (1, 16)}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["scale"], "scale what"),
        (["scale", "samplers"], "'samplers': scale takes role=number"),
        (["scale", "samplers=many"], "takes role=number"),
        (["scale", "samplers=-1"], "takes role=number"),
        (["scale", "samplers=1-4"], "takes role=number"),
        (["scale", "samplers=0"], "samplers=0: give 1 to 10,000"),
        (["scale", "samplers=99999"], "give 1 to 10,000"),
        (["scale", "rewards=1", "rewards=2"], "rewards is given twice"),
        (["scale", "learners=2"], "no fleet 'learners'; a run has samplers and rewards"),
        (["auto"], "auto what"),
        (["auto", "samplers=4"], "auto takes role=least-most"),
        (["auto", "samplers=4-2"], "the smaller number first"),
        (["auto", "samplers=0-2"], "samplers=0-2: give 1 to 10,000"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_joined(
    words: list[str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=reason):
        wishes_of(words[1:], words[0])
    assert main(["--run", "nobody", *words]) == 2
    assert reason.replace("'", "") in caplog.text.replace("'", "")


def test_only_scale_takes_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--run", "mine", "top", "samplers=2"])
    assert "only scale and auto take samplers=2" in capsys.readouterr().err


def test_a_page_tells_of_every_actor_and_decision() -> None:
    text = text_of(PAGE)
    assert "training | cycle 3/20 | samples 480 | queue 12 | failures 0" in text
    assert "samplers: 1 of 2 at work, 1 to 16 by what is measured" in text
    lines = [line for line in text.splitlines() if "sampler-" in line]
    assert [word in lines[0] for word in ("working", "8.2", "1,480", "25 %", "2")] == [True] * 5
    assert "placing" in lines[1]
    at = time.strftime("%H:%M:%S", time.localtime(0))
    assert any(at in line and "samplers 1 -> 2" in line for line in text.splitlines())


def test_a_run_that_has_shown_nothing_yet_has_a_page() -> None:
    assert "starting" in text_of({})


def test_a_local_run_that_has_ended_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cluster.json").write_text(
        '{"address": "127.0.0.9:1", "node_ip": "127.0.0.9"}'
    )
    assert main(["--run", "mine"]) == 2
    assert "answers at 127.0.0.9:1" in caplog.text
    assert "may have ended" in caplog.text


def test_a_run_without_a_cluster_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.fleet", "--run", "mine"],
        cwd=ROOT,
        # Nobody listens at that port.
        env={**os.environ, "FLEETUNE_RUNS": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
