"""The pieces of HTML that a report is put together from; every text is escaped here.

Pictures are data URIs, so the page needs no other file.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { --ink: #1c2330; --quiet: #667085; --line: #e3e6ec; --soft: #f6f7f9; --accent: #2f5fb3; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem;
       padding: 0 1.2rem; color: var(--ink); background: #fff; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; letter-spacing: -.01em; }
h2 { margin: 3rem 0 .8rem; padding-bottom: .3rem; font-size: 1.2rem;
     border-bottom: 1px solid var(--line); }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem; }
p { max-width: 60rem; }
.quiet { color: var(--quiet); }
.badge { display: inline-block; padding: .05rem .6rem; margin-right: .4rem; border-radius: 1rem;
         background: #e8eefa; color: var(--accent); font-size: 13px; }
.badge.bad { background: #fdeaea; color: #a52a2a; }
.badge.good { background: #e6f4ea; color: #226b3a; }
.missing { background: #fff6e6; border-left: 4px solid #e8a33d; padding: .6rem 1rem; }
.scroll { overflow-x: auto; }
.scroll td:first-child { min-width: 7rem; overflow-wrap: normal; }
table { border-collapse: collapse; }
td, th { padding: .28rem 1.1rem .28rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; font-size: 13px; color: var(--quiet); }
tr + tr > td { border-top: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts td:first-child { min-width: 7.5rem; }
.charts { display: grid; gap: .6rem 1rem; align-items: start;
          grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
.charts img, img.wide { width: 100%; display: block; }
img.wide { max-width: 56rem; }
.pictures td, .pictures th { padding: .2rem .4rem .2rem 0; border: 0; text-align: center; }
.pictures tr > :first-child { text-align: left; font-weight: 400; font-size: 13px;
          min-width: 8rem; max-width: 15rem; color: var(--ink); vertical-align: middle; }
.pictures img { width: 6.5rem; display: block; border-radius: 4px; }
.pictures img.small { image-rendering: pixelated; }
details > summary { cursor: pointer; color: var(--accent); margin: .5rem 0; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 13px;
      border-radius: 6px; }
@media (max-width: 40rem) { body { margin: 1rem auto; } td, th { padding-right: .7rem; }
          .pictures img { width: 4.6rem; } }
"""


def page(title: str, body: str) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – fleetune</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def quiet(text: str) -> str:
    """A paragraph beside the point."""
    return f'<p class="quiet">{escape(text)}</p>'


def badge(text: str, kind: str = "") -> str:
    """A word in a coloured field; `kind` is good, bad or neither."""
    return f'<span class="badge {kind}">{escape(text)}</span>'


def image(uri: str, alt: str, css: str = "") -> str:
    """A picture that lies in the page."""
    of_class = f' class="{css}"' if css else ""
    return f'<img src="{uri}" alt="{escape(alt)}"{of_class}>'


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture's bytes as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def number(value: float | None, sign: str = "") -> str:
    """Four decimals, or four digits of a large or tiny one; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    small = 0 < abs(value) < 1e-3
    return f"{value:{sign}.4g}" if small or abs(value) >= 1e4 else f"{value:{sign}.4f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """A table of texts.

    Args:
        numbers: columns that are aligned as numbers.
    """

    css = ' class="number"'

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{css if i in numbers else ''}>{escape(text)}</{tag}>"
            for i, text in enumerate(texts)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", heads)}</tr>{body}</table></div>'


def facts(texts: Mapping[str, str]) -> str:
    """Names and what they are, in two columns."""
    rows = "".join(
        f'<tr><td class="quiet">{escape(name)}</td><td>{escape(text)}</td></tr>'
        for name, text in texts.items()
    )
    return f'<table class="facts">{rows}</table>'


def texts_of(value: object, without: Sequence[str] = ()) -> dict[str, str]:
    """A mapping as texts to show; anything else is nothing."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(key): item if isinstance(item, str) else json.dumps(item, default=str)
        for key, item in value.items()
        if key not in without
    }
