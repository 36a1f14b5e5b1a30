"""Run a command in namespaces where foreign addresses swallow everything: python isolate.py COMMAND...

The suites have tests that a connect to such an address times out, which behind gateways that answer for everybody fail
with the stock classes already, and tests that are skipped where localhost is not ::1 as well. To be run under
``unshare --net --mount``, by a Python with pytest.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from support.inside import set_up
from support.ns import Network

KINDS = ("net", "mnt")
MS_BIND = 4096  # linux/mount.h
ETC = {
    "/etc/hosts": "127.0.0.1 localhost localhost.\n::1 localhost localhost.\n",
    # Nobody listens there: names that are not known are so at once, instead of after a time-out.
    "/etc/resolv.conf": "nameserver 127.0.0.1\n",
}


def bind(path: str, text: str) -> None:
    """Let *path* have another content in this mount namespace; raise OSError where that is not allowed."""
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mount(file.name.encode(), path.encode(), None, ctypes.c_ulong(MS_BIND), None)
    Path(file.name).unlink()  # the mount keeps it
    if failed:
        raise OSError(ctypes.get_errno(), f"cannot mount over {path}")


def isolated() -> bool:
    """Say whether our namespaces are others than our parent's, whose network and files are not ours to change."""
    return all(os.readlink(f"/proc/self/ns/{kind}") != os.readlink(f"/proc/{os.getppid()}/ns/{kind}") for kind in KINDS)


if __name__ == "__main__":
    if not isolated():
        sys.exit("isolate.py: to be run under unshare --net --mount")
    set_up(Network(32768, 60999, drop_all=True))
    for path, text in ETC.items():
        bind(path, text)
    os.execvp(sys.argv[1], sys.argv[1:])
