"""Where the prompts of a config come from. Every process reads them itself; none are sent."""

import numpy as np

from actors.dataset_prompts import load_dataset_prompts
from actors.prompt_sets import PromptSet, load_jsonl, load_text, plain_set
from deploy.settings.prompts import (
    DatasetPrompts,
    FilePrompts,
    JsonlPrompts,
    Prompts,
    ShapesPrompts,
)


def prompt_set(source: Prompts, seed: int) -> PromptSet:
    """The prompts of a file or a dataset, or drawn from the shapes grammar.

    Raises:
        ValueError: they cannot be read, or are others than those of its digest; says why.
    """
    if not isinstance(source, ShapesPrompts):
        return _as_they_were(source, _read(source))
    from deploy.shapes.world import draw_scene

    rng = np.random.default_rng(seed)
    scenes = (
        draw_scene(rng, held_out=source.held_out, three=source.three_share)
        for _ in range(source.count)
    )
    return plain_set([scene.prompt for scene in scenes])


def _read(source: FilePrompts | JsonlPrompts | DatasetPrompts) -> PromptSet:
    if isinstance(source, FilePrompts):
        return load_text(source.file)
    if isinstance(source, JsonlPrompts):
        return load_jsonl(source.file, source.column)
    return load_dataset_prompts(**source.model_dump(exclude={"kind", "digest"}))


def _as_they_were(
    source: FilePrompts | JsonlPrompts | DatasetPrompts, found: PromptSet
) -> PromptSet:
    if source.digest not in (None, found.digest):
        where = source.path if isinstance(source, DatasetPrompts) else source.file
        raise ValueError(
            f"{where} holds other prompts here, of digest {found.digest}, than those of digest "
            f"{source.digest} that the run is of; put them back as they were, on every node, or "
            "begin another run"
        )
    return found


def prompt_list(source: Prompts, seed: int) -> list[str]:
    """The texts of `prompt_set`."""
    return list(prompt_set(source, seed).prompts)
