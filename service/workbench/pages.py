"""Reports as one HTML file each: text, tables, charts and small pictures, nothing fetched from anywhere.

Knows no model and no measure. Colours follow the reader's light or dark setting; charts are SVG in the text's colour.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageOps

_THUMBNAIL = 144  # pixels: enough to see what was confused with what
_CHART = (460, 300)
_MARGIN = 46

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4; --paper: #fff; --tint: 37 99 170;
  --warn: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b0; --line: #343b44; --paper: #14171b;
  --tint: 110 170 240; --warn: #ff8a80 } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
p, figcaption { color: var(--soft); margin: .2rem 0 .8rem; max-width: 46rem }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0 }
dl div { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 600 }
table.matrix td, table.matrix th { padding: .2rem .45rem; text-align: center; border: 1px solid var(--line) }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem } figure { margin: 0 }
svg { width: 460px; max-width: 100%; height: auto; color: var(--ink); font: 11px system-ui, sans-serif }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem }
.shots img, .shots .none { width: 100%; height: 9rem; object-fit: contain; background: rgb(128 128 128 / .12);
  border-radius: .3rem; image-rendering: auto } .shots .small { image-rendering: pixelated }
.shots b { display: block; overflow-wrap: anywhere } .shots small { color: var(--soft); overflow-wrap: anywhere }
.wrong { color: var(--warn) }
"""


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole document. Sections are HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    return f"<h2>{escape(title)}</h2>" + (f"<p>{escape(note)}</p>" if note else "") + "".join(parts)


def figures(pairs: Sequence[tuple[str, str]]) -> str:
    """The few numbers that matter most."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl>{cells}</dl>"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: rows are the truth, columns the prediction, tinted by their share of the row."""
    top = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    lines = []
    for label, row in zip(labels, counts, strict=True):
        total = max(1, sum(row))
        cells = "".join(
            f'<td style="background:rgb(var(--tint) / {0.75 * count / total:.3f})">{count or ""}</td>' for count in row
        )
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return f'<div class="wide"><table class="matrix"><tr><th></th>{top}</tr>{"".join(lines)}</table></div>'


def shot(file: str, title: str, note: str) -> str:
    """A picture with what it is and what it was taken for."""
    return (
        f'<div>{_thumbnail(Path(file))}<b>{escape(title)}</b><span class="wrong">{escape(note)}</span><br>'
        f"<small>{escape(Path(file).name)}</small></div>"
    )


def shots(items: Iterable[str]) -> str:
    return f'<div class="shots">{"".join(items)}</div>'


def _thumbnail(file: Path) -> str:
    try:
        with Image.open(file) as image:
            image.draft("RGB", (_THUMBNAIL * 2, _THUMBNAIL * 2))
            small = ImageOps.exif_transpose(image).convert("RGBA")
    except Exception:  # whatever is wrong with it, the report goes on
        return '<div class="none"></div>'
    tiny = "small" if max(small.size) <= _THUMBNAIL // 2 else ""
    small.thumbnail((_THUMBNAIL * 2, _THUMBNAIL * 2))
    ground = Image.new("RGBA", small.size, "white")
    ground.alpha_composite(small)
    buffer = io.BytesIO()
    kind, options = ("PNG", {}) if tiny else ("JPEG", {"quality": 80})
    ground.convert("RGB").save(buffer, kind, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{tiny}" alt="" src="data:image/{kind.lower()};base64,{data}">'


# Charts


def charts(items: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(items)}</div>'


def bars(title: str, edges: Sequence[float], heights: Sequence[float], x_name: str, y_name: str) -> str:
    """A histogram: `heights[i]` between `edges[i]` and `edges[i + 1]`."""
    plot = Plot((edges[0], edges[-1]), (0.0, max(heights, default=0.0) or 1.0))
    for (begin, end), height in zip(pairwise(edges), heights, strict=True):
        plot.bar(begin, end, height)
    return plot.figure(title, x_name, y_name)


class Plot:
    """One chart with linear axes, drawn mark by mark."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self._x, self._y = x_range, y_range
        self._marks: list[str] = []

    def bar(self, begin: float, end: float, height: float) -> None:
        left, right, top, floor = self._at_x(begin), self._at_x(end), self._at_y(height), self._at_y(self._y[0])
        self._marks.append(
            f'<rect x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 1):.1f}" '
            f'height="{max(0.0, floor - top):.1f}" fill="rgb(var(--tint) / .7)"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], *, dashed: bool = False) -> None:
        path = " ".join(f"{self._at_x(x):.1f},{self._at_y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 4" opacity=".6"' if dashed else ' stroke-width="2"'
        color = "currentColor" if dashed else "rgb(var(--tint))"
        self._marks.append(f'<polyline points="{path}" fill="none" stroke="{color}"{dash}/>')

    def dot(self, x: float, y: float, *, size: float = 3.5, title: str = "", strong: bool = False) -> None:
        fill = "var(--warn)" if strong else "rgb(var(--tint))"
        self._marks.append(
            f'<circle cx="{self._at_x(x):.1f}" cy="{self._at_y(y):.1f}" r="{size:.1f}" fill="{fill}">'
            f"<title>{escape(title)}</title></circle>"
        )

    def figure(self, title: str, x_name: str, y_name: str) -> str:
        width, height = _CHART
        left, bottom = _MARGIN, height - _MARGIN
        axes = f'<path d="M{left} 12V{bottom}H{width - 12}" fill="none" stroke="currentColor" opacity=".5"/>'
        ticks = "".join(self._x_tick(value) for value in _ticks(*self._x))
        ticks += "".join(self._y_tick(value) for value in _ticks(*self._y))
        names = (
            f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle" fill="currentColor">{escape(x_name)}'
            f'</text><text transform="translate(12 {bottom / 2}) rotate(-90)" text-anchor="middle" fill="currentColor">'
            f"{escape(y_name)}</text>"
        )
        return (
            f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{axes}{ticks}{names}'
            f"{''.join(self._marks)}</svg><figcaption>{escape(title)}</figcaption></figure>"
        )

    def _at_x(self, value: float) -> float:
        begin, end = self._x
        return _MARGIN + (value - begin) / (end - begin) * (_CHART[0] - 12 - _MARGIN)

    def _at_y(self, value: float) -> float:
        begin, end = self._y
        return _CHART[1] - _MARGIN - (value - begin) / (end - begin) * (_CHART[1] - 12 - _MARGIN)

    def _x_tick(self, value: float) -> str:
        x, y = self._at_x(value), _CHART[1] - _MARGIN + 14
        return f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="currentColor" opacity=".8">{value:g}</text>'

    def _y_tick(self, value: float) -> str:
        y = self._at_y(value)
        return (
            f'<path d="M{_MARGIN} {y:.1f}H{_CHART[0] - 12}" stroke="currentColor" opacity=".12"/>'
            f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor" opacity=".8">'
            f"{value:g}</text>"
        )


def _ticks(begin: float, end: float) -> list[float]:
    """Four to nine round numbers between the two."""
    step = 10.0 ** len(str(int(max(end - begin, 1e-9) * 1000))) / 1000.0 / 10.0
    while (end - begin) / step < 4:
        step /= 2.0
    while (end - begin) / step > 9:
        step *= 2.0
    first = -(-begin // step) * step
    return [round(first + place * step, 10) for place in range(int((end - first) / step + 1e-9) + 1)]
