"""Curves over time, drawn in characters: braille dots, or plain ASCII. Pure: it prints nothing.

Each curve is labelled where it ends. A line of the picture is a list of spans: text, and what it is, so
that a terminal with colours can use them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Span = tuple[str, str]
LIMIT, AXIS = "limit", "axis"

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode 15, section 21.1: dots of U+2800
_HEADROOM = 1.12  # of the largest value, so that the limit's name fits above its line


class Curve(NamedTuple):
    """Values by time, each of which lasts until the next; the *mark* draws it in ASCII."""

    name: str
    label: str
    mark: str
    points: Sequence[tuple[float, int]]


class Style(NamedTuple):
    """The characters to draw with, and how many dots each has across and down."""

    across: int
    down: int
    limit: str
    side: str
    corner: str
    floor: str


BRAILLE = Style(2, 4, "╌", "┤", "└", "─")
ASCII = Style(1, 1, "-", "|", "+", "-")


class Canvas:
    """Dots in cells; whoever draws last in a cell owns it."""

    def __init__(self, width: int, height: int, style: Style, end: float, top: float) -> None:
        self.width, self.height, self.style = width, height, style
        self._end, self._top = end, top
        self._dots: dict[tuple[int, int], tuple[int, Curve]] = {}

    def column(self, at: float) -> int:
        """Return the column of cells that the time *at* falls in."""
        return min(int(at / self._end * self.width), self.width - 1)

    def row(self, value: float) -> int:
        """Return the row of cells that *value* falls in, 0 at the top."""
        return self._dot(value) // self.style.down

    def draw(self, curve: Curve) -> None:
        times = [at for at, _ in curve.points]
        columns = self.width * self.style.across
        for column in range(columns):
            first, last = self._end * column / columns, self._end * (column + 1) / columns
            start, stop = bisect_right(times, first), bisect_right(times, last)
            values = [number for _, number in curve.points[max(start - 1, 0) : max(stop, 1)]]
            if first > times[-1] or not values:
                return
            for dot in range(self._dot(max(values)), self._dot(min(values)) + 1):
                self._set(column, dot, curve)

    def line(self, row: int, limit_row: int) -> Iterator[Span]:
        for column in range(self.width):
            if found := self._dots.get((column, row)):
                bits, curve = found
                yield (chr(0x2800 + bits) if self.style is BRAILLE else curve.mark), curve.name
            else:
                yield (self.style.limit, LIMIT) if row == limit_row else (" ", "")

    def _dot(self, value: float) -> int:
        """Return how many dots from the top *value* is; what is not 0 is above the floor."""
        dots = self.height * self.style.down
        above = round(value / self._top * (dots - 1))
        return dots - 1 - max(above, 1 if value and self.style is BRAILLE else 0)

    def _set(self, column: int, dot: int, curve: Curve) -> None:
        across, down = self.style.across, self.style.down
        cell = column // across, dot // down
        bits = self._dots[cell][0] if cell in self._dots else 0
        self._dots[cell] = bits | _DOTS[dot % down][column % across], curve


def draw(
    curves: Sequence[Curve], limit: int, limit_label: str, *, width: int, height: int, style: Style
) -> list[list[Span]]:
    """Return the lines of a picture *width* characters wide, with room for *height* rows of curves."""
    end = max((at for curve in curves for at, _ in curve.points), default=1.0) or 1.0
    largest = max([limit, *(number for curve in curves for _, number in curve.points)])
    margin = len(str(largest)) + 1
    beside = max(len(curve.label) for curve in curves) + 1
    canvas = Canvas(width - margin - 1 - beside, height, style, end, largest * _HEADROOM)
    for curve in curves:
        canvas.draw(curve)
    limit_row = canvas.row(limit)
    labels = _labels(curves, canvas)
    ticks = {height - 1: "0", limit_row: str(limit), canvas.row(largest): str(largest)}
    lines = []
    for row in range(height):
        cells = [*canvas.line(row, limit_row), *[(" ", "")] * beside]
        if row == limit_row - 1:
            _write(cells, limit_label, LIMIT, canvas.width - len(limit_label))
        if (ending := labels.get(row)) is not None:
            near = canvas.column(ending.points[-1][0]) + 1
            if not _write(cells, f" {ending.label}", ending.name, near):
                _write(cells, f" {ending.label}", ending.name, canvas.width)
        lines.append(_joined([(f"{ticks.get(row, ''):>{margin - 1}} {style.side}", AXIS), *cells]))
    lines.append([(" " * margin + style.corner + style.floor * canvas.width, AXIS)])
    lines.append([(" " * margin + _times(end, canvas.width), AXIS)])
    return lines


def _labels(curves: Sequence[Curve], canvas: Canvas) -> dict[int, Curve]:
    """Put each label where its curve ends, or above the one that is there."""
    labels: dict[int, Curve] = {}
    for curve in curves:
        row = canvas.row(curve.points[-1][1])
        while row in labels:
            row = row - 1 if row else canvas.height - 1
        labels[row] = curve
    return labels


def _write(cells: list[Span], text: str, name: str, at: int) -> bool:
    """Write *text* into the cells from *at* on, if it fits and no curve is there."""
    place = slice(at, at + len(text))
    if place.stop > len(cells) or at < 0 or any(owner not in ("", LIMIT) for _, owner in cells[place]):
        return False
    cells[place] = [(character, name) for character in text]
    return True


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for text, name in spans:
        if joined and joined[-1][1] == name:
            joined[-1] = joined[-1][0] + text, name
        else:
            joined.append((text, name))
    return joined


def _times(end: float, width: int) -> str:
    text = f"{end:.1f} s"
    return "0 s" + text.rjust(width - 2)
