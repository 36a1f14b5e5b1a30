"""Run the own tests of a library twice, stock and with fewports' classes in place, and compare.

    python tests/upstream/run.py urllib3|requests|httpx|httpx2 [--stock-only] [--select EXPR] [--json FILE]

The measure: whatever passes with the stock classes passes with ours. Exceptions stand in docs/urllib3-tests.md,
requests-tests.md and, for httpx and httpx2, httpx-tests.md, a line ``- `node id` — reason`` each; an id without its
[parameters] stands for all of them.
Exit code 1: a difference is not listed there, or one that is listed passes. The version tested is the one installed
beside the Python that runs this; the tests come with its source distribution and run in a virtual environment of their
own, without the network where namespaces can be made. That of httpx2 has no tests: those of httpx are run, with its
names in place of httpx's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = {"urllib3": "test", "requests": "tests", "httpx": "tests", "httpx2": "tests"}
AT_TIMES = "at times "  # so begins the reason of what may pass as well
SERIAL = ("httpx", "httpx2")  # their server has one port
RENAMED = {"httpx2": ("httpx", re.compile(r"\b(httpx|httpcore)\b"))}  # whose tests are another's, under other names
LISTED = re.compile(r"^- `(?P<test>.+?)` — (?P<reason>.+)$", re.MULTILINE)
MANY = 40  # failures; so many are no accident, and running them again could take half an hour
TEST_TIMEOUT = 30  # seconds a test; the longest passing one takes 6


class Options(NamedTuple):
    """What the command line says."""

    suite: str
    stock_only: bool
    select: str
    json: Path | None
    jobs: int
    venv: Path
    sources: Path
    package: str


class Run(NamedTuple):
    """How one run of a suite ended: outcome and reason by node id, what was replaced, and seconds of wall time."""

    outcomes: dict[str, str]
    reasons: dict[str, str]
    replaced: list[str]
    seconds: float

    @property
    def passed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}

    def but(self, again: Run) -> Run:
        """Return this run with the outcomes of those tests that were run again."""
        return Run(
            self.outcomes | again.outcomes,
            {**self.reasons, **again.reasons},
            self.replaced,
            self.seconds + again.seconds,
        )

    def __str__(self) -> str:
        numbers = [
            f"{list(self.outcomes.values()).count(kind)} {kind}" for kind in ("passed", "failed", "skipped", "xfailed")
        ]
        return f"{', '.join(numbers)} in {self.seconds:.0f} s"


def environment(options: Options) -> Path:
    """Return the Python of the virtual environment, made or brought up to date if need be."""
    python = options.venv / "bin" / "python"
    wanted = [f"{name}=={version(name)}" for name in TESTS]
    needed = (HERE / "requirements.txt").read_text() + "\n".join([*wanted, sys.version])
    stamp = options.venv / "fewports-stamp"
    if not stamp.exists() or stamp.read_text() != _digest(needed):
        if options.venv.exists() and not stamp.exists():
            sys.exit(f"{options.venv} is none of ours: remove it, or name another --venv")
        print(f"making {options.venv}", flush=True)
        venv.create(options.venv, clear=True, with_pip=True)
        stamp.touch()
        _check([python, "-m", "pip", "install", "-qq", "-r", HERE / "requirements.txt", *wanted])
        stamp.write_text(_digest(needed))
    if not options.stock_only and options.package == "fewports":
        # Quick, and the extras may have changed.
        _check([python, "-m", "pip", "install", "-qq", *wanted, "-e", f"{ROOT}[requests,httpx,httpx2,socks]"])
    return python


def sources(options: Options, python: Path) -> Path:
    """Return the unpacked source distribution of the installed version, or a copy of it under other names."""
    if options.suite not in RENAMED:
        return _unpacked(options.suite, options, python)
    other, names = RENAMED[options.suite]
    original = _unpacked(other, options, python)
    place = options.sources / f"{options.suite}-{version(options.suite)}-by-{original.name}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(original / TESTS[other], place / TESTS[options.suite])
    (place / "pyproject.toml").write_text((original / "pyproject.toml").read_text())  # it has pytest's options
    for path in place.rglob("*.py"):
        path.write_text(names.sub(r"\g<1>2", path.read_text()))
    return place


def _unpacked(name: str, options: Options, python: Path) -> Path:
    named = f"{name}-{version(name)}"
    place = options.sources / named
    if not place.exists():
        options.sources.mkdir(parents=True, exist_ok=True)
        # pip builds the metadata of what it downloads; with build isolation it fetches what that needs.
        pip: list[str | Path] = [python, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", name]
        _check([*pip, "-d", options.sources, named.replace("-", "==")])
        with tarfile.open(options.sources / f"{named}.tar.gz") as archive:
            archive.extractall(options.sources, filter="data")
    return place


def run(options: Options, python: Path, place: Path, *, ours: bool, only: list[str] | None = None) -> Run:
    """Run the suite, or *only* some tests one after the other, with the stock classes or with ours."""
    with tempfile.TemporaryDirectory(prefix="fewports-upstream-") as directory:
        report, arguments = Path(directory, "outcomes"), Path(directory, "tests")
        # loadscope: a class starts its servers in one process only.
        command = [python, "-m", "pytest", "-q", "--no-header", "--no-summary", "--tb=short", "-p", "replace"]
        command += ["-p", "no:cacheprovider", "--timeout", TEST_TIMEOUT]
        if only is None:
            jobs = 1 if options.suite in SERIAL else options.jobs
            command += ["-n", jobs, "--dist", "loadscope", "-k", options.select, TESTS[options.suite]]
        else:
            arguments.write_text("\n".join(only))
            command += [f"@{arguments}"]
        start = time.monotonic()
        environ = {
            **os.environ,
            "FEWPORTS_OUTCOMES": str(report),
            "FEWPORTS_UPSTREAM": options.suite if ours else "",
            "FEWPORTS_PACKAGE": options.package,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")])),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [*isolation(python), *command]
        done = subprocess.run(
            list(map(str, command)), cwd=place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if not report.exists():
            sys.exit(f"pytest told no outcomes (exit code {done.returncode}):\n{done.stdout[-5000:]}")
        told = json.loads(report.read_text())
    return Run(told["outcomes"], told["reasons"], told["replaced"], time.monotonic() - start)


def isolation(python: Path) -> list[str | Path]:
    """Return what to put before a command to run it without the network; nothing where that cannot be had."""
    unshare = shutil.which("unshare")
    if not unshare:
        return []
    for way in ([], ["--user", "--map-root-user"]):
        prefix: list[str | Path] = [unshare, *way, "--net", "--mount", python, HERE / "isolate.py"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    return []


def settled(options: Options, python: Path, place: Path, *, ours: bool, against: set[str] | None = None) -> Run:
    """Run the suite, and what failed once more, by itself: a failure counts if it stays.

    With *against* only those failures are run again which are in it; more than MANY are not.
    """
    first = run(options, python, place, ours=ours)
    failed = [test for test, outcome in first.outcomes.items() if outcome == "failed" and "::" in test]
    again = [test for test in failed if against is None or test in against]
    if not again or len(again) > MANY:
        return first
    return first.but(run(options, python, place, ours=ours, only=again))


def listed(options: Options) -> dict[str, str]:
    """Return the exceptions and their reasons."""
    page = ROOT / "docs" / f"{RENAMED.get(options.suite, [options.suite])[0]}-tests.md"
    text = page.read_text() if page.exists() else ""
    return {match["test"]: match["reason"] for match in LISTED.finditer(text)}


def compare(options: Options, stock: Run, ours: Run) -> bool:
    """Print what differs; say whether it is what is listed."""
    known = listed(options)
    different = sorted(stock.passed - ours.passed)
    unlisted = [test for test in different if _entry(test, known) is None]
    for test in unlisted:
        print(f"DIFFERENT: {test}\n    {_indented(ours.reasons.get(test, ours.outcomes.get(test, 'not run')))}")
    needed = {_entry(test, known) for test in different}
    existing = {_entry(test, known) for test in stock.outcomes}
    # What fails with the stock classes says nothing of ours.
    told = {_entry(test, known) for test in stock.passed}
    own = options.suite not in RENAMED  # else the page is another's, too
    passing = sorted(test for test in known.keys() & told - needed if not known[test].startswith(AT_TIMES))
    stale = [(test, "PASSES") for test in passing if own]
    if own and not options.select:
        stale += [(test, "NO TEST") for test in sorted(known.keys() - existing)]
    for test in sorted(known.keys() & needed):
        print(f"listed: {test} — {known[test]}")
    for test, what in stale:
        print(f"LISTED, BUT {what}: {test}")
    print(f"{len(stock.passed)} pass with the stock classes; of these {len(different)} do not with ours", end=" ")
    print(f"({len(different) - len(unlisted)} of them listed)")
    return not unlisted and not stale


def _entry(test: str, known: dict[str, str]) -> str | None:
    """Return the line that lists *test*: its own, or that of the function with all its parameters."""
    return next((name for name in (test, test.partition("[")[0]) if name in known), None)


def main() -> None:
    options = _options()
    python = environment(options)
    place = sources(options, python)
    if not isolation(python):
        print("no network namespace here: tests of addresses that do not answer depend on the network")
    stock = settled(options, python, place, ours=False)
    told = {"stock": stock._asdict()}
    print(f"stock: {stock}", flush=True)
    fine = True
    if options.stock_only:
        for test, outcome in sorted(stock.outcomes.items()):
            if outcome == "failed":
                print(f"fails with the stock classes: {test}\n    {_indented(stock.reasons[test])}")
    else:
        # What is listed is known to fail: it need not be run again, nor keep a few others from it.
        known = listed(options)
        surprising = {test for test in stock.passed if _entry(test, known) is None}
        ours = settled(options, python, place, ours=True, against=surprising)
        told["ours"] = ours._asdict()
        print(f"ours:  {ours}")
        if not ours.replaced:
            sys.exit("nothing was replaced")
        fine = compare(options, stock, ours)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))
    sys.exit(not fine)


def _options() -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=TESTS)
    parser.add_argument("--stock-only", action="store_true", help="do not run with our classes; list what fails")
    parser.add_argument("--select", default="", metavar="EXPR", help="pytest's -k")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all outcomes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="processes (default: one a core)")
    parser.add_argument("--venv", type=Path, default=ROOT / ".upstream-venv")
    parser.add_argument("--sources", type=Path, default=ROOT / "build" / "upstream")
    parser.add_argument("--package", default="fewports", help="where our classes are (to try this script)")
    given = parser.parse_args()
    given.venv, given.sources = given.venv.absolute(), given.sources.absolute()
    return Options(**vars(given))


def _check(command: list[str | Path]) -> None:
    if subprocess.run(list(map(str, command)), check=False).returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _indented(text: str) -> str:
    return text[:500].replace("\n", "\n    ")


if __name__ == "__main__":
    main()
