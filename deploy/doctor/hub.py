"""Whether what a config names by a hub id is in the hub's cache here, complete."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.run.model_checks import is_hub_id
from deploy.settings.run_config import RunConfig
from reward_servers.registry import default_args

_TRUE = {"1", "on", "true", "yes"}


def hub_ids(config: RunConfig) -> dict[str, str]:
    """By the setting that names it."""
    named: dict[str, object] = {
        "model.path": config.model.path,
        "model.unet": config.model.unet,
        "model.vae": config.model.vae,
        "model.lcm_lora": config.model.lcm_lora,
        "model.teacher": config.model.teacher,
        "method.clean.lora": config.method.consistency_lora,
    }
    scores = {"rewards": config.rewards, "evaluation.rewards": config.evaluation.rewards}
    for section, rewards in scores.items():
        for name, reward in rewards.items():
            named |= {
                f"{section}.{name}.args.{key}": it
                for key, it in {**_defaults(reward.kind), **reward.args}.items()
            }
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, str) and is_hub_id(value) and not Path(value).exists()
    }


def _defaults(kind: str) -> dict[str, object]:
    try:
        return default_args(kind)
    except ValueError:  # a kind that cannot be had is a finding of another look
        return {}


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the hub's client keeps what it has downloaded."""
    home = environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def is_cached(folder: Path, hub_id: str) -> bool:
    """Whether a snapshot is there whose files are all there."""
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    if any(repository.glob("blobs/*.incomplete")):
        return False
    # A snapshot's files are links to blobs; one that leads nowhere does not exist.
    snapshots = [list(each.rglob("*")) for each in repository.glob("snapshots/*")]
    return any(files and all(file.exists() for file in files) for files in snapshots)


def hub_findings(config: RunConfig, environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Findings, where the hub may not be asked; notes, where it would be."""
    findings, notes, folder = [], [], cache_folder(environ)
    offline = environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    for hub_id, names in _by_id(hub_ids(config)):
        if is_cached(folder, hub_id):
            continue
        told = f"{names}: {hub_id} is not in the hub's cache {folder}"
        if offline:
            findings.append(
                f"{told}, and HF_HUB_OFFLINE is set: on a machine that reaches the hub, call "
                f"HF_HOME={folder.parent} hf download {hub_id}, and bring that folder here"
            )
        else:
            notes.append(f"{told}: each node that needs it will download it")
    return findings, notes


def _by_id(named: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for hub_id in dict.fromkeys(named.values()):
        yield hub_id, ", ".join(name for name, value in named.items() if value == hub_id)
