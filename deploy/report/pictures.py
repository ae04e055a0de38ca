"""The pictures of a report: the same prompts and noise over time, a row a prompt."""

import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from deploy.report.data import Pictures
from deploy.report.markup import data_uri, image, quiet
from deploy.run.files import cycle_of

_MAX_ROWS = 32
_ROWS_AT_ONCE = 8
_MAX_SIDE = 192
_PHOTO_SIDE = 96
"""Pixels from which a picture is stored as JPEG: as PNG a page of photos would be too large."""


def picture_grid(
    shown: Mapping[str, Pictures], left_out: int = 0, column: str = "one moment of training"
) -> str:
    """A table with a column a moment, in their order; the first prompts are open.

    Args:
        column: what one is, where it is not a moment.
        left_out: moments that have pictures and no column.
    """
    if not shown:
        return quiet("No pictures were written.")
    count = min(_MAX_ROWS, *(len(each.prompts) for each in shown.values()))
    prompts = {each.prompts[:count] for each in shown.values()}
    if len(prompts) > 1:
        return quiet("The pictures before and after are of different prompts.")
    heads = "".join(f"<th>{escape(_title(name))}</th>" for name in shown)
    rows = [_row(prompt, i, shown) for i, prompt in enumerate(prompts.pop())]
    note = f" {left_out} more evaluations have theirs in pictures/." if left_out else ""
    first = quiet(f"A row has one prompt and one noise, a column {column}.{note}")
    first += _table(heads, rows[:_ROWS_AT_ONCE])
    if len(rows) <= _ROWS_AT_ONCE:
        return first
    more = f"{len(rows) - _ROWS_AT_ONCE} more prompts"
    rest = _table(heads, rows[_ROWS_AT_ONCE:])
    return f"{first}<details><summary>{more}</summary>{rest}</details>"


def _title(name: str) -> str:
    cycle = cycle_of(name)
    return name if cycle is None else f"cycle {cycle}"


def _table(heads: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll"><table class="pictures"><tr><th></th>{heads}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _row(prompt: str, i: int, shown: Mapping[str, Pictures]) -> str:
    cells = "".join(
        f"<td>{_picture(each.images_NHWC[i], _title(name))}</td>" for name, each in shown.items()
    )
    return f"<tr><td>{escape(prompt)}</td>{cells}</tr>"


def _picture(image_HWC: np.ndarray, alt: str) -> str:
    is_photo = max(image_HWC.shape) > _PHOTO_SIDE
    picture = Image.fromarray(image_HWC)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    kind = "jpeg" if is_photo else "png"
    picture.save(buffer, format=kind, quality=88)
    return image(data_uri(buffer.getvalue(), kind), alt, "" if is_photo else "small")
