"""Prompts of a dataset that the `datasets` package reads: of the hub, a folder or a file.

The package is the extra `hub`. A ticket's prompt is decided by the order of the rows, so a dataset
of the hub should be named with its revision: another one may hold others.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors.prompt_sets import PromptSet, Row, set_of

_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".csv": "csv"}


def load_dataset_prompts(
    path: str,
    *,
    split: str = "train",
    column: str = "prompt",
    metadata: Sequence[str] = (),
    name: str | None = None,
    revision: str | None = None,
) -> PromptSet:
    """The prompts of one column, in the order of the rows.

    Args:
        path: id on the hub, a folder of files or of `save_to_disk`, or one file: .parquet,
            .arrow, .jsonl, .csv.
        metadata: columns that a prompt comes with.
        name: of one of several configurations.

    Raises:
        ValueError: the package is missing, the dataset cannot be read, a column is missing, or
            `set_of` refuses what is in it.
    """
    found = find_spec("datasets")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise ValueError(
            "prompts of kind dataset need the package datasets, which is not installed here: "
            "pip install -e '.[hub]'"
        )
    table = _read(path, split, name, revision)
    wanted = list(dict.fromkeys([column, *metadata]))
    if missing := [each for each in wanted if each not in table.column_names]:
        raise ValueError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(table.column_names)}"
        )
    return set_of(path, _rows(table.select_columns(wanted), column, metadata))


def _rows(table: Any, column: str, metadata: Sequence[str]) -> Iterator[Row]:
    for number, row in enumerate(table):
        yield Row(f"row {number}", row[column], {name: row[name] for name in metadata})


def _read(path: str, split: str, name: str | None, revision: str | None) -> Any:
    import datasets  # pyright: ignore[reportMissingImports]

    local = Path(path)
    try:
        if (local / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)[split]
        if (local / "state.json").is_file():
            return datasets.load_from_disk(path)
        if local.is_file():
            return datasets.load_dataset(_format_of(local), data_files=path, split="train")
        return datasets.load_dataset(path, name, split=split, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"cannot read the split {split!r} of {path}: {type(error).__name__}: {error}"
        ) from error
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _format_of(file: Path) -> str:
    if file.suffix not in _FORMATS:
        raise ValueError(f"its name must end in {', '.join(_FORMATS)}")
    return _FORMATS[file.suffix]
