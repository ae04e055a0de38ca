"""The table of settings: every one of them, once, in rows that Markdown can read."""

import re

from deploy.settings.table import schema_table


def test_the_table_has_one_row_for_every_setting() -> None:
    names = re.findall(r"^\| `([^`]+)`", schema_table(), flags=re.MULTILINE)
    assert (len(names), "method.surrogate.heads" in names) == (len(set(names)), True)


def test_the_table_joins_the_kinds_of_a_section() -> None:
    assert "| `prompts.kind` | file, shapes, jsonl, dataset |" in schema_table()


def test_every_row_of_the_table_has_four_cells() -> None:
    rows = schema_table().strip().splitlines()
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6}
