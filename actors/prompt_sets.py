"""A prompt set: texts, and what each of them comes with.

    file      a text file, one prompt a line     comes with nothing
    jsonl     one JSON object a line             every key but the prompt's
    dataset   `actors.dataset_prompts`           the columns that are named

What a prompt comes with, its metadata, is found by its text: the text is in every record and every
batch, so nothing more has to travel, and a record that is scored again, after a failure or a
restart, finds the same. Hence a text that is there twice must come with the same both times.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from buffer.records import MAX_PROMPT_BYTES

_MOST_TOLD = 3


class Metadata(dict[str, Any]):
    """What a prompt comes with: as JSON has it, to be read and not changed.

    `json.dumps` takes it, as it is a dict. Lists in it are tuples, mappings again of this class.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__({key: _frozen(value) for key, value in (values or {}).items()})

    def __reduce__(self) -> tuple[type["Metadata"], tuple[dict[str, Any]]]:
        return Metadata, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a prompt's metadata is read-only; copy it by dict(metadata)")

    __setitem__ = __delitem__ = __ior__ = _refuse  # pyright: ignore[reportAssignmentType]
    update = setdefault = pop = popitem = clear = _refuse  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True)
class Row:
    """One prompt as it was found; `where` names it to a person, such as `line 3`."""

    where: str
    prompt: object
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class PromptSet:
    """N prompts in the order of their source, and what each comes with."""

    prompts: tuple[str, ...]
    metadata: tuple[Metadata, ...]

    @property
    def table(self) -> dict[str, Metadata]:
        """What a prompt comes with, by its text."""
        return dict(zip(self.prompts, self.metadata, strict=True))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that another order, text or metadata changes."""
        told = zip(self.prompts, self.metadata, strict=True)
        lines = (json.dumps(each, sort_keys=True, ensure_ascii=False) for each in told)
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()

    @property
    def repeated(self) -> int:
        """Prompts that are there once more."""
        return len(self.prompts) - len(set(self.prompts))


def plain_set(prompts: Sequence[str]) -> PromptSet:
    """Of prompts that come with nothing."""
    return PromptSet(tuple(prompts), (Metadata(),) * len(prompts))


def load_text(path: Path | str) -> PromptSet:
    """The prompts of a text file, one a line; blank lines are passed over.

    Raises:
        ValueError: no such file, not UTF-8, or `set_of` refuses what is in it; says which lines.
    """
    lines = enumerate(_read_text(path, "one prompt a line").split("\n"), 1)
    return set_of(str(path), [Row(f"line {n}", line, {}) for n, line in lines if line.strip()])


def load_jsonl(path: Path | str, column: str = "prompt") -> PromptSet:
    """The prompts of a JSONL file: one object a line; blank lines are passed over.

    Args:
        column: key of the prompt; all others are its metadata.

    Raises:
        ValueError: no such file, not UTF-8, or `set_of` refuses what is in it; says which lines.
    """
    path = Path(path)
    rows, problems = [], []
    for number, line in enumerate(_read_text(path, "one JSON object a line").split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is no JSON ({error.msg} at column {error.colno})")
            continue
        except ValueError as error:
            problems.append(f"line {number} is no JSON ({error})")
            continue
        if not isinstance(value, dict):
            problems.append(f"line {number} is no object but {_shortened(value)}")
        elif column not in value:
            held = ", ".join(value) or "no key"
            problems.append(f"line {number} has no key {column!r}; it has {held}")
        else:
            rows.append(Row(f"line {number}", value.pop(column), value))
    return set_of(str(path), rows, problems)


def set_of(source: str, rows: Iterable[Row], problems: Sequence[str] = ()) -> PromptSet:
    """The prompts of rows, without the white space around them.

    Args:
        source: named in errors.
        problems: found before; told with the others.

    Raises:
        ValueError: there is none, or a prompt is empty, no text, too long, or there twice with
            other metadata, or metadata that JSON cannot hold.
    """
    told = list(problems)
    found: dict[str, tuple[str, Metadata]] = {}
    prompts: list[str] = []
    for row in rows:
        problem = _problem(row)
        if problem is None:
            assert isinstance(row.prompt, str)
            prompt, metadata = row.prompt.strip(), Metadata(row.metadata)
            where, known = found.setdefault(prompt, (row.where, metadata))
            if known == metadata:
                prompts.append(prompt)
                continue
            problem = (
                f"{row.where} has the prompt of {where}, {_shortened(prompt)}, with other metadata"
            )
        told.append(problem)
    if told:
        more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        raise ValueError(f"{source}: {'; '.join(told[:_MOST_TOLD])}{more}")
    if not prompts:
        raise ValueError(f"{source} holds no prompt")
    return PromptSet(tuple(prompts), tuple(found[prompt][1] for prompt in prompts))


def _problem(row: Row) -> str | None:
    if not isinstance(row.prompt, str):
        return f"the prompt of {row.where} is no text but {_shortened(row.prompt)}"
    if not row.prompt.strip():
        return f"the prompt of {row.where} is empty"
    try:
        size_bytes = len(row.prompt.strip().encode())
        json.dumps(row.metadata, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:  # half a surrogate pair is a ValueError too
        return f"{row.where} holds what is no JSON or no Unicode ({error})"
    if size_bytes > MAX_PROMPT_BYTES:
        return f"the prompt of {row.where} has {size_bytes} bytes; {MAX_PROMPT_BYTES} are allowed"
    return None


def _read_text(path: Path | str, holds: str) -> str:
    """A UTF-8 file whose lines end in a line feed, whatever they ended in.

    Args:
        holds: what should be in it, for errors.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(
            f"cannot read the prompts in {path} ({error.strerror}); name a text file with {holds}"
        ) from error
    # str.splitlines would also cut at form feeds and Unicode separators inside a prompt.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Metadata(value)
    if isinstance(value, list | tuple):
        return tuple(_frozen(each) for each in value)
    return value


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
