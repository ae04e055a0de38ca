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


class PromptEncoder:
    """Prompts to text states; those of the last few thousand prompts are kept.

    Args:
        towers: tokenizer and encoder, once (Stable Diffusion) or twice (SDXL).
        image_size: height and width in pixels that SDXL is told; None for models without.
        zeros_when_empty: the unconditional states are zeros, not those of an empty prompt.
        kept_bytes: of states that are kept, on the encoders' device.
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
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    @classmethod
    def load(cls, path: Path, device: str = "cpu", *, kept_bytes: int = 2**29) -> "PromptEncoder":
        """Of a pipeline's folder, in float32."""
        towers = []
        for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
            if (path / f"text_encoder{suffix}").is_dir():
                tokenizer = CLIPTokenizer.from_pretrained(path, subfolder=f"tokenizer{suffix}")
                encoder: Any = kind.from_pretrained(
                    path, subfolder=f"text_encoder{suffix}", torch_dtype=torch.float32
                )
                towers.append((tokenizer, encoder.eval().requires_grad_(False).to(device)))
        if len(towers) == 1:
            return cls(towers, kept_bytes=kept_bytes)
        unet, vae = (
            json.loads((path / part / "config.json").read_text()) for part in ("unet", "vae")
        )
        side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        index = json.loads((path / "model_index.json").read_text())
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        return cls(towers, image_size=(side, side), zeros_when_empty=zeros, kept_bytes=kept_bytes)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Text:
        """Conditions, float32; the empty prompt is the unconditional one."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if new:
            # Clones, else one kept row would keep its whole batch.
            columns = [[row.clone() for row in tensor] for tensor in self._encode(new)]
            self._kept.update(zip(new, zip(*columns, strict=True), strict=True))
        rows = [self._kept[prompt] for prompt in prompts]
        states_BLE, *pooled = (torch.stack(column) for column in zip(*rows, strict=True))
        bytes_each = sum(tensor.nbytes for tensor in rows[0])
        while len(self._kept) * bytes_each > self._kept_bytes:
            del self._kept[next(iter(self._kept))]  # the oldest
        if not pooled:
            return Text(states_BLE)
        return Text(states_BLE, pooled[0], self._time_ids(len(prompts)))

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
        device = self._towers[0][1].device
        ids = torch.tensor([height, width, 0, 0, height, width], device=device, dtype=torch.float32)
        return ids.expand(rows, -1)
