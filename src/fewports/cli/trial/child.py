"""A process of our own that is told in JSON what to do, and answers in lines of JSON.

A child ends when its standard input does: with its parent, however that ends. It is in no terminal's
group, so Ctrl-C reaches the parent alone, which then ends its children in order.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, Self

PATIENCE = 5.0  # seconds for a child to end by itself


class Child:
    """The parent's end. *main* is module:function, *settings* its keyword arguments."""

    def __init__(self, main: str, settings: dict[str, Any]) -> None:
        self._main = main
        start = f"from {__name__} import run; run()"
        # -P: a file of the user's working directory may be called requests.py; what we can import, it can.
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended: read() says so
            self._process.stdin.write(json.dumps([main, settings]) + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hang_up()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def read(self, timeout: float) -> dict[str, Any]:
        """Return the next line; raise RuntimeError if the child ends, or is killed after *timeout* seconds."""
        assert self._process.stdout
        timer = threading.Timer(timeout, self._process.kill)
        timer.daemon = True  # Ctrl-C within start() would leave it to be waited for
        try:
            timer.start()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RuntimeError(f"{self._main} ended with exit code {self._process.wait()} and no answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def finish(self) -> dict[str, Any]:
        """Tell the child to end, and return its last line."""
        self._hang_up()
        return self.read(PATIENCE)

    def _hang_up(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def run() -> None:
    """Be the child: do what the first line of the standard input says, and tell what that returns."""
    line = sys.stdin.readline()
    if not line:  # the parent has ended before it could say
        return
    main, settings = json.loads(line)
    module, _, name = main.partition(":")
    answer = getattr(importlib.import_module(module), name)(**settings)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent hangs up once it has this, and we end anyway
    tell(answer)


def tell(answer: dict[str, Any]) -> None:
    """Send a line to the parent."""
    try:
        print(json.dumps(answer), flush=True)
    except BrokenPipeError:  # it has ended, and so do we
        os._exit(1)


def await_parent() -> None:
    """Return when the parent hangs up."""
    # Not by sys.stdin, whose lock a thread waiting here would hold while the interpreter ends.
    while os.read(0, 1024):
        pass


def end_with_parent() -> None:
    """Have SIGTERM sent to the main thread when the parent hangs up."""
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        await_parent()
        if sys.platform == "win32":
            os._exit(1)
        else:
            signal.pthread_kill(main, signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
