"""The README.md beside a run's result: a model card in the format of the Hugging Face hub.

Made from the run's config and summary alone, so that it can be made again. What tells of a machine
or of a service, and not of the model, is left out of it: a card is there to be published. Its
licence is the user's to choose, and the card says so.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache

from deploy.markdown import markdown
from deploy.report.data import read_pictures
from deploy.run.files import AFTER
from deploy.run.model_checks import is_hub_id
from deploy.run.whole_files import write_whole
from deploy.settings.run_config import RunConfig
from learner.settings.model import Model

CARD_FILE = "README.md"
Form = Literal["adapter", "unet", "pipeline"]
"""What lies beside the card: a LoRA, a UNet, or a whole pipeline."""
_PRIVATE: Any = {"folder": True, "replay": {"redis"}, "logging": True, "callbacks": True}

_OWN_SCHEDULER = (
    "The scores below are of pictures that were drawn by DDIM with eta = 1; the pipeline's own "
    "scheduler, as here, draws others."
)


def write_card(
    folder: Path, config: RunConfig, summary: Mapping[str, Any], form: Form, target: Path
) -> Path:
    """Writes the card of a run.

    Args:
        folder: of the run; a prompt of its pictures is the card's example.
        summary: its `summary.json`.
        target: folder of the result.
    """
    pictures = read_pictures(folder, AFTER, [])
    prompt = pictures.prompts[0] if pictures and pictures.prompts else "a photo of a cat"
    path = target / CARD_FILE
    write_whole(path, card_text(config, summary, form, prompt))
    return path


def card_text(config: RunConfig, summary: Mapping[str, Any], form: Form, prompt: str) -> str:
    """The card: front matter, and what a person reads."""
    from huggingface_hub import ModelCardData

    method, _ = method_of(config)
    few_step = config.model.is_few_step
    data = ModelCardData(
        base_model=_base_models(config),
        base_model_relation="adapter" if form == "adapter" else "finetune",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[
            "text-to-image",
            "diffusers",
            "lora" if form == "adapter" else "fine-tuned",
            "reinforcement-learning",
            method.lower().replace(" ", "-"),
            *(["few-step"] if few_step else []),
            "fleetune",
        ],
        inference={"parameters": _sampling(config)},
    )
    parts = {
        "": _opening(config, form),
        "Use": _use(config, form, prompt),
        "Training": _training(config),
        "Scores": _scores(config, summary),
        "Cost": _cost(summary),
        "Versions": _table(("library", "version"), dict(summary.get("versions") or {}).items()),
        "Settings": _settings(config),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in parts.items())
    return f"---\n{data.to_yaml()}\n---\n\n# {config.name}\n\n{body}\n"


def _base_models(config: RunConfig) -> str | list[str] | None:
    """What the hub knows of all that was trained from: its pipeline, its UNet, its LCM-LoRA."""
    model = config.model
    named = [each for each in (model.unet, model.path, model.lcm_lora) if each and is_hub_id(each)]
    return named if len(named) > 1 else next(iter(named), None)


def method_of(config: RunConfig) -> tuple[str, str]:
    """Name and paper of a run's method."""
    return config.method.title_and_paper(config.model.is_few_step)


def _sampling(config: RunConfig) -> dict[str, float]:
    """For the hub's widget. What guidance a model of few steps takes, only its UNet tells."""
    model = config.model
    guidance = {} if model.is_few_step else {"guidance_scale": model.guidance_scale}
    return {"num_inference_steps": model.num_steps, **guidance}


def _opening(config: RunConfig, form: Form) -> str:
    method, paper = method_of(config)
    model = config.model
    what = {
        "adapter": f"A LoRA adapter of rank {model.lora_rank} for",
        "unet": "A UNet that takes the place of that of",
        "pipeline": "A whole pipeline, made from",
    }[form]
    source = {"adapter": "with the UNet of", "unet": "trained from", "pipeline": "and the UNet of"}
    unet = f" {source[form]} `{model.unet}`" if model.unet else ""
    lora = f" with `{model.lcm_lora}` fused into it" if model.lcm_lora else ""
    return (
        f"{what} `{model.path}`{unet}{lora}, fine-tuned by reinforcement learning: {method} "
        f"({paper}), run by fleetune.\n\nNo licence has been chosen yet: add `license:` to the "
        "lines at the top. The licence of each base model binds this one, too."
    )


def _use(config: RunConfig, form: Form, prompt: str) -> str:
    """Code that draws with the run's parts and guidance; of few steps, with its scheduler too."""
    here = '"this folder, or its id on the hub"'
    base, model = repr(config.model.path), config.model
    classes, lines, parts = {"DiffusionPipeline"}, list[str](), list[str]()
    if form == "pipeline":
        base = here
    else:
        unet = here if form == "unet" else model.unet and _part(model.unet, "unet")
        for part, name, source in (
            ("unet", "UNet2DConditionModel", unet),
            ("vae", "AutoencoderKL", model.vae and _part(model.vae, "vae")),
        ):
            if source:
                classes.add(name)
                lines.append(f"{part} = {name}.from_pretrained({source})")
                parts.append(f", {part}={part}")
    lines.append(f"pipe = DiffusionPipeline.from_pretrained({base}{''.join(parts)})")
    if form == "adapter" and model.lcm_lora is not None:
        lines.append(f"pipe.load_lora_weights({model.lcm_lora!r})")
        lines += ["pipe.fuse_lora()", "pipe.unload_lora_weights()"]
    if form != "pipeline" and model.is_few_step:
        named, scheduler = _scheduler(model)
        classes.add(named)
        lines += scheduler
    if form == "adapter":
        lines.append(f"pipe.load_lora_weights({here})")
    given = {"num_inference_steps": str(model.num_steps), "guidance_scale": "guidance"}
    if model.size is not None:
        given |= {"height": str(model.size[0]), "width": str(model.size[1])}
    guidance = f"{model.guidance_scale:g}"
    if model.is_few_step:
        guidance += " if pipe.unet.config.time_cond_proj_dim else 1.0"
    lines.append(f"guidance = {guidance}")
    arguments = "".join(f", {name}={value}" for name, value in given.items())
    lines.append(f"image = pipe({prompt!r}{arguments}).images[0]")
    text = "\n".join([f"from diffusers import {', '.join(sorted(classes))}\n", *lines])
    own = "" if model.is_few_step else f"\n\n{_OWN_SCHEDULER}"
    return f"```python\n{text}\n```{own}"


def _part(source: str, part: str) -> str:
    """Arguments of `from_pretrained`; a pipeline, here or downloaded before, holds it inside."""
    own, inside = "config.json", f"{part}/config.json"
    if is_hub_id(source):
        found = [isinstance(try_to_load_from_cache(source, name), str) for name in (own, inside)]
    else:
        found = [(Path(source) / name).is_file() for name in (own, inside)]
    return f'{source!r}, subfolder="{part}"' if found == [False, True] else repr(source)


def _scheduler(model: Model) -> tuple[str, list[str]]:
    """What takes the place of the pipeline's scheduler for few steps: a class, and lines."""
    if model.sampler == "ancestral":
        name, options = "EulerAncestralDiscreteScheduler", ', timestep_spacing="trailing"'
    else:
        name, options = "LCMScheduler", ""
    line = f"pipe.scheduler = {name}.from_config(pipe.scheduler.config{options})"
    if model.sampler != "auto" or model.lcm_lora is not None:
        return name, [line]
    # As samplers do: one of few steps that the pipeline was saved with stays.
    return name, [
        'told = pipe.scheduler.config.get("timestep_spacing"), type(pipe.scheduler).__name__',
        'if told != ("trailing", "EulerAncestralDiscreteScheduler"):',
        f"    {line}",
    ]


def _training(config: RunConfig) -> str:
    rewards = [
        (
            name,
            f"`{each.kind}`",
            f"{each.weight:g}",
            f"`{json.dumps(_public(each.kind, each.args))}`",
        )
        for name, each in config.rewards.items()
    ]
    prompts = json.dumps(_named(config.prompts.model_dump(mode="json", exclude_none=True)))
    return (
        f"Prompts: `{prompts}`, seed {config.seed}, {config.model.num_steps} sampling steps.\n\n"
        + _table(("reward", "kind", "weight", "arguments"), rewards)
    )


def _public(kind: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a reward that tell of the reward, and not of a service or a machine."""
    if kind in ("http", "isolated", "image-reward"):
        return {}
    return {
        name: value
        for name, value in args.items()
        if not (isinstance(value, str) and Path(value).is_absolute())
    }


def _scores(config: RunConfig, summary: Mapping[str, Any]) -> str:
    before, after = summary.get("before") or {}, summary.get("after") or {}
    rows = [
        (f"`{name}`", _number(before.get(name)), _number(after.get(name)))
        for name in [*before, *(name for name in after if name not in before)]
    ]
    if not rows:
        return "None were measured."
    version = summary.get("exported_version")
    which = f" The version is `{version}`." if version else ""
    return (
        f"Of {config.evaluation.samples} pictures of held-out prompts, with the same noise before "
        f"and after.{which}\n\n" + _table(("score", "before", "after"), rows)
    )


def _cost(summary: Mapping[str, Any]) -> str:
    flops = sum((summary.get("flops") or {}).values())
    rows = [
        ("reward queries", f"{summary.get('reward_queries', 0):,}"),
        ("wall time", f"{summary.get('wall_s', 0):,.0f} s"),
        ("floating-point operations of sampling and learning", f"{flops:.3g}"),
    ]
    return _table(("what", "how much"), rows)


def _settings(config: RunConfig) -> str:
    told = config.model_dump(mode="json", exclude=_PRIVATE)
    evaluation = told["evaluation"]
    distances = evaluation["diversity"]["distances"]
    for named in (told["rewards"], evaluation["rewards"], distances):
        for each in named.values():
            each["args"] = _public(each["kind"], each["args"])
    told["prompts"], evaluation["prompts"] = _named(told["prompts"]), _named(evaluation["prompts"])
    text = json.dumps(told, indent=1)
    return f"<details>\n<summary>All settings</summary>\n\n```json\n{text}\n```\n\n</details>"


def _named(prompts: Mapping[str, Any]) -> dict[str, Any]:
    """A source of prompts by the name of its file, and not by its place on a machine."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in prompts.items()
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return markdown([head, *rows]).rstrip("\n")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"
