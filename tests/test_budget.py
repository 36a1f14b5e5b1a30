"""How many ports may be held: numbers, shares, rules, and what is refused when a budget is made."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nan

import pytest

from fewports.address import Destination
from fewports.budget import DEFAULT_WAIT, Budget, Group, Limit, normal_host
from fewports.errors import FewportsError, InvalidOption

HERE = Destination("203.0.113.9", 443)
SIX = Destination("2001:db8:1::9", 443)


@pytest.mark.parametrize(
    ("value", "capacity", "ports"),
    [
        (1, 100, 1),
        (500, 100, 500),
        ("80%", 28232, 22585),
        ("60%", 5, 3),
        ("29%", 100, 29),
        (" 12.5 % ", 80, 10),
        ("100%", 50, 50),
        ("0.001%", 50, 1),
    ],
)
def test_limit_is_a_number_or_a_share(value: int | str, capacity: int, ports: int) -> None:
    """A limit is a number of ports or a share of the range, rounded down but never less than one port."""
    assert Limit.parse(value).of(capacity) == ports


def test_shares_are_rounded_exactly() -> None:
    """No whole percentage of any range loses a port to binary fractions."""
    for percent in range(1, 101):
        limit = Limit.parse(f"{percent}%")
        for capacity in (1, 3, 7, 50, 99, 100, 1000, 16384, 28232, 64512):
            assert limit.of(capacity) == max(1, int(Fraction(percent, 100) * capacity))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, "would refuse every connection; give at least 1"),
        (-1, "give at least 1"),
        (True, "a number of ports or a percentage such as '60%', not True"),
        (0.5, "a number of ports or a percentage such as '60%', not 0.5"),
        (500.0, "a number of ports or a percentage"),
        (None, "a number of ports or a percentage"),
        ("80", "give a number of ports, or a percentage such as '60%'"),
        ("", "give a number of ports, or a percentage"),
        ("most", "give a number of ports, or a percentage"),
        ("-5%", "give a number of ports, or a percentage"),
        ("1e1%", "give a number of ports, or a percentage"),
        ("٣%", "give a number of ports, or a percentage"),
        ("0%", "not between 0 and 100 %"),
        ("0.0%", "not between 0 and 100 %"),
        ("101%", "not between 0 and 100 %"),
    ],
)
def test_a_limit_that_makes_no_sense(value: object, says: str) -> None:
    """Zero, less, more than everything, other types and other words are refused, as limit and as rule."""
    with pytest.raises(InvalidOption, match=says):
        Budget(value)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=says):
        Budget(rules={"example.com": value})  # type: ignore[dict-item]
    if value is not None:
        with pytest.raises(InvalidOption, match=says):
            Budget.of(value)  # type: ignore[arg-type]


def test_an_invalid_option_is_a_value_error() -> None:
    """InvalidOption is both fewports' own and a ValueError, so that either except clause catches it."""
    assert issubclass(InvalidOption, FewportsError)
    assert issubclass(InvalidOption, ValueError)


def test_budget_of_what_a_face_is_given() -> None:
    """A face takes nothing, a number, a percentage or a Budget, which is used as it is."""
    budget = Budget(5)

    assert Budget.of(budget) is budget
    assert str(Budget.of(None).limit) == "80%"
    assert str(Budget.of(7).limit) == "7"
    assert str(Budget.of("12.5%").limit) == "12.5%"


def test_waiting_is_the_default_and_bounded() -> None:
    """A full budget keeps callers waiting for 30 s unless another time is given."""
    assert (Budget().refuses, Budget().wait) == (False, DEFAULT_WAIT)
    assert Budget(wait=2).wait == 2.0
    assert Budget(when_full="wait", wait=0.5).wait == 0.5


def test_refusing_waits_not_at_all() -> None:
    """With when_full='refuse' nobody waits."""
    assert Budget(when_full="refuse").refuses
    assert Budget(when_full="refuse").wait == 0.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"when_full": "block"}, "when_full='block' is unknown: give 'wait' or 'refuse'"),
        ({"when_full": None}, "give 'wait' or 'refuse'"),
        ({"when_full": "refuse", "wait": 5}, "wait= never applies with when_full='refuse'; leave one of them out"),
        ({"wait": 0}, "to wait not at all, say when_full='refuse'"),
        ({"wait": -1}, "not a time in seconds"),
        ({"wait": inf}, "not a time in seconds"),
        ({"wait": nan}, "not a time in seconds"),
        ({"wait": "5"}, "not a time in seconds"),
        ({"wait": True}, "not a time in seconds"),
        ({"connections": 0}, "connections=0 would let nobody connect"),
        ({"dialing": 0}, "would let nobody connect; give at least 1, or None"),
        ({"dialing": -1}, "give at least 1, or None"),
        ({"dialing": True}, "give at least 1, or None"),
        ({"dialing": 1.5}, "give at least 1, or None"),
        ({"dialing": "3"}, "give at least 1, or None"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], says: str) -> None:
    """Unknown words, waits that are none, and a pace of nobody are refused with what to give instead."""
    with pytest.raises(InvalidOption, match=says):
        Budget(5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rule",
    [
        "https://example.com",
        "http://203.0.113.9:80",
        "example.com:443",
        "example.com/path",
        "203.0.113.9:0",
        "203.0.113.9:65536",
        "[2001:db8::1]:0",
        "*.example.com",
        ".example.com",
        "exam ple.com",
        "-example.com",
        "a..b",
        "x" * 64,
        "1.2.3",
        "203.0.113.300",
        "224.0.0.1",
        "224.0.0.0/4",
        "239.1.2.3:80",
        "ff02::1",
        "[ff02::1]:443",
        "0.0.0.0",
        "0.0.0.0:80",
        "::",
        "[::]:80",
        "[fe80::1%eth0]:80",
        "fe80::1%eth0",
    ],
)
def test_a_rule_that_can_never_apply(rule: str) -> None:
    """A rule with a scheme, a port on a name, no port, no host, or no address one connects to is an error at once."""
    with pytest.raises(InvalidOption, match=r"the rule '.*' (can never apply|is no network): .+"):
        Budget(rules={rule: 5})


@pytest.mark.parametrize("rule", ["https://example.com", "example.com:443", "http://203.0.113.9:80", "*.example.com"])
def test_what_to_give_in_place_of_a_url(rule: str) -> None:
    """Who gives a URL, a port with a name, or a pattern is told which forms there are."""
    with pytest.raises(InvalidOption, match="give a host name without scheme and port, an address:port such as"):
        Budget(rules={rule: 5})


def test_a_network_with_host_bits() -> None:
    """A network whose address has host bits set is refused, because it might mean one address or many."""
    with pytest.raises(InvalidOption, match=r"10\.0\.0\.1/8 has host bits set"):
        Budget(rules={"10.0.0.1/8": 5})


@pytest.mark.parametrize("rule", [5, "", None, b"example.com", ("203.0.113.9", 443)])
def test_a_rule_that_is_no_text(rule: object) -> None:
    """A rule is for a text that is not empty."""
    with pytest.raises(InvalidOption, match="a rule is for a host name, an address:port or a network, not"):
        Budget(rules={rule: 5})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Example.com", "example.COM"),
        ("example.com", "example.com."),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "bücher.example"),
        ("[2001:db8::1]:443", "[2001:DB8:0::1]:443"),
        ("203.0.113.9", "203.0.113.9/32"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("2001:db8::/32", "2001:db8:0::/32"),
    ],
)
def test_two_rules_that_say_the_same(one: str, other: str) -> None:
    """Of two rules that are one after normalisation, one would never apply: refused."""
    with pytest.raises(InvalidOption, match="can never apply: another one says the same"):
        Budget(rules={one: 5, other: 6})


def test_the_default_account_is_the_destination() -> None:
    """Without rules each address and port has an account of its own, with the budget's limit."""
    budget = Budget(500)

    assert budget.uniform
    assert budget.group(HERE, "example.com") == Group("203.0.113.9:443", Limit(500, None))
    assert budget.group(SIX) == Group("[2001:db8:1::9]:443", Limit(500, None))


def test_a_host_rule_bounds_all_its_addresses() -> None:
    """Under a host rule all addresses and ports that the name led to share one account."""
    budget = Budget(500, rules={"api.example.com": 40})

    assert not budget.uniform
    assert budget.group(HERE, "api.example.com") == Group("api.example.com", Limit(40, None))
    assert budget.group(SIX, "api.example.com") == budget.group(HERE, "api.example.com")
    assert budget.group(HERE, "other.example.com").name == "203.0.113.9:443"
    assert budget.group(HERE, "").name == "203.0.113.9:443"


@pytest.mark.parametrize(
    "asked", ["bücher.example", "BÜCHER.Example.", "xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE."]
)
@pytest.mark.parametrize("rule", ["bücher.example", "Bücher.example.", "xn--bcher-kva.example"])
def test_names_are_compared_in_one_form(rule: str, asked: str) -> None:
    """Case, a final dot, and IDNA make no difference between a rule and the name of a request."""
    assert Budget(rules={rule: 5}).group(HERE, asked) == Group("xn--bcher-kva.example", Limit(5, None))


def test_names_that_idna_refuses_stay_as_they_are() -> None:
    """A name that has no IDNA form is compared as it is; as a rule it can never apply."""
    assert normal_host("Ünmöglich..example") == "ünmöglich..example"
    with pytest.raises(InvalidOption, match="can never apply"):
        Budget(rules={"ünmöglich..example": 5})


def test_a_network_shares_one_account() -> None:
    """Under a network rule all its addresses share one account, IPv4 and IPv6 alike."""
    budget = Budget(500, rules={"203.0.113.0/24": 40, "2001:db8::/32": "10%"})

    assert budget.group(HERE) == Group("203.0.113.0/24", Limit(40, None))
    assert budget.group(Destination("203.0.113.250", 80)).name == "203.0.113.0/24"
    assert budget.group(Destination("203.0.114.1", 80)).name == "203.0.114.1:80"
    assert budget.group(SIX) == Group("2001:db8::/32", Limit(None, 0.1))


def test_a_lone_address_covers_all_its_ports() -> None:
    """A rule for an address without port holds for all its ports, under the name of the address."""
    budget = Budget(500, rules={"203.0.113.9": 40, "[2001:db8:1::9]": 41})

    assert budget.group(HERE) == Group("203.0.113.9", Limit(40, None))
    assert budget.group(Destination("203.0.113.9", 80)).name == "203.0.113.9"
    assert budget.group(SIX) == Group("2001:db8:1::9", Limit(41, None))


def test_a_scoped_address() -> None:
    """A link-local rule names its interface by number, as destinations do."""
    budget = Budget(500, rules={"[fe80::1%2]:80": 7, "fe80::/64": 8})

    assert budget.group(Destination("fe80::1%2", 80)).limit.ports == 7
    assert budget.group(Destination("fe80::1%3", 80)).limit.ports == 8


@pytest.mark.parametrize(
    ("destination", "host", "limit"),
    [
        (HERE, "api.example.com", 1),
        (Destination("203.0.113.9", 80), "api.example.com", 2),
        (Destination("203.0.113.9", 80), "", 3),
        (Destination("203.0.113.8", 80), "", 4),
        (Destination("203.0.1.1", 80), "", 5),
        (Destination("198.51.100.1", 80), "", 6),
        (SIX, "", 7),
        (Destination("2001:db8:1::8", 443), "", 8),
        (Destination("2001:db8:2::8", 443), "", 9),
    ],
)
def test_the_most_exact_rule_counts(destination: Destination, host: str, limit: int) -> None:
    """Address and port, then host name, then the longest network, then the budget itself."""
    budget = Budget(
        9,
        rules={
            "0.0.0.0/0": 6,
            "203.0.0.0/16": 5,
            "203.0.113.9": 3,
            "203.0.113.0/24": 4,
            "api.example.com": 2,
            "203.0.113.9:443": 1,
            "2001:db8:1::/48": 8,
            "[2001:db8:1::9]:443": 7,
        },
    )

    assert budget.group(destination, host).limit.ports == limit


def test_repr_says_what_holds() -> None:
    """A budget prints its limit, how many rules it has, and what happens when it is full."""
    assert repr(Budget("60%", rules={"a.example": 5}, wait=2)) == "<Budget 60%, 1 rules, wait 2 s>"
    assert repr(Budget(7, when_full="refuse")) == "<Budget 7, 0 rules, refuse>"
