"""Whether the prompts of a config can be read, all of them, and mean one thing each."""

import logging
from collections.abc import Iterator, Mapping

from actors.prompt_sets import PromptSet
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import RunConfig
from deploy.settings.sections import DatasetPrompts, ShapesPrompts

log = logging.getLogger(__name__)


def readable_prompts(config: RunConfig) -> tuple[dict[str, PromptSet], list[str]]:
    """Those of training and evaluation that can be read, by their setting; and why one cannot."""
    found, problems = {}, []
    for name, source, seed in (
        ("prompts", config.prompts, config.seed),
        ("evaluation.prompts", config.evaluation.prompts, config.evaluation.seed),
    ):
        if isinstance(source, ShapesPrompts):  # one is as good as all, and quicker
            source = source.model_copy(update={"count": 1})
        try:
            found[name] = prompts = prompt_set(source, seed)
        except (OSError, ValueError) as error:
            key = "path" if isinstance(source, DatasetPrompts) else "file"
            problems.append(f"{name}.{key}: {error}")
            continue
        if prompts.repeated:
            log.warning(
                "%s: %d of %d prompts are there more than once, and are drawn as often",
                name, prompts.repeated, len(prompts.prompts),
            )  # fmt: skip
    problems += _ambiguous_metadata(found)
    return found, problems


def _ambiguous_metadata(prompts: Mapping[str, PromptSet]) -> Iterator[str]:
    """A reward with a fleet of its own is asked about both sets, and knows a prompt by its text."""
    if len(prompts) < 2:
        return
    training, held_out = prompts["prompts"].table, prompts["evaluation.prompts"].table
    both = [text for text in held_out if training.get(text, held_out[text]) != held_out[text]]
    if both:
        yield (
            f"evaluation.prompts: {both[0][:80]!r} is a training prompt too, with other metadata; "
            "evaluate on other prompts, or give it the same"
        )
