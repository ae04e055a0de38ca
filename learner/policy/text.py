"""What a UNet is told of prompts: the states of their tokens, and what SDXL takes beside them.

Shape suffixes: B rows, L tokens, E width of a token's state, P width of the pooled state.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from learner.policy.sources import variant_of


@dataclass(frozen=True)
class Text:
    """Conditions of B rows.

    Args:
        states_BLE: of the tokens.
        pooled_BP: of the whole prompt, by SDXL's second encoder; None for models without.
        time_ids_B6: SDXL's sizes in pixels: of the original, of the crop's corner, of the target.
    """

    states_BLE: Tensor
    pooled_BP: Tensor | None = None
    time_ids_B6: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence["Text"]) -> "Text":
        """All rows, part by part."""
        fields = zip(*(part._tensors for part in parts), strict=True)
        return cls(*(None if f[0] is None else torch.cat(f) for f in fields))  # pyright: ignore

    def __len__(self) -> int:
        return len(self.states_BLE)

    def __getitem__(self, rows: slice) -> "Text":
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Text":
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def repeat_interleave(self, count: int) -> "Text":
        """Every row `count` times in a row."""
        return self._map(lambda tensor: tensor.repeat_interleave(count, dim=0))

    @property
    def added(self) -> dict[str, Tensor] | None:
        """`added_cond_kwargs` of the UNet."""
        if self.pooled_BP is None or self.time_ids_B6 is None:
            return None
        return {"text_embeds": self.pooled_BP, "time_ids": self.time_ids_B6}

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.states_BLE, self.pooled_BP, self.time_ids_B6

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Text":
        states, *added = self._tensors
        assert states is not None
        return Text(change(states), *(None if each is None else change(each) for each in added))


Encode = Callable[[list[str]], Text]
"""Prompts -> their text, row by row; the empty prompt is the unconditional one."""


class PromptEncoder:
    """Prompts to text states; those of the prompts that it was asked for last are kept.

    Args:
        towers: tokenizer and encoder, once (Stable Diffusion) or twice (SDXL).
        image_size: height and width in pixels that SDXL is told; None for models without.
        zeros_when_empty: the unconditional states are zeros, not those of an empty prompt.
        kept_bytes: of states that are kept, on the device that the encoders were on at first.
    """

    def __init__(
        self,
        towers: Sequence[tuple[CLIPTokenizer, Any]],
        *,
        image_size: tuple[int, int] | None = None,
        zeros_when_empty: bool = False,
        kept_bytes: int = 2**29,
    ) -> None:
        self._towers = list(towers)
        self._image_size = image_size
        self._zeros_when_empty = zeros_when_empty
        self._kept_bytes = kept_bytes
        self._device = self._towers[0][1].device
        self._bytes_each = 0  # of one prompt's states
        # The one that was asked for longest ago comes first.
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    @classmethod
    def load(
        cls,
        path: Path,
        device: str = "cpu",
        *,
        image_size: tuple[int, int] | None = None,
        kept_bytes: int = 2**29,
    ) -> "PromptEncoder":
        """Of a pipeline's folder, in float32.

        Args:
            image_size: what SDXL is told; models with one encoder are not.
        """
        towers = []
        for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
            folder = path / f"text_encoder{suffix}"
            if folder.is_dir():
                tokenizer = CLIPTokenizer.from_pretrained(path, subfolder=f"tokenizer{suffix}")
                encoder: Any = kind.from_pretrained(
                    folder, torch_dtype=torch.float32, variant=variant_of(folder)
                )
                towers.append((tokenizer, encoder.eval().requires_grad_(False).to(device)))
        if len(towers) == 1:
            return cls(towers, kept_bytes=kept_bytes)
        index = json.loads((path / "model_index.json").read_text())
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        return cls(towers, image_size=image_size, zeros_when_empty=zeros, kept_bytes=kept_bytes)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Text:
        """Conditions, float32; the empty prompt is the unconditional one."""
        asked = dict.fromkeys(prompts)
        new = [prompt for prompt in asked if prompt not in self._kept]
        if new:
            # Clones, else one kept row would keep its whole batch.
            columns = [
                [row.to(self._device, copy=True) for row in tensor] for tensor in self._encode(new)
            ]
            self._kept.update(zip(new, zip(*columns, strict=True), strict=True))
        for prompt in asked:
            self._kept[prompt] = self._kept.pop(prompt)
        rows = [self._kept[prompt] for prompt in prompts]
        states_BLE, *pooled = (torch.stack(column) for column in zip(*rows, strict=True))
        self._bytes_each = sum(tensor.nbytes for tensor in rows[0])
        while len(self._kept) * self._bytes_each > self._kept_bytes:
            del self._kept[next(iter(self._kept))]
        if not pooled:
            return Text(states_BLE)
        return Text(states_BLE, pooled[0], self._time_ids(len(prompts)))

    def retire(self, prompts: Sequence[str], *, batch: int = 64) -> None:
        """Encodes all that will be asked for, and leaves the device's memory to others.

        A prompt that is asked for nevertheless is encoded on the CPU, slowly.

        Raises:
            ValueError: their states are more than are kept; the encoders stay where they are.
        """
        known = list(dict.fromkeys(prompts))
        for start in range(0, len(known), batch):
            self(known[start : start + batch])
            needed = len(known) * self._bytes_each
            if needed > self._kept_bytes:
                raise ValueError(
                    f"model.text_cache_mb keeps {self._kept_bytes / 2**20:,.0f} MB of text states, "
                    f"and those of {len(known):,} prompts take {needed / 2**20:,.0f} MB: raise it, "
                    "or set model.text_encoders: stay"
                )
        for _, encoder in self._towers:
            encoder.to("cpu")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _encode(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """States [N, L, E], and pooled ones [N, P] where there are two encoders."""
        outputs = [self._run(tokenizer, encoder, prompts) for tokenizer, encoder in self._towers]
        if len(outputs) == 1:
            return (outputs[0].last_hidden_state,)
        # SDXL reads the layer before the last, of both encoders side by side.
        parts = torch.cat([output.hidden_states[-2] for output in outputs], dim=2)
        pooled = outputs[1].text_embeds
        if self._zeros_when_empty:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=parts.device)
            parts = parts.masked_fill(empty[:, None, None], 0.0)
            pooled = pooled.masked_fill(empty[:, None], 0.0)
        return parts, pooled

    def _run(self, tokenizer: CLIPTokenizer, encoder: Any, prompts: list[str]) -> Any:
        tokens = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids = tokens.input_ids.to(encoder.device)
        return encoder(ids, output_hidden_states=len(self._towers) > 1)

    def _time_ids(self, rows: int) -> Tensor:
        assert self._image_size is not None
        height, width = self._image_size
        ids = [height, width, 0, 0, height, width]
        return torch.tensor(ids, device=self._device, dtype=torch.float32).expand(rows, -1)
