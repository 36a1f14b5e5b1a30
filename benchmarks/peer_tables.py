"""What peers.py tells of a case: figures, and a table of them."""

from __future__ import annotations

import statistics
from typing import Any

from peer_bench import Measured, Outcome
from peer_cases import Case


def figures(case: Case, name: str, outcomes: dict[str, Outcome], launched: int) -> dict[str, Any]:
    """Return what is told of one client; the ratio is how many times faster it is than its reference."""
    outcome, reference = outcomes[name], case.reference_of(name)
    if isinstance(outcome, str):
        return {"error": outcome}
    told: dict[str, Any] = {
        "cpu_us": round(1e6 * statistics.median(outcome.cpu), 2),
        "cpu_us_rounds": [round(1e6 * cpu, 2) for cpu in outcome.cpu],
        "requests_per_second": round(1 / statistics.median(outcome.wall), 2),
        "ports": statistics.median(outcome.ports),
        "requests": statistics.median(outcome.requests),
        "memory_mb": outcome.memory and round(outcome.memory, 1),
        "kb_each": round(1000 * outcome.memory / launched, 1) if outcome.memory and case.action == "launch" else None,
        "failed": outcome.failed,
        "reference": reference,
        "ratio": None,
        "ratio_least": None,
        "ratio_rounds": None,
    }
    against = outcomes.get(reference)
    if isinstance(against, Measured):
        ratios = [theirs / own for theirs, own in zip(against.cpu, outcome.cpu, strict=True)]
        told["ratio"] = round(statistics.median(against.cpu) / statistics.median(outcome.cpu), 3)
        told["ratio_least"] = round(min(against.cpu) / min(outcome.cpu), 3)
        told["ratio_rounds"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return told


def table(case: Case, told: dict[str, dict[str, Any]], megabytes: int) -> str:
    unit, cpu = (1000, "CPU ms") if case.big else (1, "CPU us")
    head = ["client", cpu, "least", "faster", "by least", "by round", "MB/s" if case.big else "requests/s"]
    head += ["MB more"] if case.big else ["ports", "requests"]
    head += ["KB each"] if case.action == "launch" else []
    rows = [head]
    notes = []
    for name, figure in told.items():
        if "error" in figure:
            notes.append(f"{name} failed: {figure['error']}")
            continue
        low, high = figure["ratio_rounds"] or (None, None)
        row = [
            name,
            f"{figure['cpu_us'] / unit:.1f}",
            f"{min(figure['cpu_us_rounds']) / unit:.1f}",
            f"{figure['ratio']:.2f}" if low else "-",
            f"{figure['ratio_least']:.2f}" if low else "-",
            f"{low:.2f} to {high:.2f}" if low else "-",
            f"{figure['requests_per_second'] * (megabytes if case.big else 1):,.0f}",
        ]
        row += [f"{figure['memory_mb']:.1f}"] if case.big else [f"{figure['ports']:,.0f}", f"{figure['requests']:,.0f}"]
        row += [f"{figure['kb_each'] or 0:.1f}"] if case.action == "launch" else []
        rows.append(row)
        notes += [f"{name} failed in a round that was made again: {error}" for error in figure["failed"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])
