"""Where the files of a model lie: a folder here, or a hub id that is downloaded."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath

from huggingface_hub import snapshot_download
from huggingface_hub.errors import DryRunError

# Of a repository that holds a model several times over, what diffusers reads of it here.
_READ = ("*.json", "*.txt", "*.model", "*.safetensors")
# Weights for other programs, beside those for diffusers or in a folder of their own.
_UNREAD = ("*.non_ema.*", "*onnx*", "*openvino*", "*flax*")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_HALF = ".fp16"


def local_folder(path_or_id: str, *, holds: str, whole_pipeline: bool = False) -> Path:
    """A folder here, or what a hub id is downloaded to.

    Args:
        holds: what the folder is looked up for, for the error.
        whole_pipeline: only its parts are read, each in a folder of its own, and its index.

    Raises:
        ValueError: neither.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    read = _READ
    if whole_pipeline:
        read = ("model_index.json", *(f"{part}/{name}" for part in PARTS for name in _READ))
    try:
        return Path(_downloaded(path_or_id, read))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model at {path_or_id!r}: it is not a folder here, and the hub said: {error}. Give "
            f"a folder with {holds} or a hub id."
        ) from error


def _downloaded(hub_id: str, read: Sequence[str]) -> str:
    """The snapshot's folder; where the hub cannot be asked, that of an earlier download."""
    try:
        listed = snapshot_download(
            hub_id, allow_patterns=[*read], ignore_patterns=[*_UNREAD], dry_run=True
        )
    except DryRunError:
        unread = [*_UNREAD, f"*{_HALF}*"]
        return snapshot_download(hub_id, allow_patterns=[*read], ignore_patterns=unread)
    names = without_halves(file.filename for file in listed)
    return snapshot_download(hub_id, allow_patterns=names)


def without_halves(names: Iterable[str]) -> list[str]:
    """Files of a repository, without weights in half precision where the same folder has others,
    which `variant_of` prefers."""
    names = list(names)
    full = {PurePosixPath(name).parent for name in names if _is_full(PurePosixPath(name))}
    return [name for name in names if _HALF not in name or PurePosixPath(name).parent not in full]


def part_folder(path_or_id: str, part: str) -> Path:
    """The folder of one network: the given one, or the part's own in a pipeline's.

    Args:
        part: `unet` or `vae`.

    Raises:
        ValueError: there is no such network.
    """
    path = local_folder(path_or_id, holds=f"the config.json of a {part}")
    for folder in (path, path / part):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{path} holds no {part}: neither it nor its {part}/ has a config.json")


def variant_of(folder: Path) -> str | None:
    """`fp16` where a network's weights lie there in half precision alone; else None."""
    paths = list(folder.glob("*.safetensors"))
    has_halves = any(_HALF in path.name for path in paths)
    return "fp16" if has_halves and not any(map(_is_full, paths)) else None


def _is_full(path: PurePath) -> bool:
    """Weights of no variant, whose name stands before the suffix: `.fp16`, `.non_ema`."""
    return path.suffix == ".safetensors" and "." not in path.stem
