import os
import time

import pytest
from kernel_ns import in_namespace

from fewports.address import Destination
from fewports.kernel import facts
from fewports.kernel.facts import PortRange


@pytest.fixture(autouse=True)
def fresh():
    facts.forget()
    yield
    facts.forget()


def test_size_without_reserved() -> None:
    """Reserved ports inside the range are not usable; those outside of it take nothing away."""
    ports = PortRange(100, 199, ((90, 104), (150, 150), (195, 300), (500, 600)))

    assert ports.size == 100 - 5 - 1 - 5
    assert tuple(map(ports.includes, (104, 105, 150, 200))) == (False, True, False, False)


def test_within() -> None:
    """A window is cut to the range; one with no usable port in it is refused, since the kernel would ignore it."""
    ports = PortRange(100, 199, ((150, 160),))

    assert PortRange(150, 199, ((150, 160),)) == ports.within(150, 500)
    assert ports.within(150, 500).size == 39
    with pytest.raises(ValueError, match="no usable port in 200-300: the system's range is 100-199 without 150-160"):
        ports.within(200, 300)
    with pytest.raises(ValueError, match="no usable port in 150-160"):
        ports.within(150, 160)


def test_reserved_ports_of_the_kernel() -> None:
    """port_range().size is the number of connections that the kernel grants to one destination."""
    size, reserved, connected = in_namespace(
        """
        from fewports.kernel import facts
        ports = facts.port_range(0.0)
        with listen("127.0.0.1", 8001) as listener:
            clients = fill(end_of(listener))
            assert all(ports.includes(client.getsockname()[1]) for client in clients)
            answer([ports.size, ports.reserved, len(clients)])
            for client in clients: client.close()
        """,
        sysctls={"ip_local_reserved_ports": "80,40003,40010-40019,40049-40100"},
    )

    assert reserved == [[40003, 40003], [40010, 40019], [40049, 40049]]
    assert 38 == size == connected


def test_sysctl_change_is_noticed() -> None:
    """What was read is kept for 5 s, and then read again."""
    sizes = in_namespace("""
        from fewports.kernel import facts
        sizes = [facts.port_range(100.0).size]
        sysctl("ip_local_port_range", "40000 40009")
        answer([*sizes, facts.port_range(104.9).size, facts.port_range(105.0).size])
    """)

    assert sizes == [50, 50, 10]


def test_time_wait_hold() -> None:
    """The hold is what the kernel does: a range of one port is refused until then, and used again right after."""
    results = in_namespace(
        """
        from fewports.kernel import facts
        add_address("10.9.9.9")
        exact = sysctl("tcp_tw_reuse_delay", 300)

        def hold(port, address, reuse, timestamps):
            sysctl("tcp_tw_reuse", reuse)
            sysctl("tcp_timestamps", timestamps)
            facts.forget()
            told = facts.time_wait_hold(address, address, 0.0)
            with listen(address, port) as listener:
                client = dial(end_of(listener))
                server = listener.accept()[0]
                client.close()
                server.close()
                start = time.monotonic()
                again = None
                while again is None and time.monotonic() < start + min(told, 0.4) + 0.2:
                    time.sleep(0.005)
                    again = dial(end_of(listener))
                measured = time.monotonic() - start if again else None
                if again: again.close()
            return told, measured

        cases = [("127.0.0.1", 0, 1), ("127.0.0.1", 1, 1), ("127.0.0.1", 2, 1), ("127.0.0.1", 1, 0),
                 ("10.9.9.9", 1, 1), ("10.9.9.9", 2, 1)]
        answer([exact, [hold(8001 + index, *case) for index, case in enumerate(cases)]])
        """,
        ports=(40000, 40000),
    )

    exact, holds = results
    delay = 0.3 if exact else 1.0
    assert [60.0, delay, delay, 60.0, delay, 60.0] == [told for told, _ in holds]
    for told, measured in holds:
        if told == 60.0:
            assert measured is None
        elif exact:
            assert told <= measured + 0.01 <= told + 0.15


def test_local_addresses() -> None:
    """Loopback is among the local addresses; a link-local one carries its interface as a scope."""
    found = {local.address: local for local in facts.local_addresses()}

    assert facts.LocalAddress("127.0.0.1", "lo", "host", 8) == found["127.0.0.1"]
    assert facts.LocalAddress("::1", "lo", "host", 128) == found["::1"]


ADDRESSES = """
    from fewports.kernel import facts
    add_address("10.9.9.9")
    add_address("fd00::9")
    add_address("fe80::9")
    # An address that is valid but no longer preferred: RTM_NEWADDR with struct ifa_cacheinfo.
    def attribute(kind, value): return struct.pack("=HH", 4 + len(value), kind) + value
    body = struct.pack("=BBBBI", socket.AF_INET6, 64, 0, 0, 1)
    body += attribute(2, socket.inet_pton(socket.AF_INET6, "fd00::dead"))
    body += attribute(6, struct.pack("=IIII", 0, 0xffffffff, 0, 0))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.send(struct.pack("=IHHII", 16 + len(body), 20, 0x1 | 0x4 | 0x400, 1, 0) + body)
        assert link.recv(4096)[16:20] == bytes(4)
    rows = sorted(facts.local_addresses())
    if deny_netlink():
        facts.forget()
        try: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        except OSError: assert rows == sorted(facts.local_addresses())
        else: raise AssertionError("netlink is still there")
    answer(rows)
"""


def test_addresses_that_are_left_out() -> None:
    """A deprecated address is left out, and without netlink the same addresses are found."""
    assert in_namespace(ADDRESSES) == [
        ["10.9.9.9", "lo", "global", 8],
        ["127.0.0.1", "lo", "host", 8],
        ["::1", "lo", "host", 128],
        ["fd00::9", "lo", "global", 64],
        ["fe80::9%1", "lo", "link", 64],
    ]


def test_route_source() -> None:
    """The source for a loopback destination is that destination's own address."""
    assert facts.route_source(Destination("127.0.0.1", 80)) == "127.0.0.1"
    assert facts.route_source(Destination("::1", 80)) == "::1"


def test_routes_in_a_namespace() -> None:
    """route_source and reaches follow the routing table, and keep the scope of a link-local source."""
    result = in_namespace("""
        import errno
        from fewports.kernel import facts
        add_address("fe80::9")
        try: facts.route_source(Destination("192.0.2.1", 80))
        except OSError as error: unroutable = errno.errorcode[error.errno]
        near, far, six = Destination("127.0.0.1", 80), Destination("192.0.2.1", 80), Destination("fe80::9%lo", 80)
        reached = [facts.reaches("127.0.0.2", near), facts.reaches("127.0.0.2", far), facts.reaches("10.1.1.1", near),
                   facts.reaches("::1", near), facts.reaches("fe80::9%1", six), facts.reaches("fe80::9%nosuch", six)]
        answer([unroutable, facts.route_source(six), reached])
    """)

    assert result == ["ENETUNREACH", "fe80::9%1", [True, False, False, False, True, False]]


def test_features() -> None:
    """This kernel has each feature that its release brought, and they are found once."""
    release = tuple(int("".join(filter(str.isdigit, part))) for part in os.uname().release.split(".")[:2])
    features = facts.features()

    assert (True, release >= (6, 3), True, True, True) == (
        features.no_port,
        features.local_port_range,
        features.linger2,
        features.freebind,
        features.sock_diag,
    )
    assert features is facts.features()


def test_missing_features() -> None:
    """Each feature that is absent is explained by what it costs."""
    assert facts.Features(True, True, True, True, True).missing() == []
    assert [line.partition(" (")[0] for line in facts.Features(True, False, True, True, True).missing()] == [
        "No IP_LOCAL_PORT_RANGE"
    ]


def test_nothing_is_left_open() -> None:
    """Asking for facts leaves at most the netlink socket open, and forget() closes it."""
    before = len(os.listdir("/proc/self/fd"))
    facts.local_addresses()
    facts.features()
    facts.time_wait_hold("127.0.0.1", "127.0.0.1", time.monotonic())
    facts.forget()

    assert before == len(os.listdir("/proc/self/fd"))
