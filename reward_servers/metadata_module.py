"""`reward_servers.metadata` for rewards that a gradient passes.

Shape suffixes: B images, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from reward_servers.metadata import Table, asks_for_metadata, rows_of


def informed_module(model: nn.Module, table: Table) -> nn.Module:
    """The module itself, or one that hands it the metadata that its `forward` asks for."""
    return InformedModule(model, table) if asks_for_metadata(model.forward) else model


class InformedModule(nn.Module):
    """A differentiable reward with the prompt set that its pictures are made for."""

    def __init__(self, model: nn.Module, table: Table) -> None:
        super().__init__()
        self.model = model
        self._table = table

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Any:
        """The model's rewards [B].

        Raises:
            ValueError: a prompt is not in the set.
        """
        return self.model.forward(images_BCHW, prompts, metadata=rows_of(self._table, prompts))
