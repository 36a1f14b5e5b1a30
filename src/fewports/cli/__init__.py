"""The command ``fewports``: one file per subcommand, of which each has its own help."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from . import demo

INTERRUPTED = 130  # what a shell says of a program that SIGINT ended: 128 + 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that *argv* names; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="fewports", description="Any number of HTTP requests on a handful of local ports."
    )
    parser.add_argument("--version", action="version", version=f"fewports {version('fewports')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add(commands)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # nobody reads on, as under `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what the interpreter flushes when it ends
        code = 1
    return code
