"""The smallest SQDF run: many-step chains, replayed states, a surrogate of a black-box reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.e2e.conftest import SMOKE

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended, Pipelines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
METRICS = {
    "exact_50step", "reward_50step", "diversity", "colour_entropy", "sharpness", "kl_nats",
}  # fmt: skip


@pytest.fixture(scope="module")
def sqdf(run_job: Callable[..., Ended]) -> Ended:
    growing = "method.groups_per_cycle=[2, 6]"
    ended = run_job("sqdf", "seed=5", growing, preset=SMOKE.with_name("smoke-sqdf.yaml"))
    assert ended.status == 0, ended.output
    return ended


def test_the_summary_holds_both_evaluations_of_the_chains_end(sqdf: Ended) -> None:
    assert (set(sqdf.summary["before"]), set(sqdf.summary["after"])) == (METRICS, METRICS)


def test_one_clean_latent_of_a_trajectory_is_scored(sqdf: Ended) -> None:
    # 8 groups before the first cycle, 2 and 6 in the others, 3 trajectories each.
    assert sqdf.summary["reward_queries"] == 48
    records = sqdf.summary["records"]
    assert (records["committed"], records["failed"], records["pending"]) == (48, 0, 0)


def test_the_curves_tell_reward_and_kl(sqdf: Ended) -> None:
    steps = [p["values"] for p in sqdf.points if p["phase"] == "policy"]
    assert len(steps) == 2
    assert all(values["kl_nats"] >= 0 and values["alpha"] > 0 for values in steps)
    fresh = {name for p in sqdf.points if p["phase"] == "fresh" for name in p["values"]}
    assert {"reward_50step", "fresh_accuracy_50step"} <= fresh


def test_the_adapter_changes_the_pipeline_that_it_came_from(
    sqdf: Ended, pipelines: Pipelines
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(pipelines.teacher, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "a red circle", num_inference_steps=2, generator=generator, output_type="latent"
        ).images  # pyright: ignore

    before = draw()
    pipe.load_lora_weights(sqdf.folder / "adapter")
    assert not torch.equal(draw(), before)


def test_a_run_that_is_resumed_goes_on_with_its_next_cycle(
    sqdf: Ended, run_job: Callable[..., Ended]
) -> None:
    again = run_job(
        "sqdf",
        "seed=5",
        "method.cycles=3",
        "method.groups_per_cycle=[2, 6, 3]",
        job="sqdf-again",
        preset=SMOKE.with_name("smoke-sqdf.yaml"),
        resume=True,
    )
    assert again.status == 0, again.output
    assert [p["step"] for p in again.points if p["phase"] == "policy"] == [0, 1, 2]
