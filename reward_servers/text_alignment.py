"""How a caption of the picture agrees with its prompt: a captioner, and a similarity of sentences.

LaSRO's text alignment is of this kind; which captioner and similarity it takes is not known to us.
DDPO's (Black et al. 2023, arXiv:2305.13301) has LLaVA describe the picture and BERTScore's recall
compare. Here a BLIP describes it, and either recall or the cosine of sentence embeddings compares.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reward_servers.blip import BlipParts
from reward_servers.clip import check_folder

_CAPTIONER = "Salesforce/blip-image-captioning-large"
_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_SIMILARITIES = ("mean", "recall")


class TextAlignment:
    """Similarity of caption and prompt, in [-1, 1], 1 for the same text; no gradient.

    - `mean`: the cosine of the mean of each text's token features, as sentence-transformers has it.
    - `recall`: BERTScore's (Zhang et al. 2020, arXiv:1904.09675) without idf and rescaling: over
      the prompt's tokens, the mean of the largest cosine with a token of the caption. As its
      authors' package has it, a space stands before a text, which RoBERTa's tokens tell.

    The caption is the likeliest word after word. Licences of the default weights: BSD 3-clause and
    Apache 2.0.

    Args:
        captioner: folder or hub id of a `BlipForConditionalGeneration`.
        encoder: folder or hub id of an encoder of texts and its tokenizer.
        similarity: `mean` or `recall`.
        layer: hidden layer whose features are compared; null: the last. BERTScore takes the 17th
            of roberta-large, which as a recall needs `encoder: FacebookAI/roberta-large`.
        reference: what a caption is compared with; DDPO's is "The image contains {prompt}".
        tokens: most of a caption.

    Raises:
        ValueError: no such model, or an argument is not allowed.
    """

    def __init__(
        self,
        captioner: str = _CAPTIONER,
        encoder: str = _ENCODER,
        similarity: str = "mean",
        layer: int | None = None,
        reference: str = "{prompt}",
        tokens: int = 30,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        _check_arguments(similarity, reference, tokens)
        self._blip = BlipParts("BlipForConditionalGeneration", captioner)
        try:
            self._encoder: Any = AutoModel.from_pretrained(encoder, dtype=torch.float32)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"no encoder of texts at {encoder!r}: {error}. Give a folder that save_pretrained "
                f"of a model and its tokenizer wrote, or a hub id such as {_ENCODER}"
            ) from error
        self._encoder.eval().requires_grad_(False).to(self._blip.device)
        layers = self._encoder.config.num_hidden_layers
        if layer is not None and not 0 <= layer <= layers:
            raise ValueError(f"layer is {layer}; {encoder!r} has 0 to {layers}")
        self._layer = -1 if layer is None else layer
        self._compare, self._before = _mean_cosine, ""
        if similarity == "recall":
            self._compare, self._before = _recall, " "
        self._reference = reference
        self._tokens = tokens

    @staticmethod
    def check(
        captioner: str = _CAPTIONER,
        encoder: str = _ENCODER,
        similarity: str = "mean",
        layer: int | None = None,
        reference: str = "{prompt}",
        tokens: int = 30,
    ) -> None:
        """Looks for the folders; a hub id is left to the hub.

        Raises:
            ValueError: one is not there, or an argument is not allowed.
        """
        _check_arguments(similarity, reference, tokens)
        check_folder(captioner, what="BLIP model", example=_CAPTIONER)
        check_folder(encoder, what="encoder of texts", example=_ENCODER)

    @torch.no_grad()
    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Float32 [B]."""
        references = [self._reference.replace("{prompt}", prompt) for prompt in prompts]
        captions = self._features(self.captions(images_BHWC))
        return self._compare(captions, self._features(references)).float().cpu().numpy()

    @torch.no_grad()
    def captions(self, images_BHWC: np.ndarray) -> list[str]:
        """What the captioner sees in each picture."""
        ids = self._blip.model.generate(
            pixel_values=self._blip.pixels(images_BHWC),
            interpolate_pos_encoding=self._blip.interpolate,
            max_new_tokens=self._tokens,
            do_sample=False,
            num_beams=1,
        )
        found = self._blip.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [caption.strip() for caption in found]

    def _features(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, N, E] of tokens, whether each is there, and whether it is of the text."""
        tokens = self._tokenizer(
            [self._before + text.strip() for text in texts],
            padding=True,
            truncation=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(self._blip.device)
        special_BN = tokens.pop("special_tokens_mask").bool()
        states = self._encoder(**tokens, output_hidden_states=True).hidden_states[self._layer]
        there_BN = tokens.attention_mask.bool()
        return states, there_BN, there_BN & ~special_BN


def _mean_cosine(
    captions: tuple[Tensor, Tensor, Tensor], references: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Cosines [B] of the texts' mean features, their first and last token included."""
    first, second = (
        (states * there[..., None]).sum(dim=1) / there.sum(dim=1)[:, None]
        for states, there, _ in (captions, references)
    )
    return nn.functional.cosine_similarity(first, second)


def _recall(
    captions: tuple[Tensor, Tensor, Tensor], references: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """BERTScore's recall [B]; 0 where either text has no token of its own.

    A token of the reference may be likest to the caption's first or last, special ones, which are
    themselves not weighed: so has it the package of its authors.
    """
    (caption, there, in_caption), (reference, _, in_reference) = captions, references
    cosines_BRC = nn.functional.normalize(reference, dim=-1) @ nn.functional.normalize(
        caption, dim=-1
    ).transpose(1, 2)
    best_BR = cosines_BRC.masked_fill(~there[:, None], -1.0).amax(dim=2)
    recall = (best_BR * in_reference).sum(dim=1) / in_reference.sum(dim=1).clamp(min=1)
    return recall * in_caption.any(dim=1)


def _check_arguments(similarity: str, reference: str, tokens: int) -> None:
    if similarity not in _SIMILARITIES or "{prompt}" not in reference or tokens < 1:
        raise ValueError(
            f"similarity is {similarity!r}, reference {reference!r} and tokens {tokens}; "
            f"similarity is one of {', '.join(_SIMILARITIES)}, a reference holds {{prompt}}, and "
            "tokens are at least 1"
        )
