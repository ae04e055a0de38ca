"""What is wrong with a config, all of it at once: dotted path, what was given, what is allowed."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

_PASSWORD = re.compile(r"(://[^/@\s]*:)[^/@\s]+@|(password=)[^&\s'\"]+")
_MAX_GIVEN = 60


@dataclass(frozen=True)
class Problem:
    """One thing to mend."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class ConfigError(ValueError):
    """A config that cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        # args hold both parts, so that the exception survives a copy to another process.
        super().__init__(tuple(problems), source)
        self.problems = tuple(problems)
        self.source = source

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        lines = [f"{self.source or 'config'}: {count}", *(f"  - {p}" for p in self.problems)]
        return "\n".join(lines)


def problems_of(errors: Sequence[ErrorDetails], root: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors in our words."""
    # Of a choice between one value and a list, both fail: one of them is enough to be told.
    single = {error["loc"][:-1] for error in errors if error["type"] != "tuple_type"}
    told = [e for e in errors if e["type"] != "tuple_type" or e["loc"][:-1] not in single]
    return [problem for error in told for problem in _problems(error, root)]


def _problems(error: ErrorDetails, root: type[BaseModel]) -> Iterator[Problem]:
    path, parent, annotation = _walk(error["loc"], root)
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        yield from cause.problems
    elif error["type"] == "extra_forbidden":
        yield Problem(path, f"there is no such setting{_suggestion(path, parent, root)}")
    elif error["type"] == "missing":
        yield Problem(path, "is missing and has no default")
    elif error["type"].startswith("union_tag"):
        yield Problem(f"{path}.kind" if path else "kind", _wrong_tag(error, annotation))
    elif isinstance(cause, ValueError):
        yield Problem(path, str(cause))
    else:
        yield Problem(path, f"{_allowed(error)}, given {_given(error['input'])}{_nearest(error)}")


def _walk(
    loc: Sequence[int | str], root: type[BaseModel]
) -> tuple[str, type[BaseModel] | None, Any]:
    """The dotted path that a user would write, the last key's model, and what the key may hold.

    Pydantic's own location also names the branch of a union that it tried.
    """
    keys: list[str] = []
    annotation: Any = root
    parent: type[BaseModel] | None = None
    for part in loc:
        annotation, is_key, parent = _descend(annotation, part, parent)
        if is_key:
            keys.append(str(part))
    return ".".join(keys), parent, annotation


def _descend(
    annotation: Any, part: int | str, parent: type[BaseModel] | None
) -> tuple[Any, bool, type[BaseModel] | None]:
    """One step down: what lies there, whether `part` is a key, and the model it is a key of."""
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return (field.annotation if field else Any), True, annotation
    if get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            if isinstance(option, type) and issubclass(option, BaseModel):
                kind = option.model_fields.get("kind")
                if kind is not None and part in get_args(kind.annotation):
                    return option, False, parent
        return Any, isinstance(part, int), parent
    if get_origin(annotation) is dict:
        return get_args(annotation)[1], True, None
    if get_origin(annotation) is tuple and isinstance(part, int):
        return get_args(annotation)[0], True, None
    return Any, isinstance(part, int), parent


def _plain(annotation: Any) -> Any:
    """Without Annotated and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return _plain(options[0]) if len(options) == 1 else annotation
    return annotation


def _suggestion(path: str, parent: type[BaseModel] | None, root: type[BaseModel]) -> str:
    section, _, key = path.rpartition(".")
    siblings = list(parent.model_fields) if parent else []
    near = difflib.get_close_matches(key, siblings, n=1)
    if near:
        return f"; did you mean {f'{section}.' if section else ''}{near[0]}?"
    # Two kinds of a section share settings.
    names = dict.fromkeys(dotted_names(root))
    elsewhere = [known for known in names if known.rpartition(".")[2] == key]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    return f"; {section or 'the config'} has {', '.join(siblings)}" if siblings else ""


def dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a model and its sections, as overrides name them."""
    for name, field in model.model_fields.items():
        nested = list(nested_models(field.annotation))
        if not nested:
            yield f"{prefix}{name}"
        between = between_of(field.annotation)
        for option in nested:
            yield from dotted_names(option, f"{prefix}{name}{between}")


def between_of(annotation: Any) -> str:
    """What stands between the name of a section, or of several, and that of a setting in it."""
    return {dict: ".<name>.", tuple: "[]."}.get(get_origin(_plain(annotation)), ".")  # pyright: ignore[reportArgumentType, reportCallIssue]


def nested_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation may hold."""
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, dict, tuple):
        for option in get_args(annotation):
            yield from nested_models(option)


def _allowed(error: ErrorDetails) -> str:
    if error["type"] in ("model_type", "dict_type"):
        return "must be a section of settings"
    if error["type"] == "tuple_type":
        return "must be a list"
    if error["type"] == "too_short":
        return "must not be empty"
    text = error["msg"].replace("Input should be", "must be", 1)
    return text[0].lower() + text[1:]


def _wrong_tag(error: ErrorDetails, annotation: Any) -> str:
    given = error.get("ctx", {}).get("tag")
    kinds = [
        repr(kind)
        for section in nested_models(annotation)
        for kind in get_args(section.model_fields["kind"].annotation)
    ]
    text = f"must be {' or '.join(kinds)}"
    return f"{text}, given {given!r}" if given is not None else f"is missing; {text}"


def _nearest(error: ErrorDetails) -> str:
    """'did you mean' for a misspelt choice."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    choices = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(error["input"], choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _given(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section" if value else "nothing"
    text = without_password(repr(value))
    return text if len(text) <= _MAX_GIVEN else f"{text[:_MAX_GIVEN]}..."


def without_password(text: str) -> str:
    """The text with every password of a URL replaced."""
    return _PASSWORD.sub(lambda m: f"{m.group(1)}***@" if m.group(1) else f"{m.group(2)}***", text)
