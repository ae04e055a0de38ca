"""Whether the models that a config names are here, and what they are asked for is possible.

What is on the hub is looked at when it has been downloaded. Imports no torch.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.settings.run_config import RunConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FLOAT = 4


def model_problems(config: RunConfig) -> Iterator[str]:
    """All that can be seen without loading a model."""
    yield from _missing_pipelines(config)
    yield from _missing_parts(config)
    yield from _missing_loras(config)
    yield from _impossible_size(config)
    yield from _missing_compiler(config)
    yield from _small_text_cache(config)


def _missing_pipelines(config: RunConfig) -> Iterator[str]:
    paths = {"model.path": config.model.path}
    distils = config.method.distils(config.model.is_few_step)
    if distils and config.model.teacher is not None:
        paths["model.teacher"] = config.model.teacher
    for name, path in paths.items():
        folder = Path(path)
        if (folder / "model_index.json").is_file() or _is_elsewhere(path):
            continue
        reason = "holds no model_index.json" if folder.is_dir() else "does not exist"
        yield (
            f"{name}: the folder {path} {reason}; give a folder that diffusers' save_pretrained "
            "wrote, or a hub id such as owner/name"
        )


def _missing_parts(config: RunConfig) -> Iterator[str]:
    for part, path in (("unet", config.model.unet), ("vae", config.model.vae)):
        if path is None or _is_elsewhere(path):
            continue
        folder = Path(path)
        if not any((there / "config.json").is_file() for there in (folder, folder / part)):
            yield (
                f"model.{part}: the folder {path} holds no {part}, neither a config.json nor "
                f"{part}/config.json; give one that diffusers' save_pretrained wrote, or a hub id "
                "such as owner/name"
            )


def _missing_loras(config: RunConfig) -> Iterator[str]:
    loras = {
        "model.lcm_lora": config.model.lcm_lora,
        "method.clean.lora": config.method.consistency_lora,
    }
    for name, path in loras.items():
        if path is None or _is_elsewhere(path) or any(Path(path).glob("*.safetensors")):
            continue
        yield (
            f"{name}: the folder {path} holds no LoRA in safetensors; give one that diffusers' "
            "save_lora_weights wrote, or a hub id such as owner/name"
        )


def is_hub_id(path: str) -> bool:
    """Shaped like one, and not a path below a folder that is here."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).parent.is_dir()


def _is_elsewhere(path: str) -> bool:
    return is_hub_id(path) and not Path(path).exists()


def _impossible_size(config: RunConfig) -> Iterator[str]:
    model = config.model
    vae = _read(Path(model.vae) / "config.json") if model.vae is not None else None
    vae = vae or _read(Path(model.vae or model.path) / "vae" / "config.json")
    if model.size is None or vae is None:
        return
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    for name, side in zip(("height", "width"), model.size, strict=True):
        if side % factor:
            yield (
                f"model.{name}: must be a multiple of {factor}, the pixels of one latent of this "
                f"VAE, given {side}"
            )


def _missing_compiler(config: RunConfig) -> Iterator[str]:
    compiler = os.environ.get("CXX") or "g++"
    if config.model.compile and shutil.which(compiler) is None:
        yield (
            f"model.compile: there is no {compiler} here, which torch.compile calls; install it, "
            "name another in the environment variable CXX, or set model.compile: false"
        )


def _small_text_cache(config: RunConfig) -> Iterator[str]:
    """Of text encoders that retire, which every one of a process' prompts must be kept for."""
    each = _text_bytes(Path(config.model.path))
    if config.model.text_encoders != "retire" or each is None:
        return
    from deploy.settings.prompt_sources import prompt_list

    for name, source, seed in (
        ("prompts", config.prompts, config.seed),
        ("evaluation.prompts", config.evaluation.prompts, config.evaluation.seed),
    ):
        try:
            count = len({"", *prompt_list(source, seed)})
        except (OSError, ValueError):
            continue  # told of elsewhere
        needed = count * each / 2**20
        if needed > config.model.text_cache_mb:
            yield (
                f"model.text_cache_mb: must be at least {needed:,.1f} for the {count:,} different "
                f"texts of {name} with model.text_encoders: retire, given "
                f"{config.model.text_cache_mb:g}; raise it, or set model.text_encoders: stay"
            )


def _text_bytes(pipeline: Path) -> int | None:
    """Of one prompt's states, float32; None for a pipeline that is not here."""
    first = _read(pipeline / "text_encoder" / "config.json")
    if first is None:
        return None
    tokens, width, pooled = first["max_position_embeddings"], first["hidden_size"], 0
    second = _read(pipeline / "text_encoder_2" / "config.json")
    if second is not None:
        width, pooled = width + second["hidden_size"], second["projection_dim"]
    return _FLOAT * (tokens * width + pooled)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
