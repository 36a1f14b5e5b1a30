"""Values that parse and print."""

from __future__ import annotations

import socket

import pytest

from fewports.address import (
    Destination,
    Flow,
    Origin,
    PortSpace,
    family_of,
    from_sockaddr,
    is_loopback,
    sockaddr,
)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://example.com/path?query", Origin("http", "example.com", 80)),
        ("HTTPS://Example.COM", Origin("https", "example.com", 443)),
        ("http://user:secret@example.com:8080/", Origin("http", "example.com", 8080)),
        ("https://[2001:db8::1]/", Origin("https", "2001:db8::1", 443)),
        ("socks5://proxy:1080", Origin("socks5", "proxy", 1080)),
        ("https://example.com:", Origin("https", "example.com", 443)),
    ],
)
def test_origin_of_a_url(url: str, origin: Origin) -> None:
    """An origin is scheme, host in lower case without brackets, and port; http and https have a default port."""
    assert Origin.parse(url) == origin


@pytest.mark.parametrize(
    "url", ["example.com", "//example.com:80", "http://", "http:///path", "ftp://example.com", "http://example.com:0"]
)
def test_no_origin(url: str) -> None:
    """A URL without scheme, host or known port has no origin, and port 0 is none."""
    with pytest.raises(ValueError, match=r"no origin in .*expected scheme://host"):
        Origin.parse(url)


@pytest.mark.parametrize("url", ["http://example.com:65536", "http://example.com:x", "http://[::1"])
def test_malformed_url(url: str) -> None:
    """A URL that urllib cannot split is a ValueError, too."""
    with pytest.raises(ValueError, match=r".+"):
        Origin.parse(url)


@pytest.mark.parametrize(
    "text", ["http://example.com:80", "https://[2001:db8::1]:8443", "socks5://proxy.internal:1080"]
)
def test_origin_prints_what_it_parses(text: str) -> None:
    """An origin is printed in the form that parses to it again, the port always named."""
    assert str(Origin.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("203.0.113.9:443", Destination("203.0.113.9", 443)),
        ("[2001:db8::1]:443", Destination("2001:db8::1", 443)),
        ("[2001:DB8:0:0::1]:65535", Destination("2001:db8::1", 65535)),
        ("[fe80::1%2]:80", Destination("fe80::1%2", 80)),
    ],
)
def test_destination_of_a_text(text: str, destination: Destination) -> None:
    """A destination is an address in its usual form and a port; an IPv6 one may carry a scope."""
    assert Destination.parse(text) == destination
    assert Destination.parse(str(destination)) == destination


@pytest.mark.parametrize(
    "text",
    [
        "",
        "203.0.113.9",
        "203.0.113.9:",
        "203.0.113.9:0",
        "203.0.113.9:65536",
        "203.0.113.9:+80",
        "203.0.113.9: 80",
        "203.0.113.9:٣",
        "203.0.113.9:http",
        "203.0.113.009:80",
        "[203.0.113.9]:80",
        "2001:db8::1:80",
        "[2001:db8::1]",
        "example.com:80",
    ],
)
def test_no_destination(text: str) -> None:
    """Names, missing or impossible ports, and IPv6 without brackets are no destinations."""
    with pytest.raises(ValueError, match=r".+"):
        Destination.parse(text)


def test_family_and_loopback() -> None:
    """A destination knows its IP version, and whether it is in 127/8 or ::1."""
    assert Destination("203.0.113.9", 1).family == family_of("203.0.113.9") == socket.AF_INET
    assert Destination("2001:db8::1", 1).family == family_of("2001:db8::1") == socket.AF_INET6
    assert Destination("127.8.9.1", 1).loopback
    assert Destination("::1", 1).loopback
    assert not Destination("::2", 1).loopback
    assert not is_loopback("128.0.0.1")


def test_space_and_flow_print_both_ends() -> None:
    """Spaces and flows are printed as source -> destination, IPv6 in brackets where a port follows."""
    four, six = Destination("203.0.113.9", 443), Destination("2001:db8::1", 443)

    assert str(PortSpace("10.0.0.5", four)) == "10.0.0.5 -> 203.0.113.9:443"
    assert str(PortSpace("2001:db8::5", six)) == "2001:db8::5 -> [2001:db8::1]:443"
    assert str(Flow("10.0.0.5", 40000, four)) == "10.0.0.5:40000 -> 203.0.113.9:443"
    assert str(Flow("2001:db8::5", 40000, six)) == "[2001:db8::5]:40000 -> [2001:db8::1]:443"


def test_a_flow_lies_in_its_space() -> None:
    """A flow without its source port is the space that the port is taken from."""
    destination = Destination("203.0.113.9", 443)

    assert Flow("10.0.0.5", 40000, destination).space == PortSpace("10.0.0.5", destination)


def test_socket_names_there_and_back() -> None:
    """What bind() and connect() take is made of an address and port, and read back, the scope as a number."""
    assert sockaddr("10.0.0.5", 80) == ("10.0.0.5", 80)
    assert sockaddr("2001:db8::1", 80) == ("2001:db8::1", 80, 0, 0)
    assert sockaddr("fe80::1%7", 80) == ("fe80::1", 80, 0, 7)
    assert sockaddr("fe80::1%lo", 80)[3] == socket.if_nametoindex("lo")  # type: ignore[misc]
    assert from_sockaddr(("10.0.0.5", 80)) == ("10.0.0.5", 80)
    assert from_sockaddr(("2001:db8::1", 80, 0, 0)) == ("2001:db8::1", 80)
    assert from_sockaddr(("fe80::1%eth0", 80, 0, 7)) == ("fe80::1%7", 80)


def test_a_scope_without_interface() -> None:
    """A scope that names no interface is an OSError, as connect() would raise."""
    with pytest.raises(OSError, match="no interface"):
        sockaddr("fe80::1%nonesuch", 80)
