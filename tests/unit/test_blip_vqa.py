"""Attribute binding by BLIP on a tiny untrained model: transformers' own numbers, and phrases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipForQuestionAnswering, BlipImageProcessorPil

from reward_servers.base import Failure, checked_scores
from reward_servers.blip_vqa import BlipVqa
from reward_servers.phrases import by_rule, question_of
from reward_servers.registry import build_reward, check_reward
from tests.tiny_blip import SIDE, save_tiny_blip

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 28, 3)).astype(np.uint8)
PROMPTS = ["a red circle and a blue square", "a red square", "a green ring left of a red ring"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_blip(tmp_path_factory.mktemp("blip"), "vqa")


@pytest.fixture(scope="module")
def reward(blip: str) -> BlipVqa:
    return BlipVqa(blip)


def p_yes(blip: str, image: np.ndarray, question: str, **args: Any) -> float:
    """By what `generate` of transformers tells of the first word that it answers."""
    model = BlipForQuestionAnswering.from_pretrained(blip).eval()
    tokenizer = BertTokenizer.from_pretrained(blip)
    pixels = BlipImageProcessorPil.from_pretrained(blip)
    size = {"size": {"height": args["side"], "width": args["side"]}} if args else {}
    ids = tokenizer(question, return_tensors="pt").input_ids
    text: Any = model.config.text_config
    ids[:, 0] = text.bos_token_id + 1
    told: Any = model.generate(
        input_ids=ids,
        pixel_values=pixels(Image.fromarray(image), return_tensors="pt", **size)["pixel_values"],
        interpolate_pos_encoding=bool(args),
        max_new_tokens=1,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    yes, no = tokenizer("yes no", add_special_tokens=False).input_ids
    probabilities = torch.softmax(told.scores[0][0], dim=0)
    return float(probabilities[yes] / (probabilities[yes] + probabilities[no]))


def test_a_score_is_the_product_of_what_transformers_tells(blip: str, reward: BlipVqa) -> None:
    expected = [
        np.prod([p_yes(blip, image, f"{phrase}?") for phrase in by_rule(prompt)])
        for image, prompt in zip(IMAGES, PROMPTS, strict=True)
    ]
    assert np.ptp(expected) > 1e-3
    assert checked_scores(reward, IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-5)


def test_the_size_of_pictures_may_differ_from_the_one_that_was_trained(blip: str) -> None:
    side = 2 * SIDE
    expected = p_yes(blip, IMAGES[0], "a red square?", side=side)
    scores = BlipVqa(blip, side=side).score(IMAGES[:1], ["a red square"]).values
    assert scores == pytest.approx([expected], abs=1e-5)
    assert abs(expected - p_yes(blip, IMAGES[0], "a red square?")) > 1e-4


def test_questions_of_the_metadata_are_asked_in_their_place(blip: str, reward: BlipVqa) -> None:
    questions = ["a blue ring?", "a circle?"]
    told: Any = [{"questions": questions}, {}, {"other": 1}]
    values = reward.score(IMAGES, PROMPTS, told).values
    expected = np.prod([p_yes(blip, IMAGES[0], question) for question in questions])
    assert values[0] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(values[1:], reward.score(IMAGES, PROMPTS).values[1:], atol=1e-6)
    with pytest.raises(ValueError, match="give a list of texts"):
        reward.score(IMAGES[:1], ["a"], [{"questions": "a circle?"}])


def test_batches_of_questions_do_not_show(blip: str, reward: BlipVqa) -> None:
    cut = BlipVqa(blip, batch=1).score(IMAGES, PROMPTS).values
    np.testing.assert_allclose(cut, reward.score(IMAGES, PROMPTS).values, atol=1e-5)


def test_a_prompt_that_names_nothing_has_no_score(reward: BlipVqa) -> None:
    outcomes = checked_scores(reward, IMAGES[:2], ["...", "a red square"])
    assert outcomes[0] == Failure("the prompt names nothing")
    assert isinstance(outcomes[1], float)


def test_no_more_phrases_are_asked_than_allowed(blip: str) -> None:
    reward = BlipVqa(blip, most=1)
    first = reward.score(IMAGES[:1], ["a red circle"]).values
    assert reward.score(IMAGES[:1], PROMPTS[:1]).values == pytest.approx(first)


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a red car and a blue house", ["a red car", "a blue house"]),
        ("a red circle left of a blue square", ["a red circle", "a blue square"]),
        ("A wooden chair, a glass table.", ["A wooden chair", "a glass table"]),
        ("a vase on top of a table", ["a vase", "a table"]),
        ("a dog on the left of a cat", ["a dog", "a cat"]),
        ("a sandy island in an inland sea", ["a sandy island", "an inland sea"]),
        ("", []),
    ],
)
def test_phrases_are_what_lies_between_joining_words(prompt: str, phrases: list[str]) -> None:
    assert by_rule(prompt) == phrases


def test_a_question_is_in_plain_spelling() -> None:
    assert question_of('The "Red" Car!') == "the red car?"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"blip": "/nowhere"}, "no BLIP model at '/nowhere'"),
        ({"phrases": "nltk"}, "phrases is one of rule, spacy"),
        ({"side": 3}, "side at least 16"),
        ({"phrases": "spacy"}, "Install both, or take phrases: rule"),
    ],
)
def test_a_check_says_what_cannot_work(args: dict[str, Any], reason: str) -> None:
    if args.get("phrases") == "spacy" and _has_spacy():
        pytest.skip("spaCy is installed here")
    with pytest.raises(ValueError, match=reason):
        check_reward("blip-vqa", args)


def _has_spacy() -> bool:
    from importlib.util import find_spec

    return find_spec("spacy") is not None


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no BlipForQuestionAnswering at"):
        build_reward("blip-vqa", {"blip": str(tmp_path)})
