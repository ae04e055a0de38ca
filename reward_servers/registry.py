"""Which reward a name means, and how it is built.

A reward is a shipped kind such as `jpeg-size`, or anybody's class as `module:Class`; its
arguments are the class's keyword arguments. `check_reward` finds a wrong name or argument before
a run starts, and builds nothing that could be large.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from reward_servers.base import RewardModel

SHIPPED: dict[str, str] = {
    "blip-vqa": "reward_servers.blip_vqa:BlipVqa",
    "clip-aesthetic": "reward_servers.clip:ClipAesthetic",
    "clip-score": "reward_servers.clip:ClipScore",
    "hpsv2": "reward_servers.preferences:Hpsv2",
    "http": "reward_servers.remote:HttpReward",
    "image-reward": "reward_servers.image_reward:ImageReward",
    "isolated": "reward_servers.isolated:Isolated",
    "jpeg-size": "reward_servers.jpeg:JpegSize",
    "pickscore": "reward_servers.preferences:PickScore",
    "shapes-aesthetic": "reward_servers.aesthetic:ShapesAesthetic",
    "shapes-binding": "reward_servers.binding:ShapesBinding",
    "shapes-exact": "reward_servers.binding:ShapesExact",
    "shapes-taste": "reward_servers.aesthetic:ShapesTaste",
    "text-alignment": "reward_servers.text_alignment:TextAlignment",
}
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def path_of(kind: str, shipped: Mapping[str, str] = SHIPPED, what: str = "reward") -> str:
    """The `module:Class` of a kind, without importing it.

    Raises:
        ValueError: neither a shipped kind nor of the form `module:Class`.
    """
    path = shipped.get(kind, kind)
    if not _PATH.fullmatch(path):
        raise ValueError(
            f"unknown {what} {kind!r}; "
            + (f"shipped are {', '.join(sorted(shipped))}; " if shipped else "")
            + "for your own write 'module:Class'"
        )
    return path


def class_of(
    what: str, kind: str, shipped: Mapping[str, str], args: Mapping[str, Any]
) -> Callable[..., Any]:
    """The class of a kind that takes such arguments; what it is, is said in errors.

    Raises:
        ValueError: the kind is unknown or cannot be imported, or an argument is not one of its own.
    """
    make = _class_at(kind, path_of(kind, shipped, what), what)
    _check_args(kind, make, args, what)
    return make


def check_reward(kind: str, args: Mapping[str, Any] | None = None) -> None:
    """Looks for what `build_reward` would refuse, without loading a model.

    A class whose arguments need a look has a static method `check`, which takes them all and
    raises ValueError. Shipped rewards without one are light and are built; of anybody's own class
    without one only the module is imported.

    Raises:
        ValueError: as `build_reward`.
    """
    make = class_of("reward", kind, SHIPPED, args or {})
    if isinstance(make, type) and not callable(getattr(make, "score", None)):
        raise ValueError(_no_score(kind, make))
    look = getattr(make, "check", None)
    if callable(look):
        look(**(args or {}))
    elif kind in SHIPPED:
        build_reward(kind, args)


def default_args(kind: str) -> dict[str, Any]:
    """What a reward of a kind takes where nothing is given.

    Raises:
        ValueError: the kind is unknown or cannot be imported.
    """
    parameters = inspect.signature(_class_at(kind, path_of(kind))).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def check_metadata(
    kind: str, args: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]
) -> None:
    """Looks whether a reward can do with what the prompts of a set come with; builds nothing.

    A class that needs a look has a static method `check_metadata`, which takes what one prompt
    comes with and then all arguments, and raises ValueError.

    Args:
        table: what a prompt comes with, by its text.

    Raises:
        ValueError: it refuses one of them, or cannot be imported.
    """
    look = getattr(_class_at(kind, path_of(kind)), "check_metadata", None)
    if not callable(look):
        return
    for prompt, metadata in table.items():
        try:
            look(metadata, **args)
        except ValueError as error:
            raise ValueError(
                f"reward {kind!r} cannot score the prompt {prompt[:80]!r} with metadata "
                f"{dict(metadata)!r:.80}: {error}"
            ) from error


def check_differentiable(kind: str) -> None:
    """Looks whether a gradient can pass; builds nothing.

    Raises:
        ValueError: its class is not a torch module, or cannot be imported.
    """
    from torch import nn

    make = _class_at(kind, path_of(kind))
    if not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise ValueError(
            f"reward {kind!r} cannot be differentiated: {path_of(kind)} is no torch module whose "
            "forward takes images (reward_servers.base.DifferentiableReward)"
        )


def build_reward(kind: str, args: Mapping[str, Any] | None = None) -> RewardModel:
    """The reward model of a kind, with `args` as keyword arguments.

    Raises:
        ValueError: the kind is unknown or cannot be imported, an argument is not one of its
            own or has a wrong value, or what was built has no `score`.
    """
    make = class_of("reward", kind, SHIPPED, args or {})
    try:
        model = make(**(args or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {kind!r} refuses its arguments: {error}") from error
    if not callable(getattr(model, "score", None)):
        raise ValueError(_no_score(kind, type(model)))
    return model


def _no_score(kind: str, found: type) -> str:
    return (
        f"reward {kind!r} is a {found.__name__}, which has no method score(images, prompts); "
        "see reward_servers.base.RewardModel"
    )


def _class_at(kind: str, path: str, what: str = "reward") -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"cannot import {module_name!r} for {what} {kind!r}: {error}; install it in the "
            "environment of the run's processes, or correct the name"
        ) from error
    except Exception as error:
        raise ValueError(
            f"the module {module_name!r} of {what} {kind!r} raises {type(error).__name__} when it "
            f"is imported: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{what} {kind!r}: {module_name!r} has no class {name!r}")
    return found


def _check_args(kind: str, make: Callable[..., Any], args: Mapping[str, Any], what: str) -> None:
    try:
        signature = inspect.signature(make)
    except ValueError:  # some classes written in C have none; making one will complain
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        takes = ", ".join(map(str, signature.parameters.values())) or "no arguments"
        raise ValueError(
            f"{what} {kind!r}: {error}; given {', '.join(args) or 'nothing'}, it takes {takes}"
        ) from error
