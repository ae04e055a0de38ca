"""Presets of published models: that each process fits its share, and what their page says."""

from functools import cache
from pathlib import Path

import pytest

from deploy.doctor.gpu_memory import memory_findings, shares
from deploy.doctor.meta_networks import Networks, parameters_of
from deploy.doctor.size_plan import host_bytes, size_plan
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


def test_main_memory_holds_each_network_of_a_rank_once_in_float32() -> None:
    changed = ["name=n", "method.surrogate.backbone=unet", "model.trainable=full"]
    config = load_config(CONFIGS / "shapes-lasro.yaml", changed)
    networks = Networks(config)
    assert networks.teacher is not None
    assert networks.surrogate is not None
    held = (networks.base, networks.teacher, networks.surrogate)
    texts = networks.text_encoder_params
    assert host_bytes(config, networks) == {
        "sampler": 4 * (parameters_of(networks.base) + texts),
        "reward_server": 4 * parameters_of(networks.vae),
        "evaluator": 4 * (sum(map(parameters_of, (networks.base, networks.vae))) + texts),
        "learner": 4 * (sum(map(parameters_of, held)) + texts),
    }
