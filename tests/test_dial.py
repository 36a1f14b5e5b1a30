"""Dialing on real sockets: port spaces, sources, refusals, races, and every way out of a wait."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.listeners import free_port
from support.ns import in_namespace
from support.sampler import Kernel, Space, held

import fewports
from fewports.address import Destination
from fewports.events import ConnectionOpened, Event, KernelRefused, SourceSetAside
from fewports.sync.dial import dial, resolve
from fewports.tcp import create_connection


@contextlib.contextmanager
def listeners(*addresses: tuple[str, int]) -> Iterator[list[tuple[str, int]]]:
    """Listen without accepting: the kernel completes the handshakes."""
    with contextlib.ExitStack() as stack:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            stack.enter_context(socket.create_server(address, family=family, backlog=4096))
        yield list(addresses)


def free(host: str) -> tuple[str, int]:
    """Return an address to listen at where the network is everybody's."""
    return host, free_port([host])


def fill(
    book: fewports.Ledger, destinations: list[tuple[str, int]], sources: list[str] | str | None = None
) -> list[socket.socket]:
    """Open connections to each destination in turn until all are refused."""
    opened: list[socket.socket] = []
    left = list(destinations)
    while left:
        for destination in list(left):
            try:
                opened.append(create_connection(destination, ledger=book, sources=sources))
            except fewports.BudgetExhausted:
                left.remove(destination)
    return opened


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def in_line(book: fewports.Ledger) -> int:
    return max(usage.waiting for usage in book.usage())


ALL = fewports.Budget("100%", when_full="refuse")
THREE = [("127.0.0.1", 8001), ("127.0.0.1", 8002), ("127.0.0.9", 8001)]


@in_namespace(high=40099)
def test_each_destination_has_its_own_space_behind_a_bound_source() -> None:
    """With 100 ports, 3 destinations and one bound source 300 connections stand; stock urllib3 gets 100."""
    with listeners(*THREE):
        opened = fill(fewports.Ledger(ALL), THREE, ["127.0.0.5"])

        assert len(opened) == 300
        assert held(8001, 8002) == {Space("127.0.0.5", *destination): 100 for destination in THREE}
        close(opened)


@in_namespace(high=40019)
def test_capacity_grows_exactly_with_the_sources() -> None:
    """K sources hold K times the ports, for K of 1, 2, 5 and 10, all of them used alike."""
    for number in (1, 2, 5, 10):
        port = 8000 + number
        sources = [f"127.0.1.{index + 1}" for index in range(number)]
        with listeners(("127.0.0.1", port)):
            opened = fill(fewports.Ledger(ALL), [("127.0.0.1", port)], sources)

            assert held(port) == {Space(source, "127.0.0.1", port): 20 for source in sources}
            close(opened)


@in_namespace(high=40009, local_prefixes=["2001:db8:5::/64", "10.77.0.0/16"])
def test_a_network_of_sources_is_bound_freely() -> None:
    """Addresses of a routed network are used although no interface has them, IPv6 and IPv4."""
    for network, destination in (("2001:db8:5::/64", ("2001:db8:5::1", 8001)), ("10.77.0.0/16", ("10.77.0.1", 8001))):
        anywhere = "::" if ":" in network else "0.0.0.0"
        with listeners((anywhere, 8001)):
            book = fewports.Ledger()
            opened = [create_connection(destination, ledger=book, sources=network) for _ in range(200)]
            spaces = held(8001)

            assert sum(spaces.values()) >= 200
            assert len(spaces) > 100
            close(opened)


@in_namespace(addresses=["10.9.0.1", "10.9.0.2"])
def test_auto_takes_the_addresses_that_reach_the_destination() -> None:
    """With "auto" connections to a global address come from all global ones, to loopback from loopback."""
    book = fewports.Ledger(sources="auto")
    with listeners(("10.9.0.1", 8001), ("127.0.0.1", 8001)):
        opened = [create_connection(("10.9.0.1", 8001), ledger=book) for _ in range(10)]
        inside = create_connection(("127.0.0.1", 8001), ledger=book)

        assert held(8001) == {
            Space("10.9.0.1", "10.9.0.1", 8001): 5,
            Space("10.9.0.2", "10.9.0.1", 8001): 5,
            Space("127.0.0.1", "127.0.0.1", 8001): 1,
        }
        close([*opened, inside])


@in_namespace()
def test_a_source_that_cannot_bind_is_set_aside() -> None:
    """A source that is no address of the host is left out, with an event, while the others carry on."""
    events: list[Event] = []
    book = fewports.Ledger()
    book.subscribe(events.append)
    sources = fewports.Sources(["127.0.0.5", "10.1.2.3", "127.0.0.6"])
    with listeners(("127.0.0.1", 8001)):
        opened = [create_connection(("127.0.0.1", 8001), ledger=book, sources=sources) for _ in range(20)]
        aside = [event for event in events if isinstance(event, SourceSetAside)]

        assert [(event.source, event.destination) for event in aside] == [("10.1.2.3", None)]
        assert sorted(held(8001).values()) == [10, 10]
        close(opened)


@in_namespace(addresses=["10.9.0.1"])
def test_no_usable_source_names_each_and_why() -> None:
    """When no source is left the error says of each why: foreign, no route, other IP version."""
    sources = ["10.1.2.3", "127.0.0.5", "fd00::1"]
    with pytest.raises(fewports.NoUsableSource) as raised:
        create_connection(("10.9.0.9", 8001), ledger=fewports.Ledger(), sources=sources)

    assert raised.value.reasons["10.1.2.3"] == "it is no address of this host"
    assert raised.value.reasons["127.0.0.5"] == "it has no route there"
    assert raised.value.reasons["fd00::1"] == "it is of the other IP version"


@in_namespace()
def test_a_refusal_is_quick_and_has_the_numbers() -> None:
    """With a full budget "refuse" answers in under 1 ms: budget, active, TIME_WAIT and when the next port is due."""
    book = fewports.Ledger(fewports.Budget(10, when_full="refuse"))
    with listeners(("127.0.0.1", 8001)) as (address,):
        opened = [create_connection(address, ledger=book) for _ in range(10)]
        times = []
        for _ in range(50):
            began = time.perf_counter()
            with pytest.raises(fewports.BudgetExhausted) as raised:
                create_connection(address, ledger=book)
            times.append(time.perf_counter() - began)
        usage = raised.value.usage

        assert min(times) < 0.001
        assert sorted(times)[25] < 0.001
        assert (usage.budget, usage.active, usage.held, usage.waiting) == (10, 10, 10, 0)
        assert "127.0.0.1:8001 holds 10 of 10 ports (10 active)" in str(raised.value)
        close(opened)


def test_those_who_wait_are_served_in_order() -> None:
    """Ten callers in line get the ports in the order in which they came."""
    book = fewports.Ledger(1)
    order: list[int] = []
    with listeners(free("127.0.0.1")) as (address,):
        first = create_connection(address, ledger=book)

        def wait(index: int) -> None:
            with create_connection(address, ledger=book):
                order.append(index)

        threads = []
        for index in range(10):
            threads.append(threading.Thread(target=wait, args=(index,)))
            threads[-1].start()
            while in_line(book) <= index:
                time.sleep(0.001)
        first.close()
        for thread in threads:
            thread.join()

    assert order == list(range(10))


def test_a_wait_that_times_out_leaves_nothing() -> None:
    """After the time in line is over the error says how long it was, and nothing is held or in line."""
    book = fewports.Ledger(fewports.Budget(1, wait=0.2))
    with listeners(free("127.0.0.1")) as (address,):
        with create_connection(address, ledger=book):
            began = time.monotonic()
            with pytest.raises(fewports.BudgetExhausted) as raised:
                create_connection(address, ledger=book)

            assert 0.2 <= raised.value.waited <= time.monotonic() - began < 3
            assert f"after {raised.value.waited:.1f} s in line" in str(raised.value)
            assert in_line(book) == 0
        with create_connection(address, ledger=book):
            assert book.usage()[0].active == 1


def test_a_keyboard_interrupt_in_line_leaves_nothing() -> None:
    """Ctrl-C while waiting for a port takes the caller out of the line at once."""
    book = fewports.Ledger(1)
    with listeners(free("127.0.0.1")) as (address,):
        with create_connection(address, ledger=book):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                create_connection(address, ledger=book)

            assert in_line(book) == 0
        with create_connection(address, ledger=book):
            assert book.usage()[0].active == 1


@pytest.mark.filterwarnings("ignore:unclosed")  # a socket that was interrupted before it had a name
def test_keyboard_interrupts_at_random_leave_nothing() -> None:
    """Signals that hit dialing anywhere cost no lease, no place in line and no socket."""
    book = fewports.Ledger(fewports.Budget(2, wait=0.01))
    interrupted = 0
    with listeners(free("127.0.0.1")) as (address,):
        keep = create_connection(address, ledger=book)
        end = time.monotonic() + 2
        try:
            while time.monotonic() < end:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + (interrupted % 200) * 1e-6)
                    create_connection(address, ledger=book).close()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                except fewports.BudgetExhausted:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        keep.close()

    assert interrupted > 20


@pytest.fixture(autouse=True)
def _alarm_is_ctrl_c() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    counting, gc.callbacks[:] = gc.callbacks[:], []  # hypothesis': an interrupt in there is told to nobody
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.callbacks[:] = counting
    signal.signal(signal.SIGALRM, before)


@in_namespace(high=40009)
def test_ports_that_others_hold_are_back_pressure() -> None:
    """When other programs hold the whole space a connection waits for the kernel, and does not fail."""
    events: list[Event] = []
    book = fewports.Ledger(ALL)
    waiting = fewports.Ledger(fewports.Budget("100%", wait=10))
    waiting.subscribe(events.append)
    with listeners(("127.0.0.1", 8001)) as (address,):
        others = [socket.create_connection(address) for _ in range(10)]
        with pytest.raises(fewports.BudgetExhausted, match="other programs hold them"):
            create_connection(address, ledger=book)

        def let_go() -> None:
            others[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, -1)
            others[0].close()

        timer = threading.Timer(0.3, let_go)
        timer.start()
        with create_connection(address, ledger=waiting):
            assert any(isinstance(event, KernelRefused) for event in events)
        timer.join()
        close(others[1:])


@in_namespace(high=40009)
def test_a_full_space_is_passed_by() -> None:
    """Where other programs hold one source's ports the other sources and addresses are used, without a wait."""
    book = fewports.Ledger(fewports.Budget("100%", wait=0.5))
    with listeners(("127.0.0.1", 8001)) as (address,):
        others = []
        for _ in range(10):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            sock.bind(("127.0.0.5", 0))
            sock.connect(address)
            others.append(sock)
        opened = [create_connection(address, ledger=book, sources=["127.0.0.5", "127.0.0.6"]) for _ in range(10)]

        assert held(8001)[Space("127.0.0.6", "127.0.0.1", 8001)] == 10
        close([*others, *opened])


@in_namespace(high=40009)
def test_our_own_time_wait_is_counted_until_the_kernel_forgets_it() -> None:
    """A port that we closed first counts; one whose flow the kernel dropped is given again, asked before a refusal."""
    book = fewports.Ledger(fewports.Budget(4, when_full="refuse"))
    with socket.create_server(("127.0.0.1", 8001)) as server:
        opened = [create_connection(("127.0.0.1", 8001), ledger=book) for _ in range(2)]
        accepted = [server.accept()[0] for _ in opened]
        close(opened)
        close(accepted)
        more = [create_connection(("127.0.0.1", 8001), ledger=book) for _ in range(2)]

        assert book.usage()[0].time_wait == 2
        with pytest.raises(fewports.BudgetExhausted) as raised:
            create_connection(("127.0.0.1", 8001), ledger=book)
        assert raised.value.usage.time_wait == 2
        assert raised.value.next_due is not None
        assert 55 < raised.value.next_due <= 60
        close(more)


@in_namespace()
def test_a_close_by_the_peer_frees_the_port_at_once() -> None:
    """If the server closes first the port is free as soon as we close, and it is the server that has the TIME_WAIT."""
    book = fewports.Ledger(fewports.Budget(1, when_full="refuse"))
    with socket.create_server(("127.0.0.1", 8001)) as server:
        for _ in range(20):
            client = create_connection(("127.0.0.1", 8001), ledger=book)
            server.accept()[0].close()
            assert client.recv(1) == b""
            client.close()

    assert book.usage() == []


@in_namespace(drop_all=True)
def test_a_destination_that_does_not_answer_times_out() -> None:
    """A connect into a black hole ends after the time-out with TimeoutError, and holds nothing after that."""
    book = fewports.Ledger()
    for destination in (("10.200.77.1", 80), ("fd00:200:1::1", 80)):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            create_connection(destination, timeout=0.3, ledger=book)

        assert 0.3 <= time.monotonic() - began < 3
        assert book.usage() == []


@in_namespace(drop_all=True)
def test_addresses_race_as_rfc_8305_says() -> None:
    """With a black hole first the next address is tried after 250 ms; the loser's port is given back."""
    events: list[Event] = []
    book = fewports.Ledger()
    book.subscribe(events.append)
    from fewports.address import Origin
    from fewports.dial import To

    to = To(Origin("tcp", "two.test", 8001), book, fewports.Sources())
    with listeners(("127.0.0.1", 8001)):
        began = time.monotonic()
        destinations = [Destination("fd00:200:1::1", 8001), Destination("127.0.0.1", 8001)]
        sock = dial(to, destinations, timeout=5)
        took = time.monotonic() - began
        opened = [event for event in events if isinstance(event, ConnectionOpened)]

        assert 0.24 < took < 3
        assert [str(event.flow.destination) for event in opened] == ["127.0.0.1:8001"]
        assert sum(usage.held for usage in book.usage()) == 1
        sock.close()


@in_namespace(drop_all=True)
def test_pacing_bounds_the_connections_being_dialled() -> None:
    """With dialing=2 a third connection to a silent destination waits until one of two is over."""
    book = fewports.Ledger(fewports.Budget(dialing=2, wait=10))

    def attempt() -> None:
        with contextlib.suppress(TimeoutError):
            create_connection(("10.200.77.1", 80), timeout=0.3, ledger=book).close()

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    most = 0
    with contextlib.closing(Kernel()) as kernel:
        while any(thread.is_alive() for thread in threads):
            most = max(most, len(kernel.held((80,))))
            time.sleep(0.01)

    assert most == 2
    assert 0.9 <= time.monotonic() - began < 5


def test_connections_are_spread_over_the_addresses_of_a_name() -> None:
    """Connections to a name with three addresses go to all three alike."""
    from fewports.address import Origin
    from fewports.dial import To

    book = fewports.Ledger()
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    port = free_port(hosts)
    addresses = [(host, port) for host in hosts]
    to = To(Origin("tcp", "three.test", port), book, fewports.Sources())
    with listeners(*addresses):
        opened = [dial(to, [Destination(*address) for address in addresses]) for _ in range(30)]

        assert [book.held(sock.lease.space) for sock in opened] == [10] * 30
        close(opened)


def test_a_refused_connection_is_the_callers_error_and_holds_nothing() -> None:
    """ECONNREFUSED reaches the caller as the OSError that it is; with two addresses both are tried."""
    book = fewports.Ledger()
    with pytest.raises(ConnectionRefusedError):
        create_connection(("127.0.0.1", 9), ledger=book)
    port = free_port(["127.0.0.1", "::1"])
    with listeners(("127.0.0.1", port)):
        from fewports.address import Origin
        from fewports.dial import To

        to = To(Origin("tcp", "two.test", port), book, fewports.Sources())
        sock = dial(to, [Destination("::1", port), Destination("127.0.0.1", port)])
        assert sock.getpeername() == ("127.0.0.1", port)
        sock.close()


def test_ipv6_goes_through_the_same_gate() -> None:
    """Connections to ::1 are leased, bound and counted like those to 127.0.0.1."""
    book = fewports.Ledger(fewports.Budget(2, when_full="refuse"))
    with listeners(free("::1")) as (address,):
        opened = fill(book, [address], ["::1"])

        assert len(opened) == 2
        assert sum(number for space, number in held(address[1]).items() if space.address == "::1") >= 2
        close(opened)


def test_names_are_resolved_as_the_system_does() -> None:
    """A name that does not exist raises socket.gaierror, as socket.create_connection does."""
    assert resolve("127.0.0.1", 80) == [Destination("127.0.0.1", 80)]
    with pytest.raises(socket.gaierror):
        create_connection(("no.such.host.invalid", 80))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "0:0::1", "127.1", "fe80::1%1", "2001:DB8::1"]
)
@pytest.mark.parametrize("family", [socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6])
def test_addresses_are_read_as_the_system_does(monkeypatch: pytest.MonkeyPatch, host: str, family: int) -> None:
    """An address needs no look-up, and what is read from it is what getaddrinfo() would have said."""

    def read() -> list[Destination] | int | None:
        try:
            return resolve(host, 80, family)
        except socket.gaierror as error:
            return error.errno

    ours = read()
    monkeypatch.setattr("fewports.sync.dial._literal", lambda *_: None)

    assert ours == read()


def test_a_look_up_of_the_users_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program has put its own getaddrinfo() in place, that is asked about addresses, too."""
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)

    assert resolve("127.0.0.1", 80) == [Destination("192.0.2.7", 80)]


def test_files_run_out_as_an_error_of_the_system() -> None:
    """EMFILE from socket() is fatal for the attempt, and its lease is given back."""
    import resource

    book = fewports.Ledger()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    create_probe = os.dup(0)
    os.close(create_probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (create_probe, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            create_connection(("127.0.0.1", 9), ledger=book)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert raised.value.errno == errno.EMFILE
    assert book.usage() == []
