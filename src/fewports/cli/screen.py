"""Where a command prints: the terminal, with colours if rich is installed (extra ``cli``), else as plain text."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80  # at most; lines longer than that are hard to read
_SAMPLE = "⣿╌┤└─"  # what pictures are drawn with


class Screen(Protocol):
    """Prints paragraphs, tables, and lines of spans: text, and the name of its colour or an empty string."""

    unicode: bool
    width: int

    def say(self, text: str = "") -> None: ...

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...

    def picture(self, lines: Sequence[Sequence[tuple[str, str]]], colours: Mapping[str, str]) -> None: ...


class Plain:
    """Text without any control sequence."""

    def __init__(self, unicode: bool, width: int) -> None:
        self.unicode, self.width = unicode, width

    def say(self, text: str = "") -> None:
        print(textwrap.fill(text, self.width), flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, ["-" * width for width in widths], *rows):
            first, *rest = (
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join([first, *rest]).rstrip())

    def picture(self, lines: Sequence[Sequence[tuple[str, str]]], colours: Mapping[str, str]) -> None:
        for line in lines:
            print("".join(text for text, _ in line).rstrip())


class Rich:
    """The same by rich, which knows whether the terminal has colours."""

    def __init__(self, console: Console, unicode: bool, width: int) -> None:
        self._console = console
        self.unicode, self.width = unicode, width

    def say(self, text: str = "") -> None:
        self._console.print(textwrap.fill(text, self.width), markup=False, highlight=False)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for number, title in enumerate(head):
            table.add_column(title, justify="right" if number else "left", no_wrap=number == 0)
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def picture(self, lines: Sequence[Sequence[tuple[str, str]]], colours: Mapping[str, str]) -> None:
        from rich.text import Text

        for line in lines:
            parts = [(text, colours.get(name, "")) for text, name in line]
            self._console.print(Text.assemble(*parts), no_wrap=True, crop=False, overflow="ignore")


def screen() -> Screen:
    """Return the screen for the standard output."""
    try:
        _SAMPLE.encode(sys.stdout.encoding or "ascii")
        unicode = True
    except UnicodeEncodeError:
        unicode = False
    width = min(WIDTH, shutil.get_terminal_size().columns)
    try:
        from rich.console import Console
    except ImportError:
        return Plain(unicode, width)
    return Rich(Console(), unicode, width)
