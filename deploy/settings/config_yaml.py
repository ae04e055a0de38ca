"""A YAML preset, what it extends, and `a.b=value` overrides, as one mapping; knows no schema.

Texts are read by YAML 1.2's rules, because 1.1 turns `1e-4` into a text, `on` into true and a date
into a date. A key that stands twice is an error instead of a silent last-one-wins.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file or override that cannot be read; the text says where."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and no double keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As YAML's own, and an error where a key stands twice or is no word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def read_preset(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; raises YamlError.

    `extends: other.yaml` begins with what another file beside it holds. Sections are joined key by
    key; one that names another `kind` replaces the other's.
    """
    return _extended(path, ())


def _extended(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in before:
        raise YamlError(f"{path}: extends itself, by way of {before[-1].name}")
    value = _read(path)
    base = value.pop("extends", None)
    if base is None:
        return value
    if not isinstance(base, str):
        raise YamlError(f"{path}: extends must name one file, given {base!r}")
    return _joined(_extended(path.parent / base, (*before, path.resolve())), value)


def _joined(base: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" in value and base.get("kind") not in (None, value["kind"]):
        return dict(value)
    both = {
        key: _joined(base[key], item)
        for key, item in value.items()
        if isinstance(item, Mapping) and isinstance(base.get(key), Mapping)
    }
    return {**base, **value, **both}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise YamlError(f"{path}: there is no such file{_presets_beside(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    value = _parse(text, str(path))
    if not isinstance(value, dict):
        raise YamlError(f"{path}: must hold sections such as `model:`, holds {_kind(value)}")
    return value


def with_overrides(
    preset: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The preset with every `a.b=value` set, and what is wrong with those that cannot be."""
    merged: dict[str, Any] = _copy(preset)
    problems: list[str] = []
    for override in overrides:
        try:
            _set(merged, override)
        except YamlError as error:
            problems.append(str(error))
    return merged, problems


def _set(target: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise YamlError(f"override {override!r}: must read section.key=value")
    *sections, last = keys
    for depth, key in enumerate(sections, start=1):
        if not isinstance(target.get(key), dict):
            if target.get(key) is not None:
                place = ".".join(keys[:depth])
                raise YamlError(f"override {override!r}: {place} is a value, not a section")
            target[key] = {}
        target = target[key]
    target[last] = _parse(text, f"override {override!r}")


def _parse(text: str, where: str) -> Any:
    try:
        # Copied here, where an alias inside its own anchor, a value without end, is still caught.
        return _copy(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise YamlError(f"{where}: not valid YAML: an alias stands inside its own anchor") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error)
        raise YamlError(f"{where}{line}: not valid YAML: {reason}") from None
    except ValueError as error:
        raise YamlError(f"{where}: not valid YAML: {error}") from None


def _copy(value: Any) -> Any:
    """Dicts and lists copied all the way down, so that YAML anchors do not share an override."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _presets_beside(path: Path) -> str:
    names = sorted(item.name for item in path.parent.glob("*.yaml"))
    return f"; {path.parent} has {', '.join(names)}" if names else ""
