"""Captions and their similarity to the prompt, on tiny untrained models."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertModel,
    BertTokenizer,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    RobertaTokenizer,
)

from reward_servers.registry import check_reward
from reward_servers.text_alignment import TextAlignment
from tests.tiny_blip import save_tiny_blip, save_tiny_encoder, save_tiny_roberta

PYTHON = os.environ.get("FLEETUNE_BERT_SCORE_PYTHON", "")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 28, 3)).astype(np.uint8)
PROMPTS = ["a red circle and a blue square", "a red square", "a green ring above a triangle"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    captioner = save_tiny_blip(tmp_path_factory.mktemp("captioner"), "caption")
    return {
        "captioner": captioner,
        "encoder": save_tiny_encoder(tmp_path_factory.mktemp("encoder")),
    }


class Told(TextAlignment):
    """Whose captions are known: those that the prompts of the test are compared with."""

    told: list[str]

    def captions(self, images_BHWC: np.ndarray) -> list[str]:
        return self.told[: len(images_BHWC)]


def score(models: dict[str, str], captions: list[str], **args: Any) -> np.ndarray:
    reward = Told(**models, **args)
    reward.told = captions
    return reward.score(IMAGES[: len(captions)], PROMPTS[: len(captions)])


def features(models: dict[str, str], text: str, layer: int = -1) -> torch.Tensor:
    """Of one text alone, its first and last token included."""
    model = BertModel.from_pretrained(models["encoder"]).eval()
    tokens = BertTokenizer.from_pretrained(models["encoder"])(text, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, output_hidden_states=True).hidden_states[layer][0]


def test_captions_are_those_that_transformers_generates(models: dict[str, str]) -> None:
    model = BlipForConditionalGeneration.from_pretrained(models["captioner"]).eval()
    pixels = BlipImageProcessorPil.from_pretrained(models["captioner"])
    tokenizer = BertTokenizer.from_pretrained(models["captioner"])
    expected = [
        tokenizer.decode(
            model.generate(
                **pixels(Image.fromarray(image), return_tensors="pt"),
                max_new_tokens=7,
                do_sample=False,
            )[0],
            skip_special_tokens=True,
        )
        for image in IMAGES
    ]
    assert TextAlignment(**models, tokens=7).captions(IMAGES) == expected


CAPTIONS = ["a blue square", "a circle left of the yellow ring", "green"]


def test_a_mean_is_the_cosine_of_mean_features(models: dict[str, str]) -> None:
    expected = [
        torch.cosine_similarity(features(models, a).mean(0), features(models, b).mean(0), dim=0)
        for a, b in zip(CAPTIONS, PROMPTS, strict=True)
    ]
    np.testing.assert_allclose(score(models, CAPTIONS), expected, atol=1e-5)


def test_recall_is_the_mean_of_the_best_match_of_every_token(models: dict[str, str]) -> None:
    expected = []
    for caption, prompt in zip(CAPTIONS, PROMPTS, strict=True):
        # A caption's first and last token may be the likest, and are not weighed themselves.
        found = [features(models, caption, 1), features(models, prompt, 1)[1:-1]]
        found = [each / each.norm(dim=1, keepdim=True) for each in found]
        expected.append((found[1] @ found[0].T).max(dim=1).values.mean())
    scores = score(models, CAPTIONS, similarity="recall", layer=1)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


_PROGRAM = """
import importlib.util, json, sys
if importlib.util.find_spec("torchvision"):
    sys.path.append(sys.argv[1])
    from reward_servers.image_reward_model import import_torchvision
    import_torchvision()
from bert_score import score
given = json.load(open("given.json"))
# It knows kinds of models by their names, so the folder has a short one.
_, recall, _ = score(given["captions"], given["prompts"], model_type="encoder", num_layers=1)
json.dump(recall.tolist(), open("found.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON,
    reason="FLEETUNE_BERT_SCORE_PYTHON names no Python of an environment with bert-score",
)
@pytest.mark.parametrize(
    ("save_encoder", "texts"),
    [
        (save_tiny_encoder, [["a blue square", ""], ["a red circle and a square", "a red square"]]),
        (save_tiny_roberta, [["red", "red de red"], ["ed red", "red red e"]]),
    ],
)
def test_recall_is_that_of_the_real_bert_score(
    models: dict[str, str], save_encoder: Any, texts: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "encoder").mkdir()
    captions, prompts = texts
    reward = Told(models["captioner"], save_encoder(tmp_path / "encoder"), "recall", layer=1)
    reward.told = captions
    (tmp_path / "given.json").write_text(json.dumps({"captions": captions, "prompts": prompts}))
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([PYTHON, "-c", _PROGRAM, root], cwd=tmp_path, check=True)
    expected = json.loads((tmp_path / "found.json").read_text())
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(reward.score(IMAGES[:2], prompts), expected, atol=1e-5)


@pytest.mark.parametrize("similarity", ["mean", "recall"])
def test_the_prompt_itself_is_the_best_caption(models: dict[str, str], similarity: str) -> None:
    same = score(models, PROMPTS, similarity=similarity)
    np.testing.assert_allclose(same, 1, atol=1e-5)
    assert (score(models, CAPTIONS, similarity=similarity) < 1 - 1e-3).all()


def test_the_first_word_of_a_text_is_the_token_that_it_is_inside_one_for_recall(
    models: dict[str, str], tmp_path: Path
) -> None:
    """Of byte-level tokenizers, as RoBERTa's, `red` and ` red` are two tokens."""
    roberta = {**models, "encoder": save_tiny_roberta(tmp_path)}
    tokenizer = RobertaTokenizer.from_pretrained(roberta["encoder"])
    (spaced,), (bare,) = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (" red", "red")
    )
    assert spaced != bare
    for similarity, first in (("recall", spaced), ("mean", bare)):
        reward = TextAlignment(**roberta, similarity=similarity)
        seen: list[torch.Tensor] = []
        reward._encoder.embeddings.word_embeddings.register_forward_hook(
            lambda _module, given, _output, seen=seen: seen.append(given[0])
        )
        reward._features(["red"])
        assert seen[0][0, 1] == first


def test_an_empty_caption_recalls_nothing(models: dict[str, str]) -> None:
    assert score(models, [""], similarity="recall") == [0]


def test_a_reference_may_stand_around_the_prompt(models: dict[str, str]) -> None:
    around = ["the image contains " + prompt for prompt in PROMPTS]
    told = score(models, around, reference="the image contains {prompt}")
    np.testing.assert_allclose(told, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"captioner": "/nowhere"}, "no BLIP model at '/nowhere'"),
        ({"encoder": "/nowhere"}, "no encoder of texts at '/nowhere'"),
        ({"similarity": "bleu"}, "one of mean, recall"),
        ({"reference": "x"}, "a reference holds {prompt}"),
    ],
)
def test_a_check_says_what_cannot_work(args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_reward("text-alignment", args)
