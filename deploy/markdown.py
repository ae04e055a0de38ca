"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head. Empty without rows."""
    if not rows:
        return ""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """On one line, and without an end of its cell."""
    return " ".join(text.split("\n")).replace("|", "\\|")
