import pytest

from fewports.kernel import diag, facts, portable
from fewports.kernel.portable import current


@pytest.mark.parametrize(
    ("name", "version", "system"),
    [
        ("linux", None, portable.LINUX),
        ("android", None, portable.LINUX),
        ("darwin", None, portable.MACOS),
        ("freebsd14", None, portable.FREEBSD),
        ("win32", "10.0.19045", portable.WINDOWS),
        ("win32", "6.0.6002", portable.WINDOWS),
        ("win32", "5.2.3790", portable.WINDOWS_XP),
        ("sunos5", None, portable.OTHER),
    ],
)
def test_system_by_name(name: str, version: str | None, system: portable.System) -> None:
    """sys.platform, and for Windows its version, tell the system; an unknown one gets the safest figures."""
    assert system == current(name, version)


@pytest.fixture
def on_macos(monkeypatch: pytest.MonkeyPatch):
    facts.forget()
    monkeypatch.setattr(portable, "current", lambda: portable.MACOS)
    yield
    facts.forget()


@pytest.mark.usefixtures("on_macos")
def test_facts_elsewhere() -> None:
    """Where the system is not Linux, the table stands in for the sysctls and no feature is there."""
    now = 1000.0

    assert facts.PortRange(49152, 65535, ()) == facts.port_range(now)
    assert facts.time_wait_hold("127.0.0.1", "127.0.0.1", now) == 30.0
    assert len(facts.features().missing()) == 5
    assert "127.0.0.1" in {local.address for local in facts.local_addresses()}


@pytest.mark.usefixtures("on_macos")
def test_diag_elsewhere() -> None:
    """Where the system is not Linux, its sockets cannot be asked for, and the refusal says what to ask first."""
    assert not diag.available()
    with pytest.raises(NotImplementedError, match=r"diag\.available"):
        diag.count()
