"""Which source address a connection leaves from."""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterable

import pytest
from bookkeeping import A6, S6, T6, A, B, S, T, U

from fewports.address import Destination, Origin
from fewports.errors import InvalidOption
from fewports.source import NETWORK_CANDIDATES, SET_ASIDE, Sources

HERE = Origin("https", "example.com", 443)


def nothing(source: str) -> int:
    return 0


def first(sources: Sources, *, to: Destination = A, origin: Origin = HERE, now: float = 0.0) -> str:
    return sources.candidates(to, origin, nothing, now)[0]


def origins(number: int) -> Iterable[Origin]:
    return (Origin("https", f"host{index}.example.com", 443) for index in range(number))


def test_fewest_prefers_the_source_that_holds_least() -> None:
    """By default sources are tried in the order of the ports that they hold towards the destination."""
    held = {S: 5, T: 3, U: 4}
    sources = Sources([S, T, U])

    assert all(sources.candidates(A, HERE, held.__getitem__, 0.0) == [T, U, S] for _ in range(6))


def test_fewest_takes_turns_among_equals() -> None:
    """Sources that hold equally many take turns, so that callers who ask at once do not all get the same."""
    sources = Sources([S, T, U])

    assert Counter(first(sources) for _ in range(30)) == {S: 10, T: 10, U: 10}


def test_round_robin_ignores_what_is_held() -> None:
    """Round robin begins with the first source and goes on with the next, whatever they hold."""
    held = {S: 5, T: 3, U: 4}
    sources = Sources([S, T, U], choose="round_robin")

    assert [sources.candidates(A, HERE, held.__getitem__, 0.0) for _ in range(4)] == [
        [S, T, U],
        [T, U, S],
        [U, S, T],
        [S, T, U],
    ]


def test_round_robin_of_each_destination() -> None:
    """Destinations that are asked for in turns still get every source each."""
    sources = Sources([S, T], choose="round_robin")
    seen: dict[Destination, Counter[str]] = {A: Counter(), B: Counter()}
    for to in itertools.islice(itertools.cycle([A, B]), 20):
        seen[to][first(sources, to=to)] += 1

    assert seen == {A: {S: 5, T: 5}, B: {S: 5, T: 5}}


def test_pinned_is_stable() -> None:
    """A pinned host keeps its source, in this process and the next, for any of its addresses."""
    sources = Sources([S, T, U], choose="pinned")
    pins = {origin: first(sources, origin=origin) for origin in origins(50)}

    assert all(first(sources, origin=origin, to=B) == pin for origin, pin in pins.items())
    assert all(first(Sources([U, S, T], choose="pinned"), origin=origin) == pin for origin, pin in pins.items())
    assert set(pins.values()) == {S, T, U}


def test_pinned_spreads_hosts() -> None:
    """Hosts are pinned about evenly."""
    sources = Sources([S, T, U], choose="pinned")
    counted = Counter(first(sources, origin=origin) for origin in origins(3000))

    assert all(900 < number < 1100 for number in counted.values())


def test_pinned_moves_only_who_must() -> None:
    """If a source fails, only the hosts that were pinned to it move; when it returns, they return."""
    sources = Sources([S, T, U], choose="pinned")
    before = {origin: first(sources, origin=origin) for origin in origins(100)}
    sources.set_aside(T, None, "gone", 0.0)
    during = {origin: first(sources, origin=origin) for origin in before}
    after = {origin: first(sources, origin=origin, now=SET_ASIDE) for origin in before}

    assert {during[origin] for origin in before if before[origin] == T} == {S, U}
    assert all(during[origin] == before[origin] for origin in before if before[origin] != T)
    assert after == before


def test_pinned_by_a_key_of_the_users() -> None:
    """The key may be any function of the origin: what has the same key has the same source."""
    sources = Sources([S, T, U], choose="pinned", key=lambda origin: origin.host[:4])
    by_port = Sources([S, T, U], choose="pinned", key=lambda origin: (origin.scheme, origin.port))
    many = [Origin("https", "example.com", port) for port in range(1, 50)]

    assert len({first(sources, origin=origin) for origin in origins(9)}) == 1
    assert {first(by_port, origin=origin) for origin in many} == {S, T, U}


def test_only_sources_of_the_same_ip_version() -> None:
    """A destination is reached from sources of its own IP version alone."""
    sources = Sources([S, S6, T, T6])

    assert set(sources.candidates(A, HERE, nothing, 0.0)) == {S, T}
    assert set(sources.candidates(A6, HERE, nothing, 0.0)) == {S6, T6}
    assert Sources([S]).candidates(A6, HERE, nothing, 0.0) == []


@pytest.mark.parametrize("choose", ["fewest", "round_robin", "pinned"])
def test_a_source_set_aside_returns(choose: str) -> None:
    """A source that failed is not chosen for 30 s, and after that it is."""
    sources = Sources([S, T], choose=choose)

    assert sources.set_aside(S, None, "gone", 10.0)
    assert sources.candidates(A, HERE, nothing, 10.0) == [T]
    assert sources.candidates(B, HERE, nothing, 10.0 + SET_ASIDE - 0.001) == [T]
    assert set(sources.candidates(A, HERE, nothing, 10.0 + SET_ASIDE)) == (
        {first(sources)} if choose == "pinned" else {S, T}
    )


def test_set_aside_for_one_destination() -> None:
    """A source without a route to one destination goes on serving the others."""
    sources = Sources([S, T])
    sources.set_aside(S, A, "no route", 0.0)

    assert sources.candidates(A, HERE, nothing, 1.0) == [T]
    assert set(sources.candidates(B, HERE, nothing, 1.0)) == {S, T}


def test_set_aside_says_whether_it_is_news() -> None:
    """Only the first of many failures is news, until the source was in use again."""
    sources = Sources([S])

    assert sources.set_aside(S, None, "gone", 0.0)
    assert not sources.set_aside(S, None, "gone", 1.0)
    assert sources.set_aside(S, A, "no route", 1.0)
    assert sources.set_aside(S, None, "gone", 1.0 + SET_ASIDE)


def test_a_second_failure_prolongs() -> None:
    """A source that fails again is set aside from then on."""
    sources = Sources([S])
    sources.set_aside(S, None, "gone", 0.0)
    sources.set_aside(S, None, "gone", 20.0)

    assert sources.reason(S, A, 20.0 + SET_ASIDE - 1) == "gone"
    assert sources.reason(S, A, 20.0 + SET_ASIDE) == ""


def test_reasons_name_each_source() -> None:
    """For each source there is a reason why it cannot be used for a destination."""
    sources = Sources([S, T, S6, U])
    sources.set_aside(S, None, "it is gone", 0.0)
    sources.set_aside(T, A, "it has no route there", 0.0)
    sources.set_aside(U, B, "never asked for", 0.0)

    assert sources.reasons(A, 1.0) == {
        S: "it is gone",
        T: "it has no route there",
        S6: "it is of the other IP version",
        U: "it failed just now",
    }


def test_reasons_where_the_host_has_no_address() -> None:
    """Where a word stands for the sources, the reasons name the addresses it led to, or the word."""
    assert Sources("auto").reasons(A, 0.0) == {"auto": "the host has no address that reaches it"}
    assert Sources("auto").reasons(A, 0.0, [S]) == {S: "it failed just now"}


def test_local_addresses_stand_in_for_a_word() -> None:
    """With "auto" the candidates are the addresses found, chosen among as any others."""
    sources = Sources("auto")
    sources.set_aside(T, None, "gone", 0.0)

    assert set(sources.candidates(A, HERE, nothing, 1.0, [S, T, U])) == {S, U}


def test_a_network_is_used_in_full() -> None:
    """All addresses of a network serve, but its first and its last, which are anycast and broadcast."""
    sources = Sources("192.0.2.0/28", choose="round_robin")
    seen = Counter(first(sources) for _ in range(28))

    assert seen == {f"192.0.2.{number}": 2 for number in range(1, 15)}


@pytest.mark.parametrize(
    ("network", "addresses"),
    [
        ("192.0.2.6/32", {"192.0.2.6"}),
        ("192.0.2.6/31", {"192.0.2.6", "192.0.2.7"}),
        ("192.0.2.4/30", {"192.0.2.5", "192.0.2.6"}),
        ("2001:db8:5::7/128", {"2001:db8:5::7"}),
        ("2001:db8:5::6/127", {"2001:db8:5::6", "2001:db8:5::7"}),
    ],
)
@pytest.mark.parametrize("choose", ["fewest", "round_robin", "pinned"])
def test_a_small_network(network: str, addresses: set[str], choose: str) -> None:
    """A network of one or two addresses has no address to spare; each address is a candidate once."""
    sources = Sources(network, choose=choose)
    found = sources.candidates(A6 if ":" in network else A, HERE, nothing, 0.0)

    assert sorted(found) == sorted(addresses) or (choose == "pinned" and len(found) == 1 and found[0] in addresses)


def test_a_large_network_is_weighed_in_parts() -> None:
    """Of a /64 a few addresses are weighed for each connection, others each time, the least used first."""
    sources = Sources("2001:db8:5::/64")
    seen = set()
    for _ in range(100):
        found = sources.candidates(A6, HERE, lambda source: int(source[-1], 16), 0.0)
        seen |= set(found)

        assert len(set(found)) == NETWORK_CANDIDATES
        assert [int(source[-1], 16) for source in found] == sorted(int(source[-1], 16) for source in found)

    assert len(seen) == 100 * NETWORK_CANDIDATES
    assert all(ipaddress.ip_address(source) in ipaddress.ip_network("2001:db8:5::/64") for source in seen)


def test_a_pinned_network() -> None:
    """A host is pinned to one address of a network, and to another one if that fails, and only then."""
    sources = Sources("2001:db8:5::/64", choose="pinned")
    before = {origin: first(sources, to=A6, origin=origin) for origin in origins(50)}
    failed, moved = next(iter(before.items()))[::-1]
    sources.set_aside(failed, None, "gone", 0.0)

    assert len(set(before.values())) == 50
    assert first(sources, to=A6, origin=moved) not in before.values()
    assert all(first(sources, to=A6, origin=origin) == pin for origin, pin in before.items() if origin != moved)


def test_a_network_of_the_other_ip_version() -> None:
    """A network has no source for destinations of the other IP version, and says so."""
    sources = Sources("2001:db8:5::/64")

    assert sources.candidates(A, HERE, nothing, 0.0) == []
    assert sources.reasons(A, 0.0) == {"2001:db8:5::/64": "it is of the other IP version"}
    assert Sources("192.0.2.0/24").candidates(A6, HERE, nothing, 0.0) == []


def test_reasons_of_a_network() -> None:
    """A network whose addresses failed names some of them."""
    sources = Sources("192.0.2.4/30")
    for source in sources.candidates(A, HERE, nothing, 0.0):
        sources.set_aside(source, None, "not routed", 0.0)

    assert sources.candidates(A, HERE, nothing, 1.0) == []
    assert sources.reasons(A, 1.0).keys() == {"192.0.2.4/30", "192.0.2.5", "192.0.2.6"}


def test_only_networks_may_be_foreign() -> None:
    """Addresses that no interface has are bound only where a network is given."""
    assert Sources("2001:db8:5::/64").foreign
    assert not Sources([S]).foreign
    assert not Sources("auto").foreign


def test_failures_without_end_are_forgotten() -> None:
    """The addresses of a network that failed long ago are not remembered for ever."""
    sources = Sources("2001:db8:5::/64")
    for number in range(5000):
        sources.set_aside(f"2001:db8:5::{number:x}", None, "gone", number * 1.0)

    assert len(sources._aside) <= 1001


def test_destinations_without_end_are_forgotten() -> None:
    """Whose turn it is is not remembered for every destination there ever was."""
    sources = Sources([S, T])
    for number in range(30_000):
        sources.candidates(Destination(f"198.51.{number // 250}.{number % 250}", 443), HERE, nothing, 0.0)

    assert len(sources._turns) <= 10_000


def test_sources_of_what_a_face_is_given() -> None:
    """A face takes nothing, a word, a network, addresses as texts or objects, or Sources, used as they are."""
    sources = Sources([S])

    assert Sources.of(sources) is sources
    assert Sources.of(None).word == "system"
    assert Sources.of("auto").word == "auto"
    assert Sources.of((S, T)).addresses == (S, T)
    assert Sources.of(iter([ipaddress.ip_address(S6)])).addresses == (S6,)  # type: ignore[list-item]
    assert Sources.of("2001:DB8:5::/64").network == ipaddress.ip_network("2001:db8:5::/64")


def test_addresses_are_kept_in_their_usual_form() -> None:
    """An address counts in the form that the kernel gives it, however it was written."""
    assert Sources(["2001:DB8:0:0::5"]).addresses == ("2001:db8::5",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "is empty: give at least one address, or leave it out"),
        (["10.0.0.300"], "'10.0.0.300' is no IP address"),
        (["eth0"], "'eth0' is no IP address"),
        (["10.0.0.5:0"], "no IP address"),
        ([5], "5 is no IP address"),
        ([None], "None is no IP address"),
        (["10.0.0.0/24"], "no IP address"),
        (["0.0.0.0"], "can never be bound"),
        (["::"], "can never be bound"),
        (["224.0.0.1"], "can never be bound"),
        (["10.0.0.5", "10.0.0.5"], "'10.0.0.5' is given twice"),
        (["2001:db8::5", "2001:DB8:0::5"], "is given twice"),
        ("10.0.0.5", "give a list of addresses, a network such as '10.7.0.0/24', or 'auto'"),
        ("10.0.0.5,10.0.0.6", "give a list of addresses"),
        ("everything", "give a list of addresses"),
        ("10.0.0.5/24", "is no network: 10.0.0.5/24 has host bits set"),
        ("bogus/24", "is no network"),
        ("224.0.0.0/4", "can never be bound"),
        ("0.0.0.0/32", "can never be bound"),
        (b"abcd", "is no IP address"),
        (5, "give a list of addresses"),
    ],
)
def test_sources_that_make_no_sense(given: object, says: str) -> None:
    """What is no address, can never be bound, is given twice or is no known word is refused at once."""
    with pytest.raises(InvalidOption, match=says):
        Sources(given)  # type: ignore[arg-type]


def test_policies_that_make_no_sense() -> None:
    """Unknown policies, and a key for policies that use none, are refused."""
    with pytest.raises(InvalidOption, match="choose='random' is unknown: give one of fewest, round_robin, pinned"):
        Sources([S], choose="random")
    with pytest.raises(InvalidOption, match="key= is for choose='pinned' alone"):
        Sources([S], key=lambda origin: origin.host)


def test_repr_says_what_there_is() -> None:
    """Sources print what they choose from, how, and how many are set aside."""
    sources = Sources([S, T], choose="round_robin")
    sources.set_aside(S, None, "gone", 0.0)

    assert repr(sources) == "<Sources 2 addresses, round_robin, 1 set aside>"
    assert repr(Sources("2001:db8::/64")) == "<Sources 2001:db8::/64, fewest, 0 set aside>"
    assert repr(Sources("auto")) == "<Sources auto, fewest, 0 set aside>"
