"""Where the prompts of a config come from. Every process reads them itself; none are sent."""

import numpy as np

from actors.dataset_prompts import load_dataset_prompts
from actors.prompt_sets import PromptSet, load_jsonl, load_text, plain_set
from deploy.settings.sections import DatasetPrompts, FilePrompts, JsonlPrompts, Prompts


def prompt_set(source: Prompts, seed: int) -> PromptSet:
    """The prompts of a file or a dataset, or drawn from the shapes grammar.

    Raises:
        ValueError: they cannot be read; says why.
    """
    if isinstance(source, FilePrompts):
        return load_text(source.file)
    if isinstance(source, JsonlPrompts):
        return load_jsonl(source.file, source.column)
    if isinstance(source, DatasetPrompts):
        return load_dataset_prompts(**source.model_dump(exclude={"kind"}))
    from deploy.shapes.world import draw_scene

    rng = np.random.default_rng(seed)
    scenes = (
        draw_scene(rng, held_out=source.held_out, three=source.three_share)
        for _ in range(source.count)
    )
    return plain_set([scene.prompt for scene in scenes])


def prompt_list(source: Prompts, seed: int) -> list[str]:
    """The texts of `prompt_set`."""
    return list(prompt_set(source, seed).prompts)
