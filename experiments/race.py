"""Contestants that take turns, so that whatever else the machine does weighs on all of them alike.

Wall time and CPU-seconds per step are medians over rounds; compare CPU-seconds first on a shared machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Contestant(Protocol):
    """Something that can run steps."""

    name: str

    def run(self, steps: int) -> list[Any]:
        """Runs the next steps to their end and returns what each gave: a loss, the tokens of a text."""
        ...

    def memory(self) -> float | None:
        """Bytes that a step needs beyond its parameters and optimizer state, where that is known."""
        ...


def race(
    contestants: Sequence[Contestant], rounds: int, steps: int, least_seconds: float = 0.0
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Rounds of ``steps`` steps each, in turns; the first round, which compiles, is not counted.

    A turn shorter than ``least_seconds`` goes on with as many steps again, and began with a step that is not counted:
    the first after another contestant's finds its caches swept, and gigabytes of the other's memory still being given
    back beside it, which in a turn of one short step would be all that is measured.

    Returns:
      The measurements by contestant, the first of which is ours, and what the first round gave.
    """
    first, short = {}, set()
    for c in contestants:
        began = time.perf_counter()
        first[c.name] = c.run(steps)
        if time.perf_counter() - began < least_seconds:
            short.add(c.name)
    wall: dict[str, list[float]] = {c.name: [] for c in contestants}
    cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
    for i in range(rounds):
        for c in contestants:
            if c.name in short:
                c.run(1)
            began, used = time.perf_counter(), time.process_time()
            done = 0
            while not done or time.perf_counter() - began < least_seconds:
                c.run(steps)
                done += steps
            cpu[c.name].append((time.process_time() - used) / done)
            wall[c.name].append((time.perf_counter() - began) / done)
        print(f"\rround {i + 1}/{rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    base = contestants[0].name
    median = statistics.median
    entries = {
        c.name: {
            "wall_seconds": median(wall[c.name]),
            "cpu_seconds": median(cpu[c.name]),
            "wall_spread": [min(wall[c.name]), max(wall[c.name])],
            "cpu_spread": [min(cpu[c.name]), max(cpu[c.name])],
            "ours_over_this_wall": median(wall[base]) / median(wall[c.name]),
            "ours_over_this_cpu": median(cpu[base]) / median(cpu[c.name]),
            "temporary_bytes": c.memory(),
        }
        for c in contestants
    }
    return entries, first


Columns = Mapping[str, Callable[[dict[str, Any]], str]]


def table(title: str, entries: Mapping[str, dict[str, Any]], columns: Columns) -> list[str]:
    """The lines of a table with a row for each contestant; ``columns`` maps a heading to what a row says under it."""
    width = max(16, *(len(name) for name in (title, *entries)))
    widths = {head: max(len(head), *(len(cell(e)) for e in entries.values())) for head, cell in columns.items()}
    lines = [" ".join([f"{title:<{width}}", *(f"{head:>{widths[head]}}" for head in columns)])]
    for name, entry in entries.items():
        cells = (f"{cell(entry):>{widths[head]}}" for head, cell in columns.items())
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return lines
