"""The command line: what it prints, how it exits, and what it leaves."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support import need

from fewports import cli
from fewports.cli import demo
from fewports.cli.trial import namespace
from fewports.cli.trial.namespace import NoNamespace
from fewports.cli.trial.run import Outcome, TrialFailed, changes
from fewports.cli.trial.work import Work, do, reason

TESTS = str(Path(__file__).parent)
SMALL = ("--requests", "150", "--ports", "50")
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "error"}


def fewports(
    *arguments: str, wrapper: Sequence[str] = (), prelude: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, under a *wrapper* command and after some Python code."""
    code = f"import sys; {prelude}\nfrom fewports.cli import main; sys.exit(main())"
    command = [*wrapper, sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | environment, timeout=50)


def told(*arguments: str, wrapper: Sequence[str] = (), prelude: str = "") -> dict[str, Any]:
    """Return the JSON of a demo that succeeds in a namespace."""
    run = fewports("demo", "--json", *SMALL, *arguments, wrapper=wrapper, prelude=prelude)

    assert (run.returncode, run.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def in_namespace(answer: dict[str, Any]) -> dict[str, Any]:
    if not answer["namespace"]:
        need.missing(answer["no_namespace"])
    return answer


def family(pid: int) -> set[int]:
    """Return the descendants of a process."""
    children: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        children |= set(map(int, (task / "children").read_text().split()))
    return children.union(*map(family, children))


def running(pids: set[int]) -> set[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    return {pid for pid in pids if state(pid) not in ("", "Z")}  # an orphan is reaped whenever init likes


class TestDemo:
    def test_naive_client_dies_and_fewports_does_all(self) -> None:
        """requests.get fails once it has used up the ports; fewports does all, and leaves no TIME_WAIT."""
        answer = in_namespace(told())
        naive, ours = answer["clients"]

        assert answer["ok"] is True
        assert (answer["ports"], answer["budget"], answer["threads"]) == (50, None, 8)
        assert naive["client"] == "requests.get"
        assert (naive["done"], naive["failed"]) == (50, 100)
        assert (naive["ports_opened"], naive["ports_at_most"], naive["ports_in_time_wait"]) == (50, 50, 50)
        assert naive["error"] == "[Errno 99] Cannot assign requested address"
        assert naive["series"][-1][1] == 50
        assert (ours["done"], ours["failed"], ours["error"]) == (150, 0, None)
        assert 1 <= ours["ports_at_most"] <= 8
        assert (ours["ports_in_time_wait"], ours["series"][-1][1]) == (0, 0)

    def test_plain_ascii_without_rich_and_requests(self) -> None:
        """Without rich, without requests, and on an output that is ASCII, it needs nothing but urllib3."""
        prelude = "sys.modules['rich'] = sys.modules['requests'] = None"
        run = fewports("demo", *SMALL, prelude=prelude, PYTHONIOENCODING="ascii")

        assert (run.returncode, run.stderr) == (0, "")
        assert re.search(r"^urllib3, a pool per request  +50  +100  +50  +50 ", run.stdout, re.M)
        assert re.search(r"^fewports\.PoolManager  +150  +0 ", run.stdout, re.M)
        assert re.search(r"^50 \|-*#+", run.stdout, re.M)

    def test_rich_and_braille(self) -> None:
        """With rich and UTF-8 the picture is in braille; an output that is no terminal gets no control sequence."""
        run = fewports("demo", *SMALL, PYTHONIOENCODING="utf-8")

        assert (run.returncode, run.stderr) == (0, "")
        assert re.search("^50 ┤╌*[\u2800-\u28ff]+", run.stdout, re.M)
        assert re.search(r"^ requests\.get  +50  +100 ", run.stdout, re.M)
        assert "\033" not in run.stdout

    def test_as_plain_user(self) -> None:
        """Who may not make a network namespace makes one within a user namespace."""
        # Root in name only: without CAP_SYS_ADMIN.
        wrapper = [need.program("setpriv"), "--bounding-set=-sys_admin"] if os.geteuid() == 0 else []
        naive, ours = in_namespace(told(wrapper=wrapper))["clients"]

        assert (naive["done"], ours["done"]) == (50, 150)

    def test_without_namespace(self) -> None:
        """Where no namespace can be made it says so, counts the naive client, and holds fewports to the budget."""
        wrapper = [need.program("unshare"), "--user", "--map-root-user", "--net"]
        if subprocess.run([*wrapper, "true"], capture_output=True).returncode:
            need.missing("no user namespace, in which to forbid network namespaces")
        # In a network of its own, which is not the host's; further ones are forbidden.
        prelude = (
            f"sys.path.append({TESTS!r}); from pathlib import Path; from support import rtnetlink; "
            "rtnetlink.set_up('lo'); Path('/proc/sys/user/max_net_namespaces').write_text('0')"
        )
        answer = told("--ports", "5", wrapper=wrapper, prelude=prelude)
        naive, ours = answer["clients"]

        assert (answer["namespace"], answer["ports"], answer["budget"]) == (False, None, 5)
        assert answer["no_namespace"] == "unshare failed: the limit in /proc/sys/user is reached"
        assert (naive["done"], naive["failed"], naive["ports_opened"]) == (150, 0, 150)
        assert (ours["done"], ours["failed"]) == (150, 0)
        assert 1 <= ours["ports_at_most"] <= 5

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
    def test_ends_with_all_its_processes(self, number: int, code: int) -> None:
        """Ctrl-C ends it in order; however it ends, its processes end with it."""
        command = [sys.executable, "-m", "fewports", "demo"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
            deadline = time.monotonic() + 10
            while len(children := family(process.pid)) < 3 and time.monotonic() < deadline:  # trial, server, client
                time.sleep(0.01)
            process.send_signal(number)
            _, errors = process.communicate(timeout=10)
        while running(children) and time.monotonic() < deadline:
            time.sleep(0.01)

        assert len(children) >= 3
        assert process.returncode == code
        assert errors == (b"interrupted\n" if number == signal.SIGINT else b"")
        assert not running(children)

    def test_reader_that_goes_away(self) -> None:
        """Under `| head` it ends without a traceback."""
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "fewports", "demo", *SMALL]
        run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=ENVIRONMENT)
        os.close(write)

        assert (run.returncode, run.stderr) == (1, b"")


def outcome(done: int = 10, failed: int = 0, *, opened: int = 2, series: tuple[tuple[float, int], ...] = ()) -> Outcome:
    error = "[Errno 99] Cannot assign requested address" if failed else None
    series = series or ((0.0, 0), (0.5, opened), (1.0, opened))
    return Outcome(done, failed, error, 1.0, 0.001, opened, opened, 0, series, ((0.0, done, failed),))


class Trials:
    """In place of trial.run: hands out outcomes, or raises them."""

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self._outcomes = iter(outcomes)
        self.calls: list[tuple[int | None, bool]] = []

    def __call__(self, client: str, work: Work, *, ports: int, isolated: bool, watch: float) -> Outcome:
        self.calls.append((work.budget, isolated))
        result = next(self._outcomes)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)


class TestOutcomes:
    """The demo with trials that are made up."""

    def run(self, monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome | Exception, options: str = "") -> int:
        self.trials = Trials(*outcomes)
        monkeypatch.setattr(demo, "run", self.trials)
        return cli.main(["demo", "--requests", "10", "--ports", "4", *options.split()])

    def test_fewports_fails(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """If fewports fails a request the exit code is 1, and the reason is told."""
        code = self.run(monkeypatch, outcome(), outcome(8, 2))

        assert code == 1
        assert "fewports failed 2 of 10 requests: [Errno 99]" in capsys.readouterr().err

    def test_time_is_up(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """If the time does not suffice the exit code is 1; the JSON says so, too."""
        code = self.run(monkeypatch, outcome(), outcome(8), options="--json")
        printed = capsys.readouterr()

        assert code == 1
        assert "the time was up after 7 s, with 8 of 10 requests done" in printed.err
        assert json.loads(printed.out)["reason"] in printed.err

    def test_no_result(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """If a trial comes to no result the exit code is 1."""
        code = self.run(monkeypatch, TrialFailed("it came to no result"), options="--json")

        assert code == 1
        assert capsys.readouterr() == ("", "fewports demo: it came to no result\n")

    @pytest.mark.usefixtures("plain")
    def test_no_namespace(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a namespace both use the host's ports, and the text says that nobody runs out."""
        code = self.run(monkeypatch, NoNamespace("unshare failed"), outcome(opened=10), outcome())
        printed = " ".join(capsys.readouterr().out.split())

        assert code == 0
        assert self.trials.calls == [(None, True), (4, False), (4, False)]
        assert "No network namespace can be made here (unshare failed)." in printed
        assert "the budget: 4 ports" in printed
        assert "requests.get took 10 ports; with 4 it would have died on the way." in printed

    @pytest.mark.usefixtures("plain")
    def test_few_requests(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """If the naive client comes through, that is said."""
        code = self.run(monkeypatch, outcome(), outcome(opened=1))
        printed = " ".join(capsys.readouterr().out.split())

        assert code == 0
        assert "requests.get took 2 of 4 ports, and came through: give it more --requests." in printed
        assert printed.endswith("fewports made do with 1 port.")

    @pytest.mark.usefixtures("plain")
    def test_kernel_cannot_be_asked(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Where the kernel does not tell, there is a table without its counts, and no picture."""
        blind = Outcome(10, 0, None, 1.0, 0.001, 2, None, None, (), ((0.0, 10, 0),))
        code = self.run(monkeypatch, NoNamespace("only Linux has network namespaces"), blind, blind)
        printed = capsys.readouterr().out

        assert code == 0
        assert re.search(r"^fewports\.PoolManager  +10  +0  +\?  +\?  +10$", printed, re.M)
        assert "there is no picture" in printed

    def test_every_key_is_documented(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """The help names each key of the JSON, and each exit code."""
        self.run(monkeypatch, outcome(), outcome(), options="--json")
        answer = json.loads(capsys.readouterr().out)
        with pytest.raises(SystemExit):
            cli.main(["demo", "--help"])
        shown = capsys.readouterr().out
        words = set(re.findall(r"\w+", shown[shown.index("the JSON object") :]))

        assert {*answer, *answer["clients"][0], "0", "1", "2", "130"} <= words


class TestArguments:
    @pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--ports", "0"], ["demo", "--requests", "many"]])
    def test_wrong_ones(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong arguments end with 2 and the usage."""
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)

        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("usage: fewports")

    def test_every_option_has_a_help(self) -> None:
        """The help says what each option does, in lines that fit a terminal."""
        commands = argparse.ArgumentParser().add_subparsers()
        demo.add(commands)
        parser = commands.choices["demo"]

        assert all(action.help for action in parser._actions)
        assert max(map(len, f"{parser.description}\n{parser.epilog}".split("\n"))) <= 80

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """--version tells the version of the package."""
        with pytest.raises(SystemExit) as ended:
            cli.main(["--version"])

        assert ended.value.code == 0
        assert capsys.readouterr().out == f"fewports {importlib.metadata.version('fewports')}\n"


class TestWork:
    def test_bursts_in_turn_over_the_destinations(self) -> None:
        """Each burst is done by all threads at once, over the destinations in turn."""
        seen: list[str] = []
        tally = do(seen.append, ["a", "b"], Work(5, 3, bursts=2))

        assert sorted(seen) == ["a"] * 6 + ["b"] * 4
        assert (tally.done, tally.failed) == (10, 0)
        assert [counts for _, *counts in tally.bursts] == [[5, 0], [5, 0]]

    def test_failures_are_counted(self) -> None:
        """What fails is counted apart, with the reason of the first."""

        def get(url: str) -> None:
            raise ValueError("no")

        tally = do(get, ["a"], Work(4, 2))

        assert (tally.done, tally.failed, tally.error) == (0, 4, "ValueError: no")
        assert tally.told()["seconds"] == 0.0

    def test_time_limit(self) -> None:
        """Past the limit no request is begun, and the work ends."""

        def get(url: str) -> None:
            time.sleep(0.02)

        tally = do(get, ["a"], Work(1000, 1, limit=0.05))

        assert 1 <= tally.done <= 5

    def test_reason_under_the_wrapping(self) -> None:
        """The reason is what the system said, however deep."""
        try:
            try:
                raise OSError(99, "Cannot assign requested address")
            except OSError as error:
                raise RuntimeError("wrapped") from error
        except RuntimeError as error:
            found = reason(error)

        assert found == "[Errno 99] Cannot assign requested address"

    def test_changes(self) -> None:
        """A count that repeats the one before is left out, but for the last."""
        assert changes([]) == []
        assert changes([(0.0, 1), (0.1, 1), (0.2, 2), (0.3, 2), (0.4, 2)]) == [(0.0, 1), (0.2, 2), (0.4, 2)]


class TestNamespace:
    def test_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system is not Linux there are no namespaces."""
        monkeypatch.setattr(sys, "platform", "darwin")

        with pytest.raises(NoNamespace, match="only Linux"):
            namespace.enter(40000, 40010)

    def test_part_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A namespace whose sysctls cannot be written, as in many containers, is none."""

        def read_only(path: str, text: str) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(namespace, "_unshare", nullcontext)
        monkeypatch.setattr(namespace, "_raise_loopback", nullcontext)
        monkeypatch.setattr(namespace, "_write", read_only)

        with pytest.raises(NoNamespace, match=r"setting net\.ipv4\.ip_local_port_range failed: Read-only file system"):
            namespace.enter(40000, 40010)
