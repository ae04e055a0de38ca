"""`python -m deploy.sample RUN_OR_PIPELINE --prompt "..." --out grid.png`: draws pictures.

    python -m deploy.sample runs/mine --prompt "a red circle left of a blue square" --out after.png
    python -m deploy.sample runs/mine --prompts prompts.txt --count 4 --before --out before.png
    python -m deploy.sample deploy/shapes/pipelines/base --prompt "..." --steps 50 --out base.png

A run's folder is drawn with what the run has trained, by diffusers' own pipeline as any user
would; a pipeline's folder as it is. One row of the grid is a prompt, one column a noise, which is
the same for every prompt, before and after. Exit status: 0 drawn, 2 something given is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from actors.prompt_sets import load_text
from deploy.run.files import CONFIG_FILE
from deploy.run.job_log import set_up
from deploy.settings.problems import ConfigError
from deploy.settings.run_config import config_from_json
from learner.settings.model import Model

_USAGE_ERROR = 2
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_SMALLEST_CELL = 128  # pixels; smaller pictures are enlarged by a whole factor
_CAPTION = 18
_GAP = 4


@dataclass(frozen=True)
class Source:
    """What draws: a pipeline, perhaps with trained weights over it, and how it is sampled.

    Args:
        pipeline: folder or hub id.
        model: of a run's config, which says of what parts and how it is sampled; None: the
            pipeline's own defaults.
        adapter: LoRA weights to load.
        unet: UNet that replaces the pipeline's.
    """

    pipeline: str
    model: Model | None = None
    adapter: Path | None = None
    unet: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    set_up()
    try:
        prompts = _prompts(options)
        source = find_source(options.source, before=options.before)
        _check_output(options.out)
        rows = draw(
            source,
            prompts,
            count=options.count,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
        )
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE_ERROR
    options.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, prompts).save(options.out)
    sys.stdout.write(f"{options.out}\n")
    return 0


def find_source(folder: Path, *, before: bool) -> Source:
    """What a folder draws with: a run's result or, with `before`, its start; or a pipeline.

    Raises:
        ValueError: no such folder, neither a run nor a pipeline, or a run without a result.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; give a run's, such as runs/mine, or one that diffusers' "
            "save_pretrained wrote"
        )
    if (folder / CONFIG_FILE).is_file():
        return _source_of_run(folder, before=before)
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder} is neither a run's folder (it has no {CONFIG_FILE}) nor a pipeline's (it "
            "has no model_index.json)"
        )
    if before:
        raise ValueError(f"{folder} is a pipeline; --before is for a run's folder")
    return Source(str(folder))


def _source_of_run(folder: Path, *, before: bool) -> Source:
    try:
        model = config_from_json((folder / CONFIG_FILE).read_text(encoding="utf-8")).model
    except ConfigError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not a run's config: {error}") from None
    start = Source(model.path, model)
    if before:
        return start
    if (folder / "adapter").is_dir():
        return replace(start, adapter=folder / "adapter")
    if (folder / "unet").is_dir():
        return replace(start, unet=folder / "unet")
    raise ValueError(
        f"{folder} has no result yet, neither adapter/ nor unet/: let the run end, or draw what it "
        "began with by --before"
    )


def draw(
    source: Source,
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[list[Image.Image]]:
    """`count` pictures of every prompt; picture n of each has the noise of seed + n.

    Args:
        steps: None: those of the source; likewise `guidance`.

    Raises:
        ValueError: the pipeline cannot be loaded, or not be sampled in so many steps.
    """
    import torch

    from learner.policy.whole import sampling_arguments

    pipeline = load(source)
    asked = {"num_inference_steps": steps, "guidance_scale": guidance}
    given = {} if source.model is None else sampling_arguments(source.model, pipeline)
    given |= {name: value for name, value in asked.items() if value is not None}
    _check_steps(pipeline, given.get("num_inference_steps"))
    rows = []
    for prompt in prompts:
        noise = [torch.Generator().manual_seed(seed + n) for n in range(count)]
        rows.append(pipeline([prompt] * count, generator=noise, **given).images)
    return rows


def load(source: Source) -> Any:
    """The pipeline of a source, on a GPU if there is one.

    Raises:
        ValueError: it cannot be loaded; says what diffusers said.
    """
    import torch
    from diffusers import DiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from learner.policy.whole import whole_pipeline

    # The error, if there is one, is the first line that is shown.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline: Any = (
            DiffusionPipeline.from_pretrained(source.pipeline, torch_dtype=torch.float32)
            if source.model is None
            else whole_pipeline(source.model)
        )
        if source.adapter is not None:
            pipeline.load_lora_weights(source.adapter)
        if source.unet is not None:
            unet = UNet2DConditionModel.from_pretrained(source.unet, torch_dtype=torch.float32)
            pipeline.register_modules(unet=unet)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load the pipeline {source.pipeline}: {error}\nA path in a run's config is "
            "relative to the folder that the run was started in: call this from there."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _check_steps(pipeline: Any, steps: int | None) -> None:
    """A distilled model knows a grid of some fifty times; others were trained on a thousand."""
    config = pipeline.scheduler.config
    most = config.get("original_inference_steps") or config.num_train_timesteps
    if steps is not None and steps > most:
        raise ValueError(
            f"{steps} steps are not possible: {type(pipeline.scheduler).__name__} of this model "
            f"takes at most {most}"
        )


def grid(rows: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> Image.Image:
    """The pictures of a prompt side by side under their prompt, prompt below prompt."""
    width, height = rows[0][0].size
    factor = max(1, -(-_SMALLEST_CELL // min(width, height)))
    width, height = width * factor, height * factor
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB",
        (columns * (width + _GAP) + _GAP, len(rows) * (height + _CAPTION + _GAP)),
        "white",
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = i * (height + _CAPTION + _GAP)
        caption = _shortened(prompt, lambda text: pen.textlength(text, font), sheet.width - 8)
        pen.text((_GAP, top + 2), caption, fill="black", font=font)
        for k, picture in enumerate(row):
            cell = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(cell, (_GAP + k * (width + _GAP), top + _CAPTION))
    return sheet


def _shortened(text: str, length: Any, room: float) -> str:
    """The text, with an ellipsis where there is no room for all of it."""
    if length(text) <= room:
        return text
    while text and length(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = [prompt for prompt in options.prompt if prompt.strip()]
    if options.prompts is not None:
        prompts += load_text(options.prompts).prompts
    if not prompts:
        raise ValueError('no prompt: give --prompt "..." or --prompts FILE, with one a line')
    return prompts


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in _ENDINGS:
        raise ValueError(f"--out {path} is no picture's name; let it end in {', '.join(_ENDINGS)}")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; name a file")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a run's folder or a pipeline's")
    parser.add_argument("--prompt", action="append", default=[], help="may be given again")
    parser.add_argument("--prompts", type=Path, help="a UTF-8 file with one prompt a line")
    parser.add_argument("--steps", type=_positive, help="default: as the run, or the pipeline")
    parser.add_argument("--guidance", type=float, help="default: as the run, or the pipeline")
    parser.add_argument("--seed", type=int, default=0, help="of the first column's noise")
    parser.add_argument("--count", type=_positive, default=4, help="pictures of each prompt")
    parser.add_argument("--before", action="store_true", help="as the run's model was at first")
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as grid.png")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, given {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
