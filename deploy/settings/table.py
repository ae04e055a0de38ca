"""Every setting of a run as a Markdown table, that of deploy/configs/README.md.

Made from the config's own types, defaults and docstrings; it knows none of the settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.markdown import cell
from deploy.settings.problems import between_of, nested_models
from deploy.settings.run_config import RunConfig


@dataclass(frozen=True)
class _Use:
    """A setting as one kind of a section has it; the kind is empty where there are no others.

    Args:
        only_some: another kind of the section has no such setting.
    """

    kind: str
    types: str
    field: FieldInfo
    only_some: bool = False


def schema_table() -> str:
    """Every setting as a Markdown table, made from the config's own docstrings."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, uses in _settings(RunConfig).items():
        types = ", ".join(dict.fromkeys(use.types for use in uses))
        tells_kinds = name.endswith(".kind") and len(uses) > 1
        if tells_kinds:
            default, uses = "**required**", uses[:1]
        else:
            default = ", ".join(_by_kind(uses, lambda use: _default(use.field), "{1} ({0})"))
        described = _by_kind(
            uses,
            lambda use: cell(use.field.description or ""),
            "*{0}:* {1}",
            always=not tells_kinds and any(use.only_some for use in uses),
        )
        meaning = " ".join(described)
        rows.append(f"| `{name}` | {cell(types)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _by_kind(
    uses: Sequence[_Use], told: Callable[[_Use], str], form: str, *, always: bool = False
) -> list[str]:
    """What all kinds say, once, unless names are to stand there `always`; else what each says."""
    kinds: dict[str, list[str]] = {}
    for use in uses:
        kinds.setdefault(told(use), []).append(use.kind)
    if len(kinds) == 1 and not always:
        return list(kinds)
    return [form.format(", ".join(names), text) for text, names in kinds.items()]


def _settings(model: type[BaseModel], prefix: str = "", kind: str = "") -> dict[str, list[_Use]]:
    """By dotted name, as every kind of a section has it."""
    found: dict[str, list[_Use]] = {}
    for name, field in model.model_fields.items():
        sections = list(nested_models(field.annotation))
        if not sections:
            found[f"{prefix}{name}"] = [_Use(kind, _type_name(field.annotation), field)]
        within: dict[str, list[_Use]] = {}
        kinds = {section: _kind_of(section) or kind for section in sections}
        for section, of_kind in kinds.items():
            place = f"{prefix}{name}{between_of(field.annotation)}"
            for nested, uses in _settings(section, place, of_kind).items():
                within.setdefault(nested, []).extend(uses)
        for nested, uses in within.items():
            some = len({use.kind for use in uses}) < len(set(kinds.values()))
            found[nested] = [replace(use, only_some=some or use.only_some) for use in uses]
    return found


def _kind_of(section: type[BaseModel]) -> str:
    """Empty: it is the only one of its place."""
    own = section.model_fields.get("kind")
    names = get_args(own.annotation) if own is not None else ()
    return str(names[0]) if names else ""


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    arguments = get_args(annotation)
    if not arguments:
        return getattr(annotation, "__name__", str(annotation))
    origin = get_origin(annotation)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if _is_literal(annotation):
        return ", ".join(str(choice) for choice in arguments)
    if hasattr(annotation, "__metadata__"):
        return _type_name(arguments[0])
    return " or ".join(_type_name(argument) for argument in arguments)


def _is_literal(annotation: Any) -> bool:
    return not any(isinstance(a, type) or get_origin(a) for a in get_args(annotation)) and (
        get_origin(annotation) is not Union
    )


def _default(field: FieldInfo) -> str:
    if field.default_factory is dict or field.default == ():
        return "none"
    if field.default_factory is not None:
        return "made at start"
    if field.default is PydanticUndefined:
        return "**required**"
    value = field.default
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_word(value) else value
    return f"`{text:g}`" if isinstance(text, float) else f"`{text}`"


def _is_word(value: object) -> bool:
    return value is None or isinstance(value, bool)
