"""Whether what a config names by a hub id is in the hub's cache here, complete."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.doctor.files import named_models
from deploy.run.model_checks import is_hub_id
from deploy.settings.run_config import RunConfig
from learner.policy.sources import PARTS

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_NO_NETWORKS = ("tokenizer", "scheduler")
_TRUE = {"1", "on", "true", "yes"}


def hub_ids(config: RunConfig) -> dict[str, str]:
    """By the setting that names it."""
    return {
        name: value
        for name, value in named_models(config).items()
        if is_hub_id(value) and not Path(value).exists()
    }


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the hub's client keeps what it has downloaded."""
    home = environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def lacking(folder: Path, hub_id: str, *, weights: bool = True) -> str | None:
    """What of a repository's files that are read here is not in the cache; None: all is there.

    Args:
        weights: they are read as well, not the configuration and the tokenizer alone.
    """
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    main = repository / "refs" / "main"
    if not main.is_file():
        return hub_id
    snapshot = repository / "snapshots" / main.read_text().strip()
    files = [path for path in snapshot.rglob("*") if not path.is_dir()]
    if not files:
        return hub_id
    if any(repository.glob("blobs/*.incomplete")):
        return f"{hub_id}, whose download was broken off,"
    # A snapshot's files are links to blobs, and one that leads nowhere does not exist.
    for path in (*files, *_shards(files)):
        if not path.exists():
            return f"{path.relative_to(snapshot)} of {hub_id}"
    for part in _parts(snapshot):
        names = [path.name for path in part.glob("*")]
        has_weights = any(name.endswith(_WEIGHTS) for name in names)
        where = hub_id if part == snapshot else f"{part.name}/ of {hub_id}"
        if not names:
            return where
        if weights and not part.name.startswith(_NO_NETWORKS) and not has_weights:
            return f"a file of weights in {where}"
    return None


def _shards(files: Iterable[Path]) -> Iterator[Path]:
    """The files that indices of weights in several files name."""
    for path in files:
        if path.name.endswith(".safetensors.index.json") and path.exists():
            yield from (path.parent / name for name in set(_read(path)["weight_map"].values()))


def _parts(snapshot: Path) -> list[Path]:
    """Folders of a pipeline's parts that are read here; else the snapshot itself."""
    if not (snapshot / "model_index.json").exists():
        return [snapshot]
    index = _read(snapshot / "model_index.json")
    return [snapshot / part for part in PARTS if index.get(part, [None])[0] is not None]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def hub_findings(config: RunConfig, environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Findings, where the hub may not be asked; notes, where it would be."""
    findings, notes, folder = [], [], cache_folder(environ)
    offline = environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    named, without_weights = hub_ids(config), _read_without_weights(config)
    for hub_id in dict.fromkeys(named.values()):
        names = [name for name, value in named.items() if value == hub_id]
        lacks = lacking(folder, hub_id, weights=not without_weights.issuperset(names))
        if lacks is None:
            continue
        told = f"{', '.join(names)}: {lacks} is not in the hub's cache {folder}"
        if offline:
            findings.append(
                f"{told}, and HF_HUB_OFFLINE is set: on a machine that reaches the hub, call "
                f"HF_HOME={folder.parent} hf download {hub_id}, and bring that folder here"
            )
        else:
            notes.append(f"{told}: each node that needs it will download it")
    return findings, notes


def _read_without_weights(config: RunConfig) -> set[str]:
    """Settings of rewards whose repository is read for its configuration or tokenizer alone."""
    scores = {"rewards": config.rewards, "evaluation.rewards": config.evaluation.rewards}
    return {
        f"{section}.{name}.args.{key}"
        for section, rewards in scores.items()
        for name, reward in rewards.items()
        # As HPS v2 does, a reward with a checkpoint takes the architecture from `clip`.
        for key in ("processor", "tokenizer", *(["clip"] if reward.args.get("checkpoint") else []))
    }
