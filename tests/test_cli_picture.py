"""What the commands draw: curves and tables, with and without colours, braille and rich."""

from __future__ import annotations

import sys

import pytest

from fewports.cli import picture, screen


def text(lines: list[list[picture.Span]]) -> list[str]:
    return ["".join(part for part, _ in line).rstrip() for line in lines]


class TestPicture:
    NAIVE = picture.Curve("naive", "naive: 20", "#", [(0.0, 0), (0.5, 20), (1.0, 20)])
    OURS = picture.Curve("ours", "ours: 2", "o", [(0.0, 2), (1.0, 2)])

    def test_ascii(self) -> None:
        """Curves are steps with their names at the end, and the limit is a line with its name above."""
        lines = picture.draw([self.NAIVE, self.OURS], 20, "limit", width=37, height=6, style=picture.ASCII)

        assert text(lines) == [
            "   |                  limit",
            "20 |-----------############ naive: 20",
            "   |           #",
            "   |           #",
            "   |           #",
            " 0 |ooooooooooooooooooooooo ours: 2",
            "   +-----------------------",
            "   0 s                1.0 s",
        ]
        assert {len("".join(part for part, _ in line)) for line in lines[:6]} == {37}

    def test_braille(self) -> None:
        """Each cell has eight dots: a value just above zero is above the floor."""
        lines = picture.draw([self.OURS], 2000, "limit", width=30, height=4, style=picture.BRAILLE)

        assert "\u2824" in text(lines)[3]  # the second dots from below; the lowest are U+28C0
        assert "╌" in text(lines)[0]

    def test_limit_below_the_curve(self) -> None:
        """A limit that is passed is drawn where it is; the axis tells both numbers."""
        lines = text(picture.draw([self.NAIVE], 5, "limit", width=37, height=8, style=picture.ASCII))
        ticks = [line.split("|")[0].strip() for line in lines[:8]]

        assert [tick for tick in ticks if tick] == ["20", "5", "0"]

    def test_labels_do_not_cover_each_other(self) -> None:
        """Two curves that end alike have their names one above the other."""
        other = self.OURS._replace(name="other", label="other: 2")
        lines = text(picture.draw([self.OURS, other], 20, "limit", width=37, height=6, style=picture.ASCII))

        assert [line.split()[-2:] for line in lines[4:6]] == [["other:", "2"], ["ours:", "2"]]


class TestScreen:
    def test_without_rich(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Plain text has columns of equal width and nothing at the ends of lines."""
        monkeypatch.setitem(sys.modules, "rich.console", None)
        out = screen.screen()
        out.table(("client", "done"), [("a", "1,000"), ("longer name", "2")])
        out.picture([[("ab", "red"), ("  ", "")]], {"red": "bright_red"})

        assert isinstance(out, screen.Plain)
        assert capsys.readouterr().out.split("\n")[:5] == [
            "client        done",
            "-----------  -----",
            "a            1,000",
            "longer name      2",
            "ab",
        ]

    def test_with_rich(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """On a terminal rich adds colours; what looks like its markup is text."""
        pytest.importorskip("rich")
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        out = screen.screen()
        out.say("[Errno 99] [bold]no markup[/bold]")
        out.picture([[("ab", "curve"), ("cd", "")]], {"curve": "red"})

        assert isinstance(out, screen.Rich)
        assert capsys.readouterr().out.split("\n")[:2] == ["[Errno 99] [bold]no markup[/bold]", "\033[31mab\033[0mcd"]

    def test_width_of_the_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines are as wide as the terminal, and never wider than 80."""
        widths = []
        for columns in ("60", "200"):
            monkeypatch.setenv("COLUMNS", columns)
            widths.append(screen.screen().width)

        assert widths == [60, 80]
