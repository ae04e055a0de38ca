"""Where the files of a model lie: a folder here, or a hub id that is downloaded."""

from pathlib import Path

from huggingface_hub import snapshot_download

# Of a repository that holds a model several times over, what diffusers reads of it here.
_READ = ["*.json", "*.txt", "*.model", "*.safetensors"]
# Weights for other programs: in one file at the top, or in another format's folder.
_UNREAD = ["*.non_ema.*", "*onnx*", "*openvino*", "*flax*"]


def local_folder(path_or_id: str, *, holds: str, whole_pipeline: bool = False) -> Path:
    """A folder here, or what a hub id is downloaded to.

    Args:
        holds: what the folder is looked up for, for the error.
        whole_pipeline: weights are read from sub-folders alone.

    Raises:
        ValueError: neither.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    read = [f"*/{name}" for name in _READ] + ["*.json"] if whole_pipeline else _READ
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=read, ignore_patterns=_UNREAD))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model at {path_or_id!r}: it is not a folder here, and the hub said: {error}. Give "
            f"a folder with {holds} or a hub id."
        ) from error


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
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None
