import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from kernel_ns import connection, dial, end_of, flow_of, in_namespace, listen, unanswered

from fewports.address import Destination, Flow
from fewports.kernel import diag, facts
from fewports.kernel.diag import Row, State

ADDRESSES = pytest.mark.parametrize("address", ["127.0.0.1", "::1"])


@pytest.fixture(params=["netlink", "proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ask by netlink, or by /proc as where netlink is refused."""
    if request.param == "proc":
        monkeypatch.setattr(diag, "netlink_granted", lambda: False)
    return str(request.param)


def found(flow: Flow) -> Row:
    """Return the row of *flow*, which look_up, rows and count must agree on."""
    row = diag.look_up(flow)
    assert row is not None
    same = [each for each in diag.rows(source=flow.source, destination=flow.destination) if each.flow == flow]
    assert [row._replace(remaining=None)] == [each._replace(remaining=None) for each in same]
    assert diag.count(source=flow.source, destination=flow.destination, states=diag.mask(row.state)) == 1
    return row


@contextlib.contextmanager
def time_wait(address: str) -> Iterator[Flow]:
    with connection(address) as (client, server, flow):
        client.close()
        server.close()
        yield flow


@ADDRESSES
@pytest.mark.usefixtures("way")
def test_established(address: str) -> None:
    """An open connection has its owner: the inode of the socket and the uid."""
    with connection(address) as (client, _, flow):
        row = found(flow)

        assert Row(State.ESTABLISHED, flow, None, os.fstat(client.fileno()).st_ino, os.getuid()) == row


@ADDRESSES
@pytest.mark.usefixtures("way")
def test_time_wait(address: str) -> None:
    """A connection that we closed first is in TIME_WAIT, without owner, with some 60 s to go."""
    with time_wait(address) as flow:
        row = found(flow)

        assert (row.state, row.inode, row.uid) == (State.TIME_WAIT, 0, 0)
        assert row.remaining is not None
        assert 55 < row.remaining <= 60.1


@ADDRESSES
@pytest.mark.usefixtures("way")
def test_fin_wait2(address: str) -> None:
    """A connection that we closed and the peer did not is in FIN_WAIT2, with a timer of its own."""
    with connection(address) as (client, _, flow):
        client.close()
        while diag.count(destination=flow.destination, states=diag.mask(State.FIN_WAIT1)):
            time.sleep(0.005)  # the server's kernel delays its ACK by up to 40 ms
        row = found(flow)

        assert row.state == State.FIN_WAIT2
        assert row.remaining is not None
        assert 0 < row.remaining < 61


def test_long_fin_timeout() -> None:
    """What tcp_fin_timeout exceeds 60 s by is waited for on the socket's own timer, and is reported as well."""
    remaining = in_namespace(
        """
        from fewports.kernel import diag
        with connection("127.0.0.1") as (client, _, flow):
            client.close()
            while diag.look_up(flow).state is diag.State.FIN_WAIT1: time.sleep(0.005)
            fast = diag.look_up(flow).remaining
            diag.netlink_granted = lambda: False
            answer([fast, diag.look_up(flow).remaining])
        """,
        sysctls={"tcp_fin_timeout": 70},
    )

    assert remaining == pytest.approx([10, 10], abs=1)


@ADDRESSES
@pytest.mark.usefixtures("way")
def test_syn_sent(address: str) -> None:
    """A connection being dialled holds its port: it is listed in SYN_SENT."""
    with unanswered(address) as flow:
        assert found(flow).state == State.SYN_SENT


@ADDRESSES
@pytest.mark.usefixtures("way")
def test_listener_is_no_flow(address: str) -> None:
    """The kernel falls back on a listener when no connection has the 4-tuple; that is not one."""
    with listen(address) as listener:
        free = Flow(address, end_of(listener).port, Destination(address, 9))

        assert diag.look_up(free) is None
        listening = diag.rows(source=address, states=diag.mask(State.LISTEN))
        assert end_of(listener).port in {row.flow.port for row in listening}


@pytest.mark.usefixtures("way")
def test_filters() -> None:
    """Source, destination (address and port) and states each narrow the list; all three at once too."""
    with listen("127.0.0.1") as one, listen("127.0.0.1") as other:
        first, second, third = end_of(one), end_of(one), end_of(other)
        with (
            dial(first) as a,
            dial(second, source="127.0.0.8") as b,
            dial(third, source="127.0.0.8") as c,
        ):
            flows = [flow_of(client) for client in (a, b, c)]

            assert set(flows[:2]) == {row.flow for row in diag.rows(destination=first)}
            assert set(flows[1:]) == {row.flow for row in diag.rows(source="127.0.0.8")}
            assert flows[1:2] == [row.flow for row in diag.rows(source="127.0.0.8", destination=first)]
            assert diag.count(source="127.0.0.8", destination=first, states=diag.mask(State.TIME_WAIT)) == 0
            assert diag.count(source="::1", destination=first) == 0
            assert set(flows) <= {row.flow for row in diag.rows()}


@pytest.mark.usefixtures("way")
def test_mapped_is_ipv4() -> None:
    """A connection of a dual-stack socket is an IPv4 flow, asked for in either form."""
    with listen("127.0.0.1") as listener, socket.socket(socket.AF_INET6) as client:
        port = end_of(listener).port
        client.connect(("::ffff:127.0.0.1", port))
        plain = Destination("127.0.0.1", port)
        flow = Flow("127.0.0.1", client.getsockname()[1], plain)
        mapped = Destination("::ffff:127.0.0.1", port)

        assert found(flow).state == State.ESTABLISHED
        assert [flow] == [row.flow for row in diag.rows(destination=mapped)]
        row = diag.look_up(Flow("::ffff:127.0.0.1", flow.port, mapped))
        assert row is not None
        assert os.fstat(client.fileno()).st_ino == row.inode


def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc and netlink list the same sockets, with the same time to go."""
    with connection("127.0.0.1"), connection("::1"), time_wait("127.0.0.1"), time_wait("::1"), unanswered("::1"):
        fast = {row.flow: row for row in diag.rows(states=diag.ALL)}
        monkeypatch.setattr(diag, "netlink_granted", lambda: False)
        slow = {row.flow: row for row in diag.rows(states=diag.ALL)}
        monkeypatch.undo()
        again = {row.flow: row for row in diag.rows(states=diag.ALL)}  # others come and go meanwhile

        lasting = {flow for flow, row in fast.items() if flow in again and again[flow].state == row.state}
        assert len(lasting) >= 8
        assert lasting <= set(slow)
        for flow in lasting:
            assert fast[flow]._replace(remaining=None) == slow[flow]._replace(remaining=None)
            before, between, after = (found[flow].remaining or 0 for found in (fast, slow, again))
            assert before + 0.1 > between > after - 0.1


@pytest.mark.parametrize("answer", ["nothing", "the listener"])
def test_a_flow_that_is_missed_is_looked_for_again(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """The kernel may miss a flow that turns to TIME_WAIT at that moment: it is not free before a second look."""
    ask, asked = diag._sockets.ask, []
    with listen("127.0.0.1") as listener, time_wait("127.0.0.1") as flow:
        address, port = listener.getsockname()
        elsewhere = socket.inet_aton(address).ljust(16, b"\0")
        of_listener = struct.pack("=BB2xI", socket.AF_INET, socket.IPPROTO_TCP, diag.ALL)
        of_listener += struct.pack("!HH", port, 9) + elsewhere * 2 + bytes(4) + b"\xff" * 8

        def misses_first(kind: int, body: bytes) -> bytes:
            asked.append(body)
            if len(asked) > 1:
                return ask(kind, body)
            if answer == "nothing":
                raise OSError(errno.ENOENT, "no such socket")
            return ask(kind, of_listener)

        monkeypatch.setattr(diag._sockets, "ask", misses_first)
        row = diag.look_up(flow)

        assert row is not None
        assert (row.flow, row.state) == (flow, State.TIME_WAIT)
        assert asked == asked[:1] * 2


def test_link_local() -> None:
    """A link-local flow is found by the scope's number or name, and a filter's scope is the interface's."""
    result = in_namespace("""
        from fewports.kernel import diag
        add_address("fe80::9")
        with connection("fe80::9%lo") as (client, server, flow):
            named = Flow("fe80::9%lo", flow.port, Destination("fe80::9%lo", flow.destination.port))
            rows = diag.rows(destination=named.destination)
            answer([flow.source, diag.look_up(flow).flow == flow, diag.look_up(named).flow == named,
                    [row.flow == flow for row in rows], diag.count(destination=flow.destination)])
    """)

    assert result == ["fe80::9%1", True, True, [True], 1]


def test_bound_to_a_device() -> None:
    """A socket bound to a device is listed; it is looked up, in TIME_WAIT too, once the device is known."""
    before, after, closed, listed, free = in_namespace("""
        from fewports.kernel import diag
        with listen("127.0.0.1") as listener, socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            client.connect(listener.getsockname())
            flow = flow_of(client)
            before = diag.look_up(flow)
            diag.note_device(client)
            after = diag.look_up(flow)
            listed = [row.flow == flow for row in diag.rows(destination=flow.destination)]
            server = listener.accept()[0]
            client.close()
            server.close()
            closed = diag.look_up(flow)
            answer([before, after.state.name, closed.state.name, listed, diag.look_up(flow._replace(port=1))])
    """)

    assert (before, after, closed, listed, free) == (None, "ESTABLISHED", "TIME_WAIT", [True], None)


def test_unknown_scope() -> None:
    """A scope that names no interface is an error, not a free port."""
    with pytest.raises(OSError, match="no interface"):
        diag.look_up(Flow("fe80::1%nosuch", 40000, Destination("fe80::2%nosuch", 80)))


def test_unprivileged() -> None:
    """The user nobody sees the same rows, TIME_WAIT included."""
    names = in_namespace("""
        from fewports.kernel import diag
        with connection("127.0.0.1") as (client, server, open_flow), connection("::1") as (shut, peer, gone):
            shut.close()
            peer.close()
            before = diag.rows()
            diag.reset()
            try: os.setresuid(65534, 65534, 65534)
            except OSError: pass  # in a user namespace we are nobody in truth
            after = diag.rows()
            assert [row._replace(remaining=None) for row in before] == [row._replace(remaining=None) for row in after]
            answer([diag.netlink_granted(), diag.look_up(open_flow).state.name, diag.look_up(gone).state.name])
    """)

    assert names == [True, "ESTABLISHED", "TIME_WAIT"]


def test_netlink_refused() -> None:
    """A sandbox that refuses AF_NETLINK is answered from /proc, before the first question or later."""
    result = in_namespace("""
        from fewports.kernel import diag, facts
        with connection("127.0.0.1") as (client, server, flow):
            asked = diag.count(destination=flow.destination)
            if deny_netlink():
                diag._sockets.reset()
                later = [diag.count(destination=flow.destination), diag.look_up(flow).flow == flow]
                facts.forget()
                first = [diag.available(), facts.features().sock_diag, len(diag.rows(destination=flow.destination))]
                answer([asked, later, first])
            else:
                answer(None)
    """)
    if result is None:
        pytest.skip("no seccomp filter for this machine")

    assert result == [1, [1, True], [True, False, 1]]


def test_threads() -> None:
    """Threads that look up and dump at once each get the answer to their own question."""
    wrong: list[object] = []
    with listen("127.0.0.1") as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(end_of(listener))) for _ in range(6)]

        def look(client: socket.socket) -> None:
            flow, inode = flow_of(client), os.fstat(client.fileno()).st_ino
            for turn in range(300):
                row = diag.look_up(flow)
                if row is None or (row.flow, row.inode) != (flow, inode):
                    wrong.append(row)
                if turn % 50 == 0 and diag.count(destination=flow.destination) != len(clients):
                    wrong.append(turn)

        threads = [threading.Thread(target=look, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert wrong == []


def test_stale_reply() -> None:
    """The rest of an answer that nobody read is passed over by the next question."""
    with connection("127.0.0.1") as (_, _, flow), connection("127.0.0.1") as (_, _, stale):
        diag.look_up(stale)
        link = diag._sockets._idle[-1]
        dump = struct.pack("=IHHII", 16 + 56, 20, 0x301, 0, 0)  # SOCK_DIAG_BY_FAMILY, request, dump
        link.send(dump + bytes([socket.AF_INET, socket.IPPROTO_TCP, 0, 0]) + b"\xff" * 4 + bytes(48))

        row = diag.look_up(flow)
        assert row is not None
        assert (flow, State.ESTABLISHED) == (row.flow, row.state)
        assert [flow] == [row.flow for row in diag.rows(destination=flow.destination)]


def test_interrupted() -> None:
    """A KeyboardInterrupt anywhere in a question leaves the next one right."""
    interrupted, wrong = in_namespace("""
        import signal, warnings
        from fewports.kernel import diag
        warnings.simplefilter("ignore", ResourceWarning)  # just before `try`, closing is left to the collector
        interrupted = wrong = 0
        with connection("127.0.0.1") as (client, server, flow):
            def interrupt(*_): raise KeyboardInterrupt
            signal.signal(signal.SIGALRM, interrupt)
            for turn in range(400):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + turn % 20 * 0.00002)
                    while True:
                        diag.count()
                        diag.look_up(flow)
                except KeyboardInterrupt:
                    interrupted += 1
                wrong += diag.look_up(flow).flow != flow or diag.count(destination=flow.destination) != 1
        answer([interrupted, wrong])
    """)

    assert (interrupted, wrong) == (400, 0)


def test_fork() -> None:
    """A child does not share the parent's netlink socket: both ask at once and both are answered."""
    shared, codes = in_namespace("""
        from fewports.kernel import diag
        with connection("127.0.0.1") as (client, server, flow):
            def right(): return all(diag.look_up(flow).flow == flow and diag.count() == 2 for _ in range(300))
            assert right()
            parents = {os.fstat(link.fileno()).st_ino for link in diag._sockets._idle}
            children = []
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    fine = not diag._sockets._idle and right()
                    own = {os.fstat(link.fileno()).st_ino for link in diag._sockets._idle}
                    os._exit(0 if fine and own and not own & parents else 1)
                children.append(child)
            assert right()
            answer([len(parents), [os.waitpid(child, 0)[1] for child in children]])
    """)

    assert (shared, codes) == (1, [0, 0])


def test_reset() -> None:
    """After reset() the next question opens a new socket."""
    destination = Destination("127.0.0.1", 9)
    diag.count(destination=destination)
    link = diag._sockets._idle[-1]
    diag.reset()

    assert link.fileno() == -1
    assert diag.count(destination=destination) == 0


@pytest.mark.parametrize("shortage", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_is_no_refusal(monkeypatch: pytest.MonkeyPatch, shortage: int) -> None:
    """Where no descriptor or memory is left for the question, it is put again the next time."""
    facts.forget()

    def short(*_: object) -> list[object]:
        raise OSError(shortage, os.strerror(shortage))

    with monkeypatch.context() as patch:
        patch.setattr(diag, "_dump", short)
        assert not diag.netlink_granted()
        assert not facts.features().sock_diag

    assert diag.netlink_granted()
    assert facts.features().sock_diag


def test_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that refuses netlink is asked once."""
    diag.reset()
    asked = []

    def refuse(*_: object) -> list[object]:
        asked.append(1)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(diag, "_dump", refuse)
        assert not diag.netlink_granted()
        assert not diag.netlink_granted()
    diag.reset()

    assert asked == [1]
