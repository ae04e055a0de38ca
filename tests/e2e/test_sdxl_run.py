"""Models of SDXL's form through every stage of a run, with both methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from learner.policy.components import PipelineFolder
from learner.policy.trainable import make_trainable, save_for_diffusers
from tests.e2e.conftest import SMOKE
from tests.tiny_sdxl import save_sdxl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_sdxl(tmp_path_factory.mktemp("sdxl"))


def test_lasro_trains_a_two_step_model_of_sdxls_form(
    run_job: Callable[..., Ended], folders: tuple[Path, Path]
) -> None:
    base, lcm = folders
    ended = run_job("sdxl-lasro", f"model.path={lcm}", f"model.teacher={base}", "method.cycles=1")
    assert ended.status == 0, ended.output
    assert {"exact_1step", "exact_2step"} <= set(ended.summary["after"])
    assert (ended.folder / "adapter").is_dir()


def test_sqdf_trains_a_fifty_step_model_of_sdxls_form(
    run_job: Callable[..., Ended], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = folders
    unet = PipelineFolder.locate(str(base)).unet()
    make_trainable(unet, "lora", rank=2, alpha=2, targets="attention", seed=3)
    lora = save_for_diffusers(unet, "lora", tmp_path)
    ended = run_job(
        "sdxl-sqdf",
        f"model.path={base}",
        f"method.clean.lora={lora}",
        "method.states.score_clean=true",
        "method.cycles=1",
        preset=SMOKE.with_name("smoke-sqdf.yaml"),
    )
    assert ended.status == 0, ended.output
    # 8 groups before the cycle and 4 in it, 3 trajectories each, their end and 4 told states.
    assert ended.summary["reward_queries"] == 12 * 3 * 5
    told = {name for p in ended.points if p["phase"] == "fresh" for name in p["values"]}
    assert {"reward_told1", "reward_told4", "reward_50step"} <= told
