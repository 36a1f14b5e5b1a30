from pathlib import Path

import pytest

from fewports.address import Destination, Flow
from fewports.kernel import procnet


def test_wide_line() -> None:
    """A line is read by its fields: past the 9,999th row and with a long uid, columns shift."""
    line = (
        "123456: 0100007F:9C40 0200007F:01BB 01 00000000:00000000 00:00000000 00000000 4294967294        0 12345678 1"
    )
    narrow = "   1: 0100007F:9C40 0200007F:01BB 01 00000000:00000000 00:00000000 00000000     7        0 12345678 1"

    flow = Flow("127.0.0.1", 40000, Destination("127.0.0.2", 443))
    assert procnet.Line(1, flow, None, 12345678, 4294967294) == procnet.parse(line)
    assert procnet.Line(1, flow, None, 12345678, 7) == procnet.parse(narrow)


@pytest.mark.parametrize(
    ("state", "timer", "inode", "remaining"),
    [
        ("06", 3, 0, 30.0),
        ("05", 3, 0, 30.0),
        ("05", 2, 0, 30.0),
        ("05", 2, 77, None),
        ("01", 2, 77, None),
        ("04", 1, 0, None),
    ],
)
def test_timer(state: str, timer: int, inode: int, remaining: float | None) -> None:
    """TIME_WAIT's timer frees the port, in ticks of 10 ms, and an orphan's in FIN_WAIT2; keepalive's does not."""
    line = f"   1: 0100007F:9C40 0200007F:01BB {state} 00000000:00000000 0{timer}:00000BB8 00000000  0  0 {inode} 3 0"

    assert remaining == procnet.parse(line).remaining


def test_ipv6_words() -> None:
    """An IPv6 address is four words in this machine's order; an IPv4-mapped one is reported as IPv4."""
    plain = "B80D0120000000000000000001000000:9C40"
    mapped = "0000000000000000FFFF00000100007F:01BB"
    line = f"   1: {plain} {mapped} 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0"

    assert Flow("2001:db8::1", 40000, Destination("127.0.0.1", 443)) == procnet.parse(line).flow


def test_a_line_that_comes_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A connection of which a page repeats the line is one; listeners of one address and port are several."""
    one = "1: 0100007F:9C40 0200007F:01BB 05 00000000:00000000 03:00000BB8 00000000 0 0 0 3 0\n"
    two = "2: 0100007F:9C41 0200007F:01BB 01 00000000:00000000 00:00000000 00000000 0 0 7 1 0\n"
    listening = "3: 0200007F:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 8 1 0\n"
    (tmp_path / "tcp").write_text("the headings\n" + one + listening * 2 + two + one)
    monkeypatch.setattr(procnet, "TABLES", (str(tmp_path / "tcp"), str(tmp_path / "tcp6")))

    assert [(line.state, line.flow.port) for line in procnet.lines()] == [(5, 40000), (10, 443), (10, 443), (1, 40001)]
