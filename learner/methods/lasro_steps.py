"""LaSRO in the alternation: policy steps for drawn prompts, anchored on data of their own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from learner.groups import ScoredGroups
from learner.methods.lasro_policy import AnchorData, LasroPolicy, PolicyState
from learner.settings.lasro import Lasro

_AT_ONCE = 64


class LasroSteps:
    """Implements `learner.methods.alternation.PolicySteps`."""

    def __init__(self, settings: Lasro, policy: LasroPolicy, prompts: Sequence[str]) -> None:
        self._settings = settings
        self._policy = policy
        self._prompts = list(prompts)
        self._anchor: AnchorData | None = None

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Last-step latents of the untouched policy to distil on, the best of each group."""
        if self._settings.anchor.data == "none":
            return
        latents, prompts = [], []
        for i in range(0, len(tickets), _AT_ONCE):
            batch = groups.fetch(tickets[i : i + _AT_ONCE])
            rows = batch.rewards_GNK[:, :, -1].argmax(dim=1)
            latents.append(batch.latents_GNKCHW[torch.arange(len(rows)), rows, -1])
            prompts += batch.prompts
        self._anchor = AnchorData(torch.cat(latents), prompts)

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Nothing: its steps are not of one version's samples alone."""

    @property
    def kind(self) -> str:
        return "with the anchor's weight" if self._policy.measures_anchor else ""

    @property
    def steps_taken(self) -> int:
        return self._policy.state.step

    def step(self) -> dict[str, float]:
        return self._policy.step(self._prompts, self._anchor)

    def save(self, folder: Path) -> None:
        if self._anchor is not None:
            # As they came from the replay, exactly.
            latents = self._anchor.latents_NCHW.numpy().astype(np.float16)
            save_file({"latents": latents}, folder / "anchor.safetensors")
            (folder / "anchor.json").write_text(json.dumps(list(self._anchor.prompts)))

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.state = PolicyState.from_json(state)
        if (folder / "anchor.safetensors").exists():
            latents = torch.from_numpy(load_file(folder / "anchor.safetensors")["latents"]).float()
            self._anchor = AnchorData(latents, json.loads((folder / "anchor.json").read_text()))

    def state(self) -> dict[str, Any]:
        return self._policy.state.to_json()
