"""The parts of a pipeline, as the processes of a run load them."""

import pytest
import torch

from deploy.shapes.models import PIPELINES
from learner.policy.components import PipelineFolder
from learner.policy.sources import without_halves
from learner.policy.text import PromptEncoder, Text
from learner.settings.model import Model

PROMPTS = ["a red circle left of a blue square", "a cyan bar above a red ring", ""]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PipelineFolder.locate(str(PIPELINES / "base")).prompt_encoder()


def test_a_prompts_states_do_not_depend_on_what_it_is_encoded_with(encoder: PromptEncoder) -> None:
    together = encoder(PROMPTS).states_BLE
    apart = Text.cat([encoder([prompt]) for prompt in reversed(PROMPTS)]).states_BLE
    assert torch.allclose(together, apart.flip(0), atol=1e-6)


def test_kept_states_stay_within_their_bytes_and_are_made_again(encoder: PromptEncoder) -> None:
    one = encoder(PROMPTS[:1]).states_BLE.nbytes
    small = PromptEncoder(encoder._towers, kept_bytes=2 * one)
    for _ in range(2):
        again, whole = small(PROMPTS).states_BLE, encoder(PROMPTS).states_BLE
        assert torch.allclose(again, whole, atol=1e-6)
        assert len(small._kept) == 2


def test_the_prompt_that_was_asked_for_longest_ago_makes_room(encoder: PromptEncoder) -> None:
    one = encoder(PROMPTS[:1]).states_BLE.nbytes
    small = PromptEncoder(encoder._towers, kept_bytes=2 * one)
    for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2]):
        small([prompt])
    assert list(small._kept) == [PROMPTS[0], PROMPTS[2]]


def test_text_encoders_that_retired_are_not_asked_again(encoder: PromptEncoder) -> None:
    retiring, calls = PromptEncoder(encoder._towers), []
    retiring.retire(PROMPTS, batch=2)
    asked = encoder(PROMPTS).states_BLE
    tower = encoder._towers[0][1]
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        again = retiring(PROMPTS).states_BLE
        assert not calls
        assert torch.allclose(again, asked, atol=1e-6)
        retiring(["a prompt that nobody had announced"])
        assert len(calls) == 1
    finally:
        hook.remove()


def test_a_pipelines_text_encoders_retire_where_all_prompts_are_known() -> None:
    pipeline = PipelineFolder.of(Model(path=str(PIPELINES / "base"), text_encoders="retire"))
    calls: list[int] = []
    for known in (None, PROMPTS):
        encode = pipeline.prompt_encoder("cpu", known)
        encode._towers[0][1].register_forward_hook(lambda *_: calls.append(1))
        encode(["", *PROMPTS])
    assert calls == [1]


def test_text_encoders_do_not_retire_from_prompts_that_are_not_kept(encoder: PromptEncoder) -> None:
    one = encoder(PROMPTS[:1]).states_BLE.nbytes
    small = PromptEncoder(encoder._towers, kept_bytes=2 * one)
    with pytest.raises(ValueError, match=r"keeps 0 MB .* those of 3 prompts .* or set model\."):
        small.retire(PROMPTS)


def test_a_folder_without_a_pipeline_is_refused(tmp_path: object) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        PipelineFolder.locate(str(tmp_path))


def test_weights_in_half_precision_are_left_where_others_lie_beside_them() -> None:
    read = [
        "unet/model-00001-of-00002.safetensors",
        "unet/model-00002-of-00002.safetensors",
        "unet/model.safetensors.index.json",
        "vae/model.fp16.safetensors",
    ]
    halves = [
        "unet/model.fp16-00001-of-00001.safetensors",
        "unet/model.safetensors.index.fp16.json",
    ]
    assert without_halves([*read, *halves]) == read
