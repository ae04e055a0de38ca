"""The pictures of a report: the same prompts and noise over time, a row a prompt."""

import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from deploy.report_data import PICTURES, Pictures, cycle_of
from deploy.report_markup import data_uri, image, quiet

_MAX_BETWEEN = 6
_MAX_ROWS = 32
_ROWS_AT_ONCE = 8
_MAX_SIDE = 192
_PHOTO_SIDE = 96
"""Pixels from which a picture is stored as JPEG: as PNG a page of photos would be too large."""


def picture_grid(pictures: Mapping[str, Pictures], best: int | None = None) -> str:
    """A table with a column a moment, from before to after; the first prompts are open.

    Args:
        best: cycle of the best version, which is among the moments.
    """
    if not pictures:
        return quiet("No pictures were written.")
    shown = {name: pictures[name] for name in moments(list(pictures), best)}
    count = min(_MAX_ROWS, *(len(each.prompts) for each in shown.values()))
    prompts = {each.prompts[:count] for each in shown.values()}
    if len(prompts) > 1:
        return quiet("The pictures before and after are of different prompts.")
    heads = "".join(f"<th>{escape(_title(name))}</th>" for name in shown)
    rows = [_row(prompt, i, shown) for i, prompt in enumerate(prompts.pop())]
    left_out = len(pictures) - len(shown)
    note = f" {left_out} more evaluations have theirs in pictures/." if left_out else ""
    first = quiet(f"A row has one prompt and one noise, a column one moment of training.{note}")
    first += _table(heads, rows[:_ROWS_AT_ONCE])
    if len(rows) <= _ROWS_AT_ONCE:
        return first
    more = f"{len(rows) - _ROWS_AT_ONCE} more prompts"
    rest = _table(heads, rows[_ROWS_AT_ONCE:])
    return f"{first}<details><summary>{more}</summary>{rest}</details>"


def moments(names: Sequence[str], best: int | None = None) -> list[str]:
    """Those to show, in order of time: both ends, and a few evenly spaced between them.

    The nearest of these to the best cycle makes room for it.
    """
    between = sorted(name for name in names if cycle_of(name) is not None)
    places = np.linspace(0, len(between) - 1, min(len(between), _MAX_BETWEEN)).round().astype(int)
    first, last = PICTURES
    known = [cycle_of(name) for name in between]
    if best in known and places.size:
        places[np.abs(places - known.index(best)).argmin()] = known.index(best)
    chosen = [between[place] for place in places.tolist()]
    return [name for name in (first, *chosen, last) if name in names]


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
