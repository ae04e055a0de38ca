"""`python -m deploy.bench.gpu` on processors and tiny networks: that it works and what it tells."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.bench import gpu
from deploy.bench.gpu_learner import stand_in
from deploy.bench.gpu_measure import GIB, Measured, ceilings, memory_rows, utilisation_rows
from deploy.bench.gpu_run import GpuBench
from deploy.bench.gpu_stages import STAGES, Stage, multiplied_in
from deploy.bench.random_parts import RandomPipeline, save_consistency_lora
from deploy.doctor.meta_networks import Networks, parameters_of
from deploy.settings.run_config import RunConfig, load_config
from deploy.shapes.models import PIPELINES
from learner.policy.views import lies_on_half_grid, with_lora
from learner.settings.model import Model

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "deploy" / "configs" / "smoke-sqdf.yaml"
SMALL = ("name=n", "actors.groups_per_batch=1", "actors.group_size=2", "scoring.max_batch=2")
BASE = str(PIPELINES / "base")


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command and DeepSpeed set for a process of their own is taken back."""
    monkeypatch.chdir(ROOT)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("environ")
def test_every_stage_of_a_small_run_is_measured_on_a_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--repeats", "1", "--most", "0", "--out", str(tmp_path)]
    assert gpu.main([str(SMOKE), *SMALL, *options]) == 0
    medians = json.loads(capsys.readouterr().out.splitlines()[-1])["gpu-smoke-sqdf"]
    content = json.loads((tmp_path / "gpu-smoke-sqdf.json").read_text())
    done = {
        "sample 2 images, 50 steps": "images/s",
        "decode 2 images": "images/s",
        "surrogate step of 8 rows": "steps/s",
        "policy step of 4 rows, 4 at once": "steps/s",
    }
    for work, unit in done.items():
        assert medians[f"{work}, fleetune, {unit}"] > 0
        (row,) = (r for r in content["rows"] if r["work"] == work and r["ratio"])
        assert row["unit"] == "TFLOP/s"
        assert row["ratio"]["median"] > 0
        assert medians[f"{work}: peak, plan, GiB"] > 0
    assert content["settings"]["not_measured"] == {
        "beside": "in float32, and where all is trained, samplers call plain layers"
    }
    assert content["settings"]["plan"]["bytes"]["learner"]["total"] > 0
    assert "\n## gpu-smoke-sqdf\n" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("environ")
def test_without_a_gpu_it_says_so_and_what_it_would_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    decoded = str(SMOKE.with_name("shapes-sqdf-aesthetic.yaml"))
    assert gpu.main([decoded, *SMALL, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("no GPU that torch can use is here")
    assert "sample 2 images, 50 steps: " in told
    assert "nothing: this config learns no surrogate" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["actors.cuont=1"], "actors.cuont"),
        (["--device", "cpu"], "the UNet has 2 M parameters, which take a processor hours"),
    ],
)
def test_what_is_given_wrong_is_said_with_status_2(
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "_MOST_PARAMS_ON_CPU", 1_000_000)
    assert gpu.main([str(SMOKE), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_stage_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([str(SMOKE), "--stages", "sampler,decoder"])
    assert (
        "decoder; there are sampler, beside, decode, surrogate, policy" in capsys.readouterr().err
    )


@pytest.fixture(scope="module")
def networks() -> Networks:
    """What one test has counted of them, another need not."""
    return Networks(load_config(SMOKE, SMALL))


def _bench(stage: Stage, networks: Networks) -> GpuBench:
    stages = {"decode": stage}
    return GpuBench(SMOKE, SMALL, networks, device="cpu", repeats=1, stages=stages)


def _rates(bench: GpuBench) -> list[str]:
    return [row.work for row in bench.rows if row.unit == "images/s"]


@pytest.mark.slow
def test_a_sweep_ends_where_memory_does_and_keeps_what_was_measured(networks: Networks) -> None:
    def prepare(config: RunConfig, device: str) -> Any:
        if config.images_per_decode >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda: None

    with _bench(replace(STAGES["decode"], prepare=prepare), networks) as bench:
        bench.stage("decode")
        assert [bench.sized("decode", size) for size in (1, 2, 4)] == [True, True, False]
    assert _rates(bench) == ["decode 2 images", "decode 1 images"]
    assert bench.not_measured == {"decode, size 4": "out of memory"}
    assert not bench.failed


def test_a_stage_that_fails_is_noted_with_its_reason(networks: Networks) -> None:
    def prepare(config: RunConfig, device: str) -> Any:
        raise RuntimeError("no kernel image is available")

    with _bench(replace(STAGES["decode"], prepare=prepare), networks) as bench:
        bench.stage("decode")
    assert bench.failed
    assert bench.not_measured == {"decode": "RuntimeError: no kernel image is available"}
    assert _rates(bench) == []


def test_use_of_a_device_is_told_of_each_precision_by_its_own_ceiling() -> None:
    ceiling = {"bf16": 400e12, "tf32": 100e12}
    # 2 s and 1 s at the least.
    flops: Any = {"bf16": 800e12, "tf32": 100e12}
    (mfu, most) = utilisation_rows("step", [6.0], flops, ceiling, computed=flops)
    assert mfu.ratio is not None
    assert (mfu.rate["median"], mfu.ratio["median"]) == (150, 0.5)
    assert (most.rate["median"], most.ratio) == (300, None)


def test_what_is_computed_again_is_use_of_the_device_and_no_work_of_the_model() -> None:
    ceiling, flops = {"bf16": 400e12}, {"bf16": 800_000_000_000_000}
    computed = {"bf16": 1_200_000_000_000_000}
    mfu, hfu, _ = utilisation_rows("step", [6.0], flops, ceiling, computed=computed)
    assert mfu.ratio is not None
    assert hfu.ratio is not None
    assert mfu.ratio["median"] == pytest.approx(1 / 3, rel=1e-3)
    assert hfu.ratio["median"] == 0.5
    assert hfu.way != mfu.way


def test_measured_memory_stands_beside_the_plan() -> None:
    found = Measured([1.0], held=3 * GIB, peak=9 * GIB)
    rows = memory_rows("step", found, {"held": 2 * GIB, "activations": 4 * GIB})
    ratios = {row.work: row.ratio["median"] for row in rows if row.ratio is not None}
    assert ratios == {"step: held": 1.5, "step: activations": 1.5, "step: peak": 1.5}
    assert [row.way for row in rows] == ["measured", "plan"] * 3
    # On processors nobody tells.
    rows = memory_rows("step", Measured([1.0], None, None), {"held": 1, "activations": 1})
    assert [row.way for row in rows] == ["plan"] * 3


def test_ceilings_are_measured_and_leave_the_precision_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    found = ceilings("cpu", repeats=2)
    assert found.keys() == {"bf16", "tf32", "fp32"}
    assert all(rate > 0 for rates in found.values() for rate in rates)
    assert torch.get_float32_matmul_precision() == before


def test_float32_is_held_against_tf32_where_convolutions_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert multiplied_in("bf16", "cuda") == "bf16"
    assert multiplied_in("fp32", "cpu") == "fp32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert multiplied_in("fp32", "cuda") == "tf32"


def test_a_pipeline_whose_weights_were_half_keeps_its_adapter_beside_the_layers() -> None:
    model = Model(path=BASE)
    plain, half = (
        RandomPipeline.like(model, seed=0, device="cpu", was_half=was_half).unet()
        for was_half in (False, True)
    )
    assert lies_on_half_grid(half)
    assert not lies_on_half_grid(plain)


def test_random_parts_are_the_same_for_a_seed_and_finite() -> None:
    first, again, other = (
        RandomPipeline.like(Model(path=BASE), seed=seed, device="cpu")
        .prompt_encoder()(["a cat"])
        .states_BLE
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool(first.isfinite().all())


@pytest.mark.parametrize(
    ("kind", "args", "vision", "all_of_it"),
    [
        (
            "clip-aesthetic",
            {"clip": "openai/clip-vit-large-patch14", "head": "there.pth"},
            304,
            428,
        ),
        ("hpsv2", {"checkpoint": "HPS_v2.1_compressed.pt"}, 632, 986),
        ("pickscore", {}, 632, 986),
    ],
)
def test_the_reward_that_stands_in_scores_pictures_of_any_size_with_a_gradient(
    kind: str, args: dict[str, str], vision: int, all_of_it: int
) -> None:
    """In millions of parameters, as published."""
    images_BCHW = torch.rand(2, 3, 300, 260, device="meta", requires_grad=True)
    reward: Any = stand_in(kind, args, "meta")
    assert parameters_of(reward.clip.model.vision_model) / 1e6 == pytest.approx(vision, rel=0.005)
    assert parameters_of(reward) / 1e6 == pytest.approx(all_of_it, rel=0.001)
    scores_B = reward(images_BCHW, ["a cat", "a dog"])
    assert scores_B.shape == (2,)
    assert torch.autograd.grad(scores_B.sum(), images_BCHW)[0].shape == images_BCHW.shape


def test_a_consistency_lora_of_random_weights_loads_like_a_real_one(tmp_path: Path) -> None:
    lora = str(PIPELINES / "lcm-lora")
    unet = RandomPipeline.like(Model(path=BASE), seed=0, device="cpu").unet().requires_grad_(False)
    real, random = (
        with_lora(unet, path) for path in (lora, str(save_consistency_lora(BASE, lora, tmp_path)))
    )
    assert {n: p.shape for n, p in real.named_parameters()} == {
        n: p.shape for n, p in random.named_parameters()
    }
