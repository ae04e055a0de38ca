"""The report in a real browser: every picture loads, nothing complains, it fits its window."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.report.write import write_report
from deploy.run.curves import Curves

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (1280, 400)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--dump-dom",
)  # fmt: skip
# The page stands in frames of both widths, untouched; when all have loaded, this looks at them.
PROBE = """
addEventListener("load", () => {
  const told = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, images = [...page.images];
    return {
      images: images.length,
      broken: images.filter((image) => !image.complete || image.naturalWidth === 0).length,
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    };
  });
  document.getElementById("told").textContent = JSON.stringify(told);
});
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def seen(page: str, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the browser finds in the page at both widths, and what its console says."""
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(page)}"></iframe>'
        for width in WIDTHS
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="told"></pre>{frames}'
        f"<script>{PROBE}</script>",
        encoding="utf-8",
    )
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found.group(1))), told


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run that has everything, with names as long as there are."""
    folder = tmp_path_factory.mktemp("report") / "run"
    (folder / "pictures").mkdir(parents=True)
    long = "unbroken-" * 12
    prompts = ["a red circle left of a blue square", long, "a photo"] * 4
    for i, moment in enumerate(("before", "cycle-000002", "cycle-000004", "cycle-000006", "after")):
        images = np.full((len(prompts), 128 if i % 2 else 32, 32, 3), 40 * i, np.uint8)
        np.savez(folder / "pictures" / f"{moment}.npz", images=images, prompts=np.array(prompts))
    with Curves(folder) as curves:
        for cycle in range(8):
            curves.write(cycle, "policy", {"kl_nats": 0.1 * cycle, long[:60]: 1.0})
            curves.write(cycle, "fresh", {"fresh_gap_2step": 0.2 * cycle})
            scores = {"exact_2step": 0.5 - 0.01 * cycle, "reward_2step": 0.1 * cycle}
            curves.write(cycle, "evaluation", {**scores, "kl_nats": 0.1, "sharpness": 9.0})
    decision = {"time": 1.7e9, "role": "samplers", "from": 1, "to": 2, "why": long}
    (folder / "fleet.jsonl").write_text(json.dumps(decision))
    (folder / "evaluations.json").write_text(json.dumps({"best": 2, "evaluations": []}))
    (folder / "config.json").write_text(json.dumps({"name": long[:64], "path": long}))
    summary = {
        "status": "finished",
        "stopped_early": f"{long} was 0.4",
        "exported_version": "best, of cycle 2",
        "before": {"exact_2step": 0.5, long: 1.0},
        "after": {"exact_2step": 0.6, long: 2.0},
        "records": {"issued": 1_000_000, "committed": 3, "failed": 1},
        "failures": {long: 1},
        "workers": {"sampler-0": {"images": 3, "node": long}},
        "exported": f"/{long}/adapter",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rendered(
    page: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], list[str]]:
    return seen(page, tmp_path_factory.mktemp("browser"))


def test_every_picture_of_the_page_loads(
    page: str, rendered: tuple[list[dict[str, Any]], list[str]]
) -> None:
    count = page.count("<img ")
    assert count > 60
    assert [(each["images"], each["broken"]) for each in rendered[0]] == [(count, 0)] * len(WIDTHS)


def test_nothing_sticks_out_of_a_wide_or_a_narrow_window(
    rendered: tuple[list[dict[str, Any]], list[str]],
) -> None:
    assert [each["overflow"] for each in rendered[0]] == [0] * len(WIDTHS)


def test_the_console_stays_empty(rendered: tuple[list[dict[str, Any]], list[str]]) -> None:
    assert rendered[1] == []


def test_a_page_with_all_three_faults_is_found_out(tmp_path: Path) -> None:
    told, console = seen(
        '<!doctype html><img src="data:image/png;base64,AAAA"><div style="width: 1300px">x</div>'
        "<script>throw new Error('a fault')</script>",
        tmp_path,
    )
    assert [each["broken"] for each in told] == [1, 1]
    assert all(each["overflow"] > 0 for each in told)
    assert any("a fault" in line for line in console)
