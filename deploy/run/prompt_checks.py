"""Whether the prompts of a config can be read, all of them, and mean one thing each.

What a run read when it began is held to for good: by `pinned`, every process that reads them later
can tell.
"""

import logging
from collections.abc import Iterator, Mapping

from actors.prompt_sets import PromptSet
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.prompts import DatasetPrompts, Prompts, ShapesPrompts
from deploy.settings.run_config import RunConfig

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
            found[name] = prompt_set(source, seed)
        except (OSError, ValueError) as error:
            key = "path" if isinstance(source, DatasetPrompts) else "file"
            problems.append(f"{name}.{key}: {error}")
            continue
    problems += _ambiguous_metadata(found)
    return found, problems


def warn_of_repeated(prompts: Mapping[str, PromptSet]) -> None:
    """Tells of prompts that stand in a set more than once, or in both."""
    for name, each in prompts.items():
        if each.repeated:
            log.warning(
                "%s: %d of %d prompts are there more than once, and are drawn as often",
                name, each.repeated, len(each.prompts),
            )  # fmt: skip
    if len(prompts) == 2:
        held_out = set(prompts["evaluation.prompts"].prompts)
        if both := held_out.intersection(prompts["prompts"].prompts):
            log.warning(
                "evaluation.prompts: %d of %d are training prompts too, such as %r; an evaluation "
                "shows less of what was learned the more there are",
                len(both), len(held_out), min(both)[:80],
            )  # fmt: skip


def pinned(config: RunConfig, prompts: Mapping[str, PromptSet]) -> RunConfig:
    """The config with the digests of its prompts, of those that were read (`readable_prompts`)."""

    def of(name: str, source: Prompts) -> Prompts:
        if isinstance(source, ShapesPrompts) or name not in prompts:
            return source
        return source.model_copy(update={"digest": prompts[name].digest})

    evaluation = config.evaluation
    held_out = of("evaluation.prompts", evaluation.prompts)
    return config.model_copy(
        update={
            "prompts": of("prompts", config.prompts),
            "evaluation": evaluation.model_copy(update={"prompts": held_out}),
        }
    )


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
