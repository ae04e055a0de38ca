"""The text encoder of the shapes world, trained to say what stands where in a prompt's picture."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deploy.shapes.models import PIPELINES, new_text_encoder, new_tokenizer, tokenize
from deploy.shapes.training import fit
from deploy.shapes.world import cells, draw_scene
from reward_servers.scene import COLOURS, SHAPES, Scene

log = logging.getLogger(__name__)


class LayoutProbe(torch.nn.Module):
    """Reads off text states what stands in each cell of a 3x3 grid, as a UNet's attention would."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(9, width) * 0.1)
        self.attend = torch.nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = torch.nn.Linear(width, classes)

    def forward(self, states_BLE: Tensor) -> Tensor:
        """Logits [B, 9, classes]."""
        queries = self.queries.expand(len(states_BLE), -1, -1)
        read, _ = self.attend(queries, states_BLE, states_BLE, need_weights=False)
        return self.out(read)


def layout_targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Colour and shape in each cell of a 3x3 grid, int64 [B, 9]; 0 is an empty cell."""
    colours = np.zeros((len(scenes), 9), dtype=np.int64)
    shapes = np.zeros_like(colours)
    for row, scene in enumerate(scenes):
        for thing, cell in zip(scene.things, cells(scene), strict=True):
            colours[row, cell] = 1 + list(COLOURS).index(thing.colour)
            shapes[row, cell] = 1 + SHAPES.index(thing.shape)
    return torch.from_numpy(colours), torch.from_numpy(shapes)


def train_text(steps: int, batch: int = 256) -> None:
    """The text encoder, by predicting from its states where which colour and shape stands.

    The states then say what a picture of the prompt shows, which CLIP's encoder learns from
    millions of pictures. The probe is thrown away.
    """
    tokenizer = new_tokenizer(PIPELINES / "work" / "tokenizer")
    torch.manual_seed(2)
    encoder = new_text_encoder(tokenizer)
    probe = LayoutProbe(64, 1 + len(COLOURS) + 1 + len(SHAPES))
    rng = np.random.default_rng(7)

    def logits(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        ids = tokenize(tokenizer, [scene.prompt for scene in scenes])
        both = probe(encoder(ids).last_hidden_state)
        colour, shape = both.split([1 + len(COLOURS), 1 + len(SHAPES)], dim=2)
        return colour.flatten(0, 1), shape.flatten(0, 1)

    def loss_of(step: int) -> Tensor:
        scenes = [draw_scene(rng, held_out=False) for _ in range(batch)]
        colour, shape = logits(scenes)
        colour_target, shape_target = layout_targets(scenes)
        return F.cross_entropy(colour, colour_target.flatten()) + F.cross_entropy(
            shape, shape_target.flatten()
        )

    def save(step: int) -> None:
        """Tells how many things of held-out scenes are read right, and writes the encoder."""
        scenes = [draw_scene(rng, held_out=True) for _ in range(1000)]
        with torch.no_grad():
            colour, shape = logits(scenes)
        colour_target, shape_target = (t.flatten() for t in layout_targets(scenes))
        there = colour_target > 0
        right = (colour.argmax(1) == colour_target) & (shape.argmax(1) == shape_target)
        log.info("held-out things read off rightly: %.4f", float(right[there].float().mean()))
        encoder.save_pretrained(PIPELINES / "work" / "text_encoder")

    fit(
        "text",
        [encoder, probe],
        loss_of,
        steps=steps,
        learning_rate=1e-3,
        ema_decay=0.999,
        save=save,
        save_every=1000,
    )
