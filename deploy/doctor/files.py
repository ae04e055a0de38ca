"""The models and files that a config names, and which processes read each."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.doctor.scorers import SCORERS, rewards_of
from deploy.run.bookings import Room, bookings
from deploy.settings.run_config import RunConfig
from reward_servers.registry import default_args


def named_models(config: RunConfig) -> dict[str, str]:
    """Whatever may name a model, by its setting: texts, of arguments of rewards all."""
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
            given = {**_defaults(reward.kind), **reward.args}
            named |= {f"{section}.{name}.args.{key}": value for key, value in given.items()}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def named_files(config: RunConfig) -> dict[str, str]:
    """Absolute paths of what is here, by the setting that names it.

    What has a relative path comes to a node with the job's working directory.
    """
    named: dict[str, Any] = named_models(config)
    for name, source in (
        ("prompts", config.prompts),
        ("evaluation.prompts", config.evaluation.prompts),
    ):
        for key in ("file", "path"):
            named[f"{name}.{key}"] = getattr(source, key, "")
    for name, distance in config.evaluation.diversity.distances.items():
        for key, value in distance.args.items():
            named[f"evaluation.diversity.distances.{name}.args.{key}"] = value
    return {
        name: path
        for name, path in named.items()
        if isinstance(path, str) and path.startswith("/") and Path(path).exists()
    }


def missing_files(
    config: RunConfig, files: Mapping[str, str], missing: Collection[str], room: Room
) -> Iterator[str]:
    """What a node lacks that a process reads which it may hold.

    Args:
        files: paths by their settings.
        missing: those that are not on the node.
    """
    held = {each.section for each in bookings(config) if each.may_be_in(room)}
    for name, path in files.items():
        if path in missing and held & _readers(config, name):
            yield (
                f"node {room.name} has no {path}, which {name} names: mount or copy it there, or "
                "keep the processes that read it on other nodes by their node_labels"
            )


def _readers(config: RunConfig, setting: str) -> set[str]:
    """Sections of the processes that read what a setting names."""
    everyone = {each.section for each in bookings(config)}
    section, name, *_ = setting.split(".")
    if section == "rewards":
        # Of a fleet's section there are only processes where the reward has one.
        scorers = {role for role in SCORERS if name in rewards_of(config, role)}
        return {*scorers, f"rewards.{name}.fleet"}
    return {"method": {"actors", "learner"}, "evaluation": {"evaluation"}}.get(section, everyone)


def _defaults(kind: str) -> dict[str, object]:
    try:
        return default_args(kind)
    except ValueError:  # a kind that cannot be had is a finding of another look
        return {}
