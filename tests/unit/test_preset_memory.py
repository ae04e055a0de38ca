"""Presets of published models: that each process fits its share, and what their page says."""

from functools import cache
from pathlib import Path

import pytest

from deploy.doctor.gpu_memory import memory_findings, shares
from deploy.doctor.size_plan import size_plan
from deploy.run.bookings import Room, bookings
from deploy.settings.run_config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
GIB = 2**30
PUBLISHED = sorted(
    path.stem
    for path in CONFIGS.glob("*.yaml")
    if path.stem.partition("-")[0] in ("sd15", "sdxl", "ssd1b", "turbo")
)
_ROLES = ("sampler", "reward_server", "evaluator", "learner")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@cache
def _totals(preset: str) -> dict[str, int]:
    sizes = size_plan(load_config(CONFIGS / f"{preset}.yaml", ["name=n"]))["bytes"]
    return {role: sizes[role]["total"] for role in _ROLES}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_process_of_a_preset_fits_its_share_of_80_gb(preset: str) -> None:
    config = load_config(CONFIGS / f"{preset}.yaml", ["name=n"])
    # An H100 of 80 GB tells torch of 79.
    room = Room("node", cpus=64, gpus=8, labels={}, gpu_bytes=79 * GIB)
    sizes = {role: {"total": total} for role, total in _totals(preset).items()}
    assert list(memory_findings(config, sizes, shares(bookings(config), [room]))) == []


@pytest.mark.parametrize("preset", [p for p in PUBLISHED if not p.endswith("imagereward")])
def test_the_page_of_presets_has_the_plan_s_figures(preset: str) -> None:
    page = (CONFIGS / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    (told,) = (cells[1:] for cells in rows if cells[0].strip() == f"`{preset}`" and len(cells) == 6)
    totals = _totals(preset)
    planned = [*(totals[role] for role in _ROLES), sum(totals.values())]
    assert [int(cell) for cell in told] == [round(each / GIB) for each in planned]
