import errno
import os
import struct

import pytest

from fewports.kernel import netlink
from fewports.kernel.netlink import HEADER, Netlink

ROUTE = 0
GET_ADDRESSES, GET_LINK = 22, 18
ANY = bytes(8)


class Scripted:
    """A socket that answers a request with chunks made from its sequence number."""

    def __init__(self, *answers: list[tuple[int, int, bytes]] | OSError) -> None:
        self.answers = list(answers)
        self.closed = False
        self.sequence = 0

    def send(self, request: bytes) -> None:
        self.sequence = HEADER.unpack_from(request)[3]

    def recv(self, size: int) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return b"".join(
            HEADER.pack(HEADER.size + len(body), kind, flags, self.sequence, 0) + body for kind, flags, body in answer
        )

    def close(self) -> None:
        self.closed = True


ROW, TORN_ROW, DONE = (20, 2, b"row!"), (20, 0x12, b"row!"), (3, 2, struct.pack("=i", 0))


def using(monkeypatch: pytest.MonkeyPatch, *scripts: Scripted) -> Netlink:
    made = iter(scripts)
    monkeypatch.setattr(netlink.socket, "socket", lambda *_: next(made))
    return Netlink(ROUTE)


def rows(parts: list[netlink.Part]) -> int:
    return sum(len(starts) for _, starts in parts)


def test_interrupted_dump_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump marked NLM_F_DUMP_INTR is taken again, on the same socket."""
    script = Scripted([ROW, TORN_ROW], [DONE], [ROW, ROW, ROW, DONE])

    assert rows(using(monkeypatch, script).dump(GET_ADDRESSES, ANY)) == 3
    assert not script.closed


def test_dump_is_not_taken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After five torn dumps, the last one stands."""
    script = Scripted(*[[TORN_ROW, DONE]] * 6)

    assert rows(using(monkeypatch, script).dump(GET_ADDRESSES, ANY)) == 1
    assert len(script.answers) == 1


def test_no_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOBUFS in a dump is tried again on another socket, five times in all."""
    full = OSError(errno.ENOBUFS, "full")
    broken, sound = Scripted(full), Scripted([ROW, DONE])

    assert rows(using(monkeypatch, broken, sound).dump(GET_ADDRESSES, ANY)) == 1
    assert broken.closed
    with pytest.raises(OSError, match="full"):
        using(monkeypatch, *[Scripted(full) for _ in range(5)]).dump(GET_ADDRESSES, ANY)


def test_failed_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump that ends in an error raises it, with its errno."""
    failed = (3, 2, struct.pack("=i", -errno.ENOMEM))

    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)) as caught:
        using(monkeypatch, Scripted([ROW, failed])).dump(GET_ADDRESSES, ANY)
    assert caught.value.errno == errno.ENOMEM


def test_broken_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message shorter than its header is an error, not an endless walk."""
    script = Scripted()
    monkeypatch.setattr(script, "recv", lambda _: bytes(16))

    with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)):
        using(monkeypatch, script).dump(GET_ADDRESSES, ANY)
    assert script.closed


def test_refused_question() -> None:
    """A question that the kernel refuses raises its errno, and the socket serves the next one."""
    routes = Netlink(ROUTE)
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)) as caught:
        routes.ask(GET_LINK, struct.pack("=BxHiII", 0, 0, 2**30, 0, 0))

    assert caught.value.errno == errno.ENODEV
    link = routes._idle[0]
    assert HEADER.unpack_from(routes.ask(GET_LINK, struct.pack("=BxHiII", 0, 0, 1, 0, 0)))[1] == 16  # RTM_NEWLINK
    assert [link] == routes._idle
    routes.reset()


def test_reset_while_in_use() -> None:
    """A socket that was in use at a reset is closed when its caller is done with it."""
    routes = Netlink(ROUTE)
    idle = routes._idle
    link = routes._lend(idle)
    routes.reset()
    routes._take_back(link, idle)

    assert (link.fileno(), routes._idle) == (-1, [])


def test_few_are_kept() -> None:
    """Sockets of a burst of callers are closed again but for four."""
    routes = Netlink(ROUTE)
    idle = routes._idle
    links = [routes._lend(idle) for _ in range(7)]
    for link in links:
        routes._take_back(link, idle)

    assert len([link for link in links if link.fileno() >= 0]) == 4
    routes.reset()
