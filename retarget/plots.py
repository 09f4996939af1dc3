"""Line charts and sheets of pictures as PNG, drawn with OpenCV alone: training machines have no plotting library."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .folders import replace_file

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Line = tuple[Sequence[float], Sequence[float | None]]
"""x and y of a line's points; NaN, infinite or None: a gap."""

PANEL = 380, 270
"""Width and height of a panel with its title and ticks, pixels."""
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 32, 44
"""What a panel keeps free around its axes for title, ticks and the name of x."""
MARGIN = 12
MARKED = 12
"""Lines of so few points show them, and their x are the ticks."""
FINE = 3
"""Drawn so many times larger, then scaled down: that is smoother than OpenCV's own anti-aliasing."""

INK, FAINT, RULE, PAPER = (40, 40, 40), (105, 105, 105), (226, 226, 226), (255, 255, 255)
COLOURS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (110, 70, 160),
)  # fmt: skip
"""Of the lines; told apart by the colour-blind, too (Okabe and Ito 2008, and one more)."""
GREYS = ((90, 90, 90), (160, 160, 160))
"""Of the dashed lines."""


def curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Line]],
    *,
    title: str = "",
    x_label: str = "",
    log_x: bool = False,
    dashed: Collection[str] = (),
) -> None:
    """Write line charts as one PNG, which appears when it is complete.

    Args:
        panels: title of a panel → label of a line → its points. A label has one colour in all panels.
        title, x_label: of the whole, and of each panel's x.
        log_x: x goes by log10(1 + x), so that zero has a place. No x may be negative then.
        dashed: labels of the lines that are baselines: grey and dashed.
    """
    columns = max(1, 2 if len(panels) == 4 else min(len(panels), 3))
    styles = _styles(panels, dashed)
    width = 2 * MARGIN + columns * PANEL[0]
    legend = _legend(styles, width - 2 * MARGIN)
    top = MARGIN + (30 if title else 0) + 22 * len(legend)
    draw = _Canvas(width, top + PANEL[1] * math.ceil(len(panels) / columns) + MARGIN)
    if title:
        draw.text(title, (MARGIN + 4, MARGIN + 18), size=17, bold=True)
    for i, entries in enumerate(legend):
        y = top - 22 * (len(legend) - i) + 10.0
        for label, x in entries:
            draw.path([(MARGIN + x, y - 5), (MARGIN + x + 26, y - 5)], styles[label])
            draw.text(label, (MARGIN + x + 32, y))
    for i, (name, lines) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        _panel(draw, (MARGIN + column * PANEL[0], top + row * PANEL[1]), name, lines, styles, x_label, log_x)
    save_png(path, draw.picture())


def sheet(
    path: Path,
    rows: Sequence[Sequence[Image]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> None:
    """Write pictures as one PNG, which appears when it is complete.

    Args:
        rows: (H, W, 3) uint8 RGB pictures, shown in their own size; rows may be of different lengths.
        columns, labels: what is written above the columns, and before the rows.
    """
    gap = 6
    gutter = max((_width(text) for text in labels), default=0) + (MARGIN if labels else 0)
    heading = 24 if columns else 0
    widths = [_width(text) for text in columns] + [1] * max(0, max(map(len, rows), default=0) - len(columns))
    for row in rows:
        widths = [max(w, p.shape[1]) for w, p in zip(widths, row, strict=False)] + widths[len(row) :]
    heights = [max((p.shape[0] for p in row), default=1) for row in rows]
    lefts = np.cumsum([MARGIN + gutter] + [w + gap for w in widths]).tolist()
    tops = np.cumsum([MARGIN + heading] + [h + gap for h in heights]).tolist()
    draw = _Canvas(lefts[-1] - gap + MARGIN, tops[-1] - gap + MARGIN)
    for text, x, width in zip(columns, lefts, widths, strict=False):
        draw.text(text, (x + width / 2, MARGIN + 13), anchor=0.5)
    for text, y, height in zip(labels, tops, heights, strict=False):
        draw.text(text, (MARGIN, y + height / 2 + 5))
    picture = draw.picture()
    for row, y, height in zip(rows, tops, heights, strict=False):
        for p, x, width in zip(row, lefts, widths, strict=False):
            x0, y0 = x + (width - p.shape[1]) // 2, y + (height - p.shape[0]) // 2
            picture[y0 : y0 + p.shape[0], x0 : x0 + p.shape[1]] = p
    save_png(path, picture)


def save_png(path: Path, picture: Image) -> None:
    """Write an (H, W, 3) uint8 RGB picture; the file appears when it is complete."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"a picture of shape {picture.shape} cannot be a PNG")
    replace_file(path, data.tobytes())


# ------------------------------------------------------------------------------------------------ a chart's parts


@dataclass(frozen=True)
class _Style:
    colour: Colour
    dashed: bool


def _styles(panels: Mapping[str, Mapping[str, Line]], dashed: Collection[str]) -> dict[str, _Style]:
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    full, other = ([n for n in labels if (n in dashed) == grey] for grey in (False, True))
    chosen = {n: _Style(COLOURS[i % len(COLOURS)], False) for i, n in enumerate(full)}
    return chosen | {n: _Style(GREYS[i % len(GREYS)], True) for i, n in enumerate(other)}


def _legend(labels: Collection[str], width: float) -> list[list[tuple[str, float]]]:
    """Rows of labels and where each begins."""
    rows: list[list[tuple[str, float]]] = []
    x = math.inf
    for label in labels:
        need = _width(label) + 54
        if x + need > width:
            rows.append([])
            x = 4.0
        rows[-1].append((label, x))
        x += need
    return rows


def _panel(
    draw: _Canvas,
    at: tuple[int, int],
    name: str,
    lines: Mapping[str, Line],
    styles: Mapping[str, _Style],
    x_label: str,
    log_x: bool,
) -> None:
    x0, x1 = at[0] + LEFT, at[0] + PANEL[0] - RIGHT
    y0, y1 = at[1] + TOP, at[1] + PANEL[1] - BOTTOM
    points = {label: _runs(*line) for label, line in lines.items()}
    xs, ys = (sorted({p[i] for runs in points.values() for run in runs for p in run}) for i in (0, 1))
    draw.text(name, ((x0 + x1) / 2, at[1] + TOP - 9), size=13, anchor=0.5, bold=True)
    draw.text(x_label, ((x0 + x1) / 2, y1 + 34), anchor=0.5, colour=FAINT)
    if not xs:
        draw.text("nothing measured", ((x0 + x1) / 2, (y0 + y1) / 2), anchor=0.5, colour=FAINT)
        draw.path([(x0, y0), (x0, y1), (x1, y1)], _Style(FAINT, False), width=1)
        return

    def scale(x: float) -> float:
        return math.log10(1 + x) if log_x else x

    low, high = _range(ys[0], ys[-1], 0.08)
    left, right = _range(scale(xs[0]), scale(xs[-1]), 0.04 if len(xs) <= MARKED else 0)

    def place(x: float, y: float) -> tuple[float, float]:
        return x0 + (x1 - x0) * (scale(x) - left) / (right - left), y1 - (y1 - y0) * (y - low) / (high - low)

    ticks: Sequence[float]
    for tick in (ticks := round_ticks(low, high)):
        y = place(xs[0], tick)[1]
        draw.path([(x0, y), (x1, y)], _Style(RULE, False), width=1)
        draw.text(_number(tick, ticks), (x0 - 7, y + 4), anchor=1, size=11, colour=FAINT)
    edge = -math.inf
    for tick in (ticks := _x_ticks(xs, log_x)):
        x, text = place(tick, low)[0], _number(tick, ticks)
        draw.path([(x, y1), (x, y1 + 4)], _Style(FAINT, False), width=1)
        if x - _width(text, 11) / 2 > edge:
            draw.text(text, (x, y1 + 17), anchor=0.5, size=11, colour=FAINT)
            edge = x + _width(text, 11) / 2 + 5
    draw.path([(x0, y0), (x0, y1), (x1, y1)], _Style(FAINT, False), width=1)
    # Dashes last: what they cover is seen between them.
    for label, runs in sorted(points.items(), key=lambda item: styles[item[0]].dashed):
        marked = sum(map(len, runs)) <= MARKED and not styles[label].dashed
        for run in runs:
            placed = [place(*p) for p in run]
            draw.path(placed, styles[label])
            for p in placed if marked or len(run) == 1 else ():
                draw.dot(p, styles[label].colour)


def _runs(xs: Sequence[float], ys: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """The pieces of a line between its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is not None and math.isfinite(x) and math.isfinite(y):
            runs[-1].append((float(x), float(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _range(low: float, high: float, margin: float) -> tuple[float, float]:
    """What an axis shows: a little more than its values, and never nothing."""
    extra = margin * (high - low) if high > low else max(abs(low), 1e-6) / 10
    return low - extra, high + extra


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About so many multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _x_ticks(xs: Sequence[float], log_x: bool) -> Sequence[float]:
    if len(xs) <= MARKED:
        return xs
    if not log_x:
        return round_ticks(xs[0], xs[-1])
    return [x for x in (0, *(10**n for n in range(-3, 10))) if xs[0] <= x <= xs[-1]]


def _number(value: float, ticks: Sequence[float]) -> str:
    """A tick's text, with no more digits than its neighbours need."""
    step = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    if max(map(abs, ticks)) >= 10_000 and step >= 100:
        return f"{value / 1000:g}k" if value else "0"
    if step < 1e-5:
        return f"{value:.3g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


# ------------------------------------------------------------------------------------------------ drawing

FONT = cv2.FONT_HERSHEY_SIMPLEX
_PLAIN = str.maketrans("–—−“”„‘’×…→·", '---"""\'\'x.>-')  # OpenCV's letters are ASCII


def _plain(text: str) -> str:
    return text.translate(_PLAIN).encode("ascii", "replace").decode()


def _width(text: str, size: float = 12) -> int:
    """Of a text, in pixels."""
    return math.ceil(cv2.getTextSize(_plain(text), FONT, FINE * size / 30, 1)[0][0] / FINE)


class _Canvas:
    """White paper; coordinates are pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self._paper = np.full((FINE * height, FINE * width, 3), PAPER, np.uint8)

    def picture(self) -> Image:
        return np.asarray(cv2.resize(self._paper, None, fx=1 / FINE, fy=1 / FINE, interpolation=cv2.INTER_AREA))

    def text(
        self, text: str, at: tuple[float, float], *, size: float = 12, anchor: float = 0, colour: Colour = INK,
        bold: bool = False,
    ) -> None:  # fmt: skip
        """`at` is on the base line, at the text's beginning (`anchor` 0), middle (0.5) or end (1)."""
        x, y = round(FINE * (at[0] - anchor * _width(text, size))), round(FINE * at[1])
        scale, thick = FINE * size / 30, FINE + 2 if bold else FINE
        cv2.putText(self._paper, _plain(text), (x, y), FONT, scale, colour, thick, cv2.LINE_AA)

    def path(self, points: Sequence[tuple[float, float]], style: _Style, *, width: float = 2) -> None:
        for piece in _dashes(points) if style.dashed else [points]:
            fine = np.round(np.array(piece) * FINE * 16).astype(np.int32)  # `shift`: 4 bits after the point
            cv2.polylines(self._paper, [fine], False, style.colour, round(FINE * width), cv2.LINE_AA, 4)

    def dot(self, at: tuple[float, float], colour: Colour) -> None:
        x, y = (round(16 * FINE * v) for v in at)
        for radius, fill in ((4.5, PAPER), (3.5, colour)):
            cv2.circle(self._paper, (x, y), round(16 * FINE * radius), fill, -1, cv2.LINE_AA, 4)


def _dashes(points: Sequence[tuple[float, float]], on: float = 7, off: float = 5) -> list[list[tuple[float, float]]]:
    """The pieces of a path that are drawn."""
    corners = np.array(points, float)
    far = np.append(0, np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1)))
    out = []
    for start in np.arange(0, far[-1], on + off):
        s = np.array([start, *far[(far > start) & (far < start + on)], min(start + on, far[-1])])
        out.append(list(zip(np.interp(s, far, corners[:, 0]), np.interp(s, far, corners[:, 1]), strict=True)))
    return out
