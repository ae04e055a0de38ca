"""Attribute binding by a visual question answerer, as T2I-CompBench scores it.

Of "a red car and a blue house" it asks "a red car?" and "a blue house?", and multiplies what
P(yes) is of each (Huang et al. 2023, arXiv:2307.06350, disentangled BLIP-VQA).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_servers.base import Scored
from reward_servers.blip import BlipParts
from reward_servers.clip import check_folder
from reward_servers.phrases import by_rule, by_spacy, question_of

_HUB = "Salesforce/blip-vqa-capfilt-large"
_PHRASES = ("rule", "spacy")
_MAX_TOKENS = 35  # of a question


class BlipVqa:
    """The product over a prompt's phrases of P(yes), in [0, 1]; no gradient.

    P(yes) = p(yes) / (p(yes) + p(no)), of the answer's first word. The picture is squashed to the
    processor's size, bicubic. The benchmark's own model reads 480 pixels: `side: 480` is close to
    it, but its positions are resampled from those that transformers' file has for 384, and not from
    the checkpoint's own. It rounds each P(yes) to four digits, which this does not. Licence of the
    weights: BSD 3-clause.

    Args:
        blip: folder or hub id of a `BlipForQuestionAnswering`.
        phrases: `spacy`, the noun chunks that the benchmark takes, or `rule`, for which nothing
            needs to be installed; what differs is told in `reward_servers.phrases`. Questions
            that come with a prompt (`questions` of its metadata, a list of texts) are asked in
            their place.
        side: pixels of the picture; null: as the processor says, 384 in the released files.
        most: phrases of a prompt that are asked about, 8 in the benchmark.
        batch: questions that are answered together.

    Raises:
        ValueError: no such model, an argument is not allowed, or spaCy is not installed.
    """

    def __init__(
        self,
        blip: str = _HUB,
        phrases: str = "rule",
        side: int | None = None,
        most: int = 8,
        batch: int = 32,
    ) -> None:
        _check_numbers(phrases, side, most, batch)
        self._phrases = by_spacy() if phrases == "spacy" else by_rule
        self._most, self._batch = most, batch
        self._blip = BlipParts("BlipForQuestionAnswering", blip, side)
        self._yes, self._no = (self._word(word) for word in ("yes", "no"))
        # BLIP marks a question that is read with a picture by a token behind the one that begins
        # an answer; transformers leaves the tokenizer's first one there.
        self._begin = self._blip.model.decoder_start_token_id
        self._encode = self._begin + 1
        words = self._blip.model.config.text_config.vocab_size
        if self._encode >= words:
            raise ValueError(f"{blip!r} has {words} tokens and none of number {self._encode}")

    @staticmethod
    def check(
        blip: str = _HUB,
        phrases: str = "rule",
        side: int | None = None,
        most: int = 8,
        batch: int = 32,
    ) -> None:
        """Looks for the folder and at the arguments, and for spaCy where it is asked for.

        Raises:
            ValueError: one is not there, or not allowed.
        """
        _check_numbers(phrases, side, most, batch)
        check_folder(blip, what="BLIP model", example=_HUB)
        if phrases == "spacy":
            by_spacy()

    @torch.no_grad()
    def score(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Scored:
        """Scores [B]; a prompt that names no thing has a failure.

        Args:
            metadata: what is known of each prompt; its `questions` are asked as they are.
        """
        known = metadata or [{}] * len(prompts)
        asked = [self.questions(*each) for each in zip(prompts, known, strict=True)]
        pairs = [(row, question) for row, each in enumerate(asked) for question in each]
        values = np.ones(len(prompts))
        for first in range(0, len(pairs), self._batch):
            rows, questions = zip(*pairs[first : first + self._batch], strict=True)
            # A row may be there several times, once a question; its picture is looked at once.
            looked_at, picture_Q = np.unique(rows, return_inverse=True)
            seen_BND = self._see(images_BHWC[looked_at])
            np.multiply.at(values, list(rows), self._p_yes(seen_BND, picture_Q, questions))
        unasked = {row: "the prompt names nothing" for row, each in enumerate(asked) if not each}
        return Scored(values.astype(np.float32), unasked)

    def questions(self, prompt: str, metadata: Mapping[str, Any]) -> list[str]:
        """What is asked about a picture of a prompt.

        Raises:
            ValueError: the questions of the metadata are no list of texts.
        """
        given = metadata.get("questions")
        if given is None:
            return [question_of(phrase) for phrase in self._phrases(prompt)[: self._most]]
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise ValueError(f"questions of {prompt!r} are {given!r}; give a list of texts")
        return list(given)

    def _see(self, images_BHWC: np.ndarray) -> Tensor:
        """What the vision tower tells of pictures, [B, N, D]."""
        return self._blip.model.vision_model(
            pixel_values=self._blip.pixels(images_BHWC),
            interpolate_pos_encoding=self._blip.interpolate,
        ).last_hidden_state

    def _p_yes(
        self, seen_BND: Tensor, picture_Q: np.ndarray, questions: Sequence[str]
    ) -> np.ndarray:
        """P(yes) [Q] of questions, each about one of the pictures.

        Questions of one length go together: the decoder of transformers 5 attends to padding.
        """
        tokens = self._blip.tokenizer(list(questions), truncation=True, max_length=_MAX_TOKENS)
        lengths = np.array([len(ids) for ids in tokens.input_ids])
        values = np.empty(len(questions))
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            ids_QL = torch.tensor([tokens.input_ids[row] for row in rows])
            of_rows = torch.from_numpy(picture_Q[rows]).to(seen_BND.device)
            values[rows] = self._answers(seen_BND[of_rows], ids_QL)
        return values

    def _answers(self, seen_BND: Tensor, ids_BL: Tensor) -> np.ndarray:
        """P(yes) [B] of questions as tokens [B, L], each with its picture."""
        blip = self._blip
        ids_BL = ids_BL.to(blip.device)
        ids_BL[:, 0] = self._encode
        all_BN = torch.ones(seen_BND.shape[:2], dtype=torch.long, device=seen_BND.device)
        read = blip.model.text_encoder(
            input_ids=ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            encoder_hidden_states=seen_BND,
            encoder_attention_mask=all_BN,
        ).last_hidden_state
        answers = blip.model.text_decoder(
            input_ids=torch.full((len(ids_BL), 1), self._begin, device=blip.device),
            encoder_hidden_states=read,
            encoder_attention_mask=torch.ones_like(ids_BL),
        )
        # The first word alone counts: p(yes) / (p(yes) + p(no)) is the sigmoid of the difference.
        logits = answers.logits[:, 0]
        return torch.sigmoid(logits[:, self._yes] - logits[:, self._no]).double().cpu().numpy()

    def _word(self, word: str) -> int:
        ids = self._blip.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self._blip.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no one token for {word!r}")
        return ids[0]


def _check_numbers(phrases: str, side: int | None, most: int, batch: int) -> None:
    if phrases not in _PHRASES or min(most, batch) < 1 or (side is not None and side < 16):
        raise ValueError(
            f"phrases is {phrases!r}, side {side}, most {most} and batch {batch}; "
            f"phrases is one of {', '.join(_PHRASES)}, side at least 16 or null, "
            "most and batch at least 1"
        )
