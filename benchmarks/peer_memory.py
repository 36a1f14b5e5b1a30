"""How much memory this process takes, and has taken at most."""

from __future__ import annotations

from pathlib import Path


def reset_peak() -> float:
    """Forget the peak of the memory so far; return the memory in use, in kB."""
    # Not by getrusage: its ru_maxrss begins with that of the process that started this one, even after exec.
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to the current value
    return memory_of("VmRSS")


def memory_of(name: str) -> float:
    """Return a field of /proc/self/status, in kB of 1,000 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1.024
    raise LookupError(name)
