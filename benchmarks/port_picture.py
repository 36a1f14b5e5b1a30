"""The README's picture: ports held over time by three clients that do the same. SVG by hand, for light and dark pages.

The data is measured when the picture is made, as in ports.py: the kernel's own count every 10 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import port_clients

from fewports.cli.trial import clients
from fewports.cli.trial.run import Outcome, run
from fewports.cli.trial.work import Work

PORTS = 200
PAUSE = 0.02  # seconds for an answer: all of a burst is under way at once
WORK = Work(20, 20, bursts=30, every=1.0)

# What it is called in the picture, and what a trial calls.
SHOWN = (
    ("requests.get", clients.requests_get),
    ("requests.Session", port_clients.session),
    ("fewports", port_clients.fewports_session),
)


class Theme(NamedTuple):
    """Colours. Those of the curves are told apart by colour-blind people too (after Okabe and Ito)."""

    name: str
    ink: str
    faint: str
    grid: str
    lost: str
    curves: tuple[str, str, str]


THEMES = (
    Theme("light", "#1f2328", "#59636e", "#d1d9e0", "#e6eaef", ("#d55e00", "#a3508c", "#0072b2")),
    Theme("dark", "#f0f6fc", "#9198a1", "#3d444d", "#2a313c", ("#ff9152", "#e39bcb", "#58b0f0")),
)

WIDTH, HEIGHT = 800, 476
LEFT, RIGHT, TOP, BOTTOM = 152, 706, 108, 320  # the plot
STRIP, ROW, BAR = 388, 30, 18  # the bars below: where they start, from one row to the next, their height
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"


def write(directory: Path) -> None:
    """Measure, and write ports-light.svg and ports-dark.svg."""
    outcomes = measure(WORK)
    directory.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        path = directory / f"ports-{theme.name}.svg"
        path.write_text(draw(outcomes, WORK, theme), encoding="utf-8")
        print(path)


def measure(work: Work) -> list[Outcome]:
    """Have the three do *work* at the same time, each in a namespace of its own."""

    def trial(number: int) -> Outcome:
        client = SHOWN[number][1]
        name = f"{client.__module__}:{client.__name__}"
        return run(name, work, ports=PORTS, isolated=True, pause=PAUSE)

    with ThreadPoolExecutor(len(SHOWN)) as pool:
        return list(pool.map(trial, range(len(SHOWN))))


def draw(outcomes: Sequence[Outcome], work: Work, theme: Theme) -> str:
    """Return the picture."""
    length = work.bursts * work.every
    total = work.requests * work.bursts
    parts = [
        *_heading(work, theme),
        *_axes(length, theme),
        *_limit(theme),
        *(_curve(outcome, length, colour) for outcome, colour in zip(outcomes, theme.curves, strict=True)),
        *_labels(outcomes, work, theme),
        _text(LEFT, STRIP - 16, f"Answered, of the {work.requests} requests of each burst", theme.faint, size=13),
    ]
    for number, (outcome, colour) in enumerate(zip(outcomes, theme.curves, strict=True)):
        y = STRIP + number * ROW
        parts.append(_text(LEFT - 12, y + BAR - 4, SHOWN[number][0], colour, "end", weight=600))
        parts.extend(_bars(outcome, work, y, colour, theme))
        parts.append(_text(RIGHT + 12, y + BAR - 4, f"{outcome.done} of {total}", theme.ink))
    said = ", ".join(
        f"{name}: at most {outcome.peak} ports, {outcome.done} of {total} requests answered"
        for (name, _), outcome in zip(SHOWN, outcomes, strict=True)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" role="img" font-family="{FONT}">',
            f"<title>Local ports held over time, of {PORTS}: {escape(said)}</title>",
            *parts,
            "</svg>",
            "",
        ]
    )


def _heading(work: Work, theme: Theme) -> Iterator[str]:
    yield _text(16, 32, "Local ports held by a client towards one server", theme.ink, size=20, weight=650)
    about = (
        f"{work.requests} requests at once, every second, where there are {PORTS} local ports. Counted by the Linux "
        "kernel."
    )
    yield _text(16, 56, about, theme.faint, size=14)


def _axes(length: float, theme: Theme) -> Iterator[str]:
    for value in range(0, PORTS, 50):
        y = _y(value)
        yield f'<path d="M{LEFT} {y}H{RIGHT}" stroke="{theme.grid}"/>'
        yield _text(LEFT - 12, y + 5, str(value), theme.faint, "end")
    step = 5 if length >= 15 else 1
    for second in range(0, int(length) + 1, step):
        x = _x(second, length)
        yield f'<path d="M{x} {BOTTOM}v5" stroke="{theme.faint}"/>'
        yield _text(x, BOTTOM + 21, f"{second} s" if second else "0", theme.faint, "middle")


def _limit(theme: Theme) -> Iterator[str]:
    y = _y(PORTS)
    yield f'<path d="M{LEFT} {y}H{RIGHT}" stroke="{theme.ink}" stroke-width="1.5" stroke-dasharray="5 4"/>'
    yield _text(LEFT - 12, y + 5, f"all {PORTS} ports", theme.ink, "end", weight=600)
    for line, text in enumerate(("A port that the client closed", "stays taken for 60 s (TIME_WAIT).")):
        yield _text(RIGHT, y + 24 + 18 * line, text, theme.faint, "end", size=13)


def _curve(outcome: Outcome, length: float, colour: str) -> str:
    """Draw steps: a count lasts until the next one."""
    path = f"M{LEFT} {BOTTOM}"
    for at, number in outcome.series:
        if at > length:
            break
        path += f"H{_x(at, length)}V{_y(number)}"
    return f'<path d="{path}H{RIGHT}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-linejoin="round"/>'


def _labels(outcomes: Sequence[Outcome], work: Work, theme: Theme) -> Iterator[str]:
    """Say of each curve whose it is: where it reaches the limit, or above its end."""
    length = work.bursts * work.every
    anchor = "end"  # the first label stands before its point, a second one behind
    for (name, _), outcome, colour in zip(SHOWN, outcomes, theme.curves, strict=True):
        lost = next((at for at, _, failed in outcome.bursts if failed), None)
        if lost is None:
            text = f"{name}: {outcome.peak} ports, used again and again"
            yield _text(RIGHT, _y(outcome.peak or 0) - 10, text, colour, "end", size=15, weight=600)
        else:
            x, y = _x(lost, length), _y(PORTS)
            yield f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>'
            yield _text(x, y - 14, f"{name} is out of ports", colour, anchor, size=15, weight=600)
            anchor = "start"


def _bars(outcome: Outcome, work: Work, y: int, colour: str, theme: Theme) -> Iterator[str]:
    """Draw a bar for each burst, filled as far as its requests were answered."""
    length = work.bursts * work.every
    slot = (RIGHT - LEFT) / work.bursts
    for number, (_, done, _) in enumerate(outcome.bursts):
        x, width = round(_x(number * work.every, length) + slot * 0.12, 1), round(slot * 0.76, 1)
        filled = round(BAR * done / work.requests, 1)
        yield f'<rect x="{x}" y="{y}" width="{width}" height="{BAR}" rx="2" fill="{theme.lost}"/>'
        if filled:
            top = round(y + BAR - filled, 1)
            yield f'<rect x="{x}" y="{top}" width="{width}" height="{filled}" rx="2" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, colour: str, anchor: str = "start", *, size: int = 14, weight: int = 400
) -> str:
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _x(at: float, length: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * at / length, 1)


def _y(number: int) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * number / PORTS, 1)
