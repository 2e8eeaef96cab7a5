"""Kernels beside what XLA makes of the same without them, by what the TPU compiler expects of both; no chip runs.

XLA notes how many cycles it expects of each of its fusions; those of a loop are taken as often as it goes round. It has
no such note of a Pallas kernel, for which all bundles of its final schedule (`bundles`) are counted at each step of its
grid and each turn of a loop within it: more than there are, since some serve only the first step or stand outside the
loop. Stalls are left out of both, so a ratio near 1 decides nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from experiments.aot import tpu
from experiments.aot.cases import Case

RECURRENCES = {"ssd": "xla", "selective_scan": "tree"}  # and the implementation that serves a TPU without the kernel


def compare(gradient: Case, schedules: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows forward and backward of a recurrence: cycles and temporary bytes of its kernels, and of XLA at the same.

    Args:
      gradient: the case.
      schedules: of each of its kernels, as `bundles.count` gives them.
    """
    operation, rows = gradient.kernel.partition("/")[0], []
    for direction in ("forward", "gradient"):
        case = dataclasses.replace(gradient, direction=direction)
        kernels = dict(steps(tpu.traced(case).jaxpr.jaxpr))
        row = {**vars(case), "steps": kernels}
        for name, implementation in (("tpu", "tpu"), ("xla", RECURRENCES[operation])):
            compiled = tpu.executable(dataclasses.replace(case, kernel=f"{operation}/{implementation}"))
            row[f"{name}_cycles"] = of_program(compiled.as_text())
            row[f"{name}_temp_bytes"] = compiled.memory_analysis().temp_size_in_bytes
        row["tpu_cycles"] += sum(schedules[name]["bundles"] * count for name, count in kernels.items())
        rows.append(row)
    return rows


def of_program(text: str) -> int:
    """The cycles expected of a compiled program's text, its Pallas kernels left out."""
    parts: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = parts[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)

    def cycles(name: str) -> int:
        total = 0
        for line in parts[name]:
            total += sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', line))
            if loop := re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                bounds = re.findall(r"constant\((\d+)\)", "\n".join(parts[loop[1]]))  # from 0 to the only one
                total += cycles(loop[2]) * max(map(int, bounds))
            total += sum(cycles(called) for called in re.findall(r" call\(.*to_apply=%?([\w.-]+)", line))
        return total

    return cycles(entry)


def steps(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """(name, steps) of every Pallas kernel that a jaxpr calls: of its grid, times the turns of a loop within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            grid = math.prod(equation.params["grid_mapping"].grid)
            yield equation.params["name"], grid * turns(equation.params["jaxpr"])
        else:
            for inner in _inner(equation):
                yield from steps(inner)


def turns(jaxpr: Any) -> int:
    """How often the innermost part of a kernel's longest loop is passed; 1 if it has none."""
    most = 1
    for equation in jaxpr.eqns:
        once = equation.params["length"] if equation.primitive.name == "scan" else 1
        most = max([most, *(once * turns(inner) for inner in _inner(equation))])
    return most


def _inner(equation: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(equation.params):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def table(rows: list[dict[str, Any]]) -> str:
    """Millions of cycles and MB of temporary memory, ours and XLA's."""
    head = f"{'recurrence':<16}{'chip':<7}{'pattern':<10}{'width':>6}  {'direction':<10}"
    lines = [head + f"{'kernel Mcyc':>12}{'XLA Mcyc':>10}{'XLA / kernel':>14}{'kernel MB':>11}{'XLA MB':>9}"]
    for row in rows:
        ours, theirs = row["tpu_cycles"], row["xla_cycles"]
        lines.append(
            f"{row['kernel'].partition('/')[0]:<16}{row['chip']:<7}{row['pattern']:<10}{row['width']:>6}  "
            f"{row['direction']:<10}{ours / 1e6:>12.2f}{theirs / 1e6:>10.2f}{theirs / ours:>14.1f}"
            f"{row['tpu_temp_bytes'] / 1e6:>11.0f}{row['xla_temp_bytes'] / 1e6:>9.0f}"
        )
    return "\n".join(lines) + "\n"
