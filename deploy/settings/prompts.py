"""Where prompts may come from, one frozen model a source.

What is in them is read by `deploy.settings.prompt_sources`.
"""

from typing import Annotated, Literal

from pydantic import Field

from learner.settings.types import Count, Section, Share


class ReadPrompts(Section):
    """What all sources have in common that are read from somewhere."""

    digest: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")
    """Of texts and metadata, in their order: every process refuses to go on with others. null: a
    run notes its own when it begins."""


class FilePrompts(ReadPrompts):
    """Prompts of a text file, one a line."""

    kind: Literal["file"] = "file"
    """Says which source this is; may be left out where `file` is given: a file whose name ends in
    .jsonl is of kind jsonl, any other of kind file."""
    file: str = Field(min_length=1)
    """UTF-8 text file."""


class ShapesPrompts(Section):
    """Prompts drawn from the grammar of the embedded shapes world."""

    kind: Literal["shapes"]
    """Says which source this is."""
    count: Count = 2048
    """How many prompts are drawn."""
    three_share: Share = 0.5
    """Share of prompts that ask for three things instead of two."""
    held_out: bool = False
    """Only prompts with a held-out combination of colour and shape; false: none of them."""


class JsonlPrompts(ReadPrompts):
    """Prompts of a file with one JSON object a line, which rewards see all of."""

    kind: Literal["jsonl"]
    """Says which source this is."""
    file: str = Field(min_length=1)
    """UTF-8 file."""
    column: str = Field(default="prompt", min_length=1)
    """Key of the prompt. All other keys are its metadata, which a reward may ask for."""


class DatasetPrompts(ReadPrompts):
    """Prompts of a dataset that the `datasets` package reads (`pip install -e '.[hub]'`)."""

    kind: Literal["dataset"]
    """Says which source this is."""
    path: str = Field(min_length=1)
    """Id on the hub, a folder, or a file: .parquet, .arrow, .jsonl, .csv."""
    name: str | None = None
    """Which of several configurations of the dataset."""
    split: str = Field(default="train", min_length=1)
    """Which of its splits; a single file has only one."""
    revision: str | None = None
    """Commit or tag on the hub; null: its newest. Where that is another, a run is not resumed."""
    column: str = Field(default="prompt", min_length=1)
    """Column of the prompts."""
    metadata: tuple[str, ...] = ()
    """Columns that a prompt comes with, which a reward may ask for."""


Prompts = Annotated[
    FilePrompts | ShapesPrompts | JsonlPrompts | DatasetPrompts, Field(discriminator="kind")
]


def named_prompts(value: object) -> object:
    """`{file: x}` needs no kind, and a bare text is a file, of the kind that its name says."""
    if isinstance(value, str):
        value = {"file": value}
    if isinstance(value, dict) and "file" in value and "kind" not in value:
        is_jsonl = str(value["file"]).lower().endswith(".jsonl")
        return {"kind": "jsonl" if is_jsonl else "file", **value}
    return value
