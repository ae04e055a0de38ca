"""Every method through a whole run on tiny models: sampled, learned, evaluated and exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import SMOKE

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended, Pipelines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = [
    "model.lora_rank=2",
    "model.trainable=lora",
    "prompts.count=32",
    "actors={group_size: 3, groups_per_batch: 2, num_cpus: 0.1}",
    "scoring={max_batch: 12, num_cpus: 0.1}",
    "replay={capacity_groups: 32, max_pending_records: 24}",
    "learner={num_cpus: 0.1, checkpoint_every_cycles: 1}",
    "method.cycles=2",
    "method.groups_per_cycle=4",
    "method.policy_steps=2",
    "method.policy_batch=4",
    "evaluation.prompts.count=8",
    "evaluation.samples=8",
    "evaluation.diversity={prompts: 2, per_prompt: 2}",
]
LEARNS_SURROGATE = [
    "method.surrogate={backbone: conv, heads: 2, confidence: bootstrap, batch_groups: 4}",
    "method.pretrain={groups: 8, max_steps: 4, check_every_steps: 2}",
    "method.surrogate_steps=2",
]
PRESETS = {
    "ddpo": ["method.micro_batches=1"],
    "ppo-kl": ["method.micro_batches=1"],
    "rlcm-last-call": [],
    "pso": [],
    "draft": ["method.pretrain.groups=8", "method.last_steps=2"],
    "draft-lv": ["method.pretrain.groups=8", "method.alpha=0.1", "method.kl_over=chain"],
    "refl": ["method.pretrain.groups=8"],
    "seiko": LEARNS_SURROGATE,
    "gors": [],
    "gors-lcm": [],
    "dpo": [],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_goes_through(
    preset: str, run_job: Callable[..., Ended], pipelines: Pipelines
) -> None:
    path = SMOKE.with_name(f"shapes-{preset}.yaml")
    few = preset in ("rlcm-last-call", "pso", "gors-lcm")
    models = [f"model.path={pipelines.student if few else pipelines.teacher}"]
    if few:
        models += [f"model.teacher={pipelines.teacher}"]
    ended = run_job(f"method-{preset}", *SMALL, *PRESETS[preset], *models, preset=path)
    assert ended.status == 0, ended.output
    records = ended.summary["records"]
    assert ended.summary["status"] == "finished"
    assert (records["failed"], records["pending"]) == (0, 0)
    steps = [point for point in ended.points if point["phase"] == "policy"]
    assert [point["step"] for point in steps] == [0, 1]
    assert (ended.folder / "adapter" / "pytorch_lora_weights.safetensors").exists()
