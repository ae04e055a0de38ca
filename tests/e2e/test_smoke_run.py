"""The smallest run, from a config to everything that it promises to leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from buffer.records import record_id
from deploy.trace import life_of

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended, Pipelines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SIGNS = {"diversity", "colour_entropy", "sharpness", "kl_nats", "clean_distance"}
METRICS = {"exact_1step", "exact_2step", "reward_1step", "reward_2step", *SIGNS}


@pytest.fixture(scope="module")
def smoke(run_job: Callable[..., Ended]) -> Ended:
    ended = run_job("smoke", "seed=5", "callbacks=[{kind: 'e2e_callbacks:Notes'}]")
    assert ended.status == 0, ended.output
    return ended


def test_the_summary_holds_both_evaluations(smoke: Ended) -> None:
    assert (set(smoke.summary["before"]), set(smoke.summary["after"])) == (METRICS, METRICS)


def test_the_summary_tells_how_the_run_ended_and_its_seed(smoke: Ended) -> None:
    told = {key: smoke.summary[key] for key in ("status", "seed", "reason")}
    assert told == {"status": "finished", "seed": 5, "reason": None}


def test_the_summary_tells_what_the_run_cost(smoke: Ended) -> None:
    summary = smoke.summary
    # 8 groups before the first cycle and 4 in each of two, 3 trajectories each, 2 steps scored.
    assert summary["reward_queries"] == 96
    assert 0 < summary["wall_s"] < 300
    assert summary["setup_s"] >= 0
    assert summary["peak_rss_mb"] > 100


def test_no_record_is_lost_or_counted_twice(smoke: Ended) -> None:
    records = smoke.summary["records"]
    assert (records["committed"], records["failed"], records["pending"]) == (48, 0, 0)


def test_the_life_of_every_sample_can_be_read(smoke: Ended) -> None:
    drawn_from = 0
    for ticket in range(16):
        life = life_of(smoke.folder, record_id(ticket, 2))
        assert life["scored"]["sampler"].startswith("sampler-")
        assert life["scored"]["scorer"].startswith("reward-")
        assert life["scored"]["version"] <= 2
        assert life["scored"]["queued_ms"] <= life["scored"]["committed_ms"]
        for draw in life["draws"]:
            assert draw["version"] >= life["scored"]["version"]
            assert draw["time_ms"] >= life["scored"]["committed_ms"]
        drawn_from += bool(life["draws"])
    assert drawn_from > 8


def test_every_cycle_stands_once_in_the_curves(smoke: Ended) -> None:
    assert [p["step"] for p in smoke.points if p["phase"] == "policy"] == [0, 1]


def test_a_callback_is_told_every_point_and_how_the_run_ended(smoke: Ended) -> None:
    lines = (smoke.folder / "called.jsonl").read_text().splitlines()
    called = [tuple(json.loads(line)) for line in lines]
    assert (called[0], called[-1]) == (("start", "smoke"), ("end", "finished"))
    assert [told for what, told in called if what == "point"] == smoke.points
    evaluations = [told for what, told in called if what == "evaluation"]
    assert evaluations == [[0, "before.npz"], [2, "after.npz"]]
    (stats,) = smoke.summary["callbacks"].values()
    assert stats == {"failures": 0, "dropped": 0, "out": False}


def test_the_adapter_has_its_card(smoke: Ended) -> None:
    card = (smoke.folder / "adapter" / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert f"{smoke.summary['after']['exact_2step']:.4g}" in card


def test_tensorboard_files_are_written(smoke: Ended) -> None:
    assert list((smoke.folder / "tensorboard").glob("events.out.tfevents.*"))


def test_the_report_shows_the_pictures_of_both_moments(smoke: Ended) -> None:
    page = (smoke.folder / "report.html").read_text()
    assert ("Missing in this run folder" in page, "data:image/png" in page) == (False, True)


def test_pictures_before_and_after_are_of_the_same_prompts(smoke: Ended) -> None:
    prompts = [
        np.load(smoke.folder / "pictures" / f"{moment}.npz")["prompts"].tolist()
        for moment in ("before", "after")
    ]
    assert prompts[0] == prompts[1]


def test_diffusers_loads_the_adapter_and_it_changes_the_pictures(
    smoke: Ended, pipelines: Pipelines
) -> None:
    pipeline = LatentConsistencyModelPipeline.from_pretrained(
        pipelines.student, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        return pipeline(
            "a red circle left of a blue square",
            num_inference_steps=2,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images  # pyright: ignore

    untouched = draw()
    pipeline.load_lora_weights(smoke.folder / "adapter")
    assert not torch.equal(draw(), untouched)


def test_the_job_log_is_quiet(smoke: Ended) -> None:
    noise = ("Loading weights", "torchvision", "Warning", "Traceback", "accelerator")
    assert [word for word in noise if word in smoke.output] == []


def test_the_job_log_tells_the_stages_and_the_result(smoke: Ended) -> None:
    words = ("collecting", "checkpoint", "held-out pair accuracy", "finished after", "diversity")
    assert [word for word in words if word not in smoke.output] == []


def test_a_second_run_of_the_name_is_refused(smoke: Ended, run_job: Callable[..., Ended]) -> None:
    again = run_job("smoke", "seed=5", job="smoke-again")
    assert (again.status, "holds a run already" in again.output) == (2, True)
