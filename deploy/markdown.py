"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table; the first row is its head. Empty without rows."""
    if not rows:
        return ""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def cell(value: object) -> str:
    """What a table holds of it: on one line, and without an end of its cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
