"""Every kernel for every chip through the real compilers, with no chip there; prints a table and keeps it.

    make test-aot                                             makes .venv-aot and runs the tests
    .venv-aot/bin/python -m experiments.compile_kernels       the whole table, into results/aot
    ... --platforms=cuda --only="ssd/"                        renews these rows of it and leaves the others

Writes kernels.txt, kernels.json (with command, commit, versions; each row names the commit it was compiled at),
bundles.json, the static cost of the TPU kernels, to which tests/kernels/test_aot.py compares, and cycles.{txt,json},
that of the recurrences beside XLA's own way. Exit code 1 if anything does not compile, or spills registers.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax loads: no device is wanted, only compilers

import dataclasses  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from absl import flags  # noqa: E402

from experiments import command, provenance  # noqa: E402
from experiments.aot.cases import Case  # noqa: E402
from jaxlm.core.config import require  # noqa: E402
from jaxlm.core.errors import choose  # noqa: E402

COMPILERS = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}  # packages of the extra `aot`
PLATFORMS = tuple(COMPILERS)
FIRST_COLUMNS = ("kernel", "chip", "pattern", "length", "width", "direction", "ok", "seconds")

FLAGS = flags.FlagValues()
CHOSEN = flags.DEFINE_list("platforms", list(PLATFORMS), "platforms, of: " + ", ".join(PLATFORMS), flag_values=FLAGS)
ONLY = flags.DEFINE_string("only", "", "compile the cases whose name contains this", flag_values=FLAGS)
BUNDLES = flags.DEFINE_boolean(
    "bundles", True, "count the bundles of the TPU kernels, and compare cycles, too", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string("workdir", "results/aot", "folder for the tables", flag_values=FLAGS)


def main() -> int:
    platforms = [choose("platform", name, PLATFORMS) for name in CHOSEN.value]
    for name in platforms:
        there = importlib.util.find_spec(COMPILERS[name]) is not None
        require(there, f"--platforms={name} needs {COMPILERS[name]}: pip install 'jaxlm[aot]' (make test-aot does)")
    rows = []
    for name in platforms:
        platform = importlib.import_module(f"experiments.aot.{name}")
        for case in platform.kernels():
            if ONLY.value in case.name:
                rows.append({**vars(case), **platform.compile(case)})
                print(line(rows[-1]), flush=True)
    require(bool(rows), f"--only={ONLY.value}: no case has this in its name")
    record = provenance.collect()
    folder = Path(WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**row, "commit": record["commit"]} for row in rows]
    if ONLY.value or len(platforms) < len(PLATFORMS):
        rows = renewed(folder / "kernels.json", rows)

    def write(name: str, of: dict[str, Any], text: str) -> None:
        (folder / f"{name}.json").write_text(json.dumps({**record, **of}, indent=1) + "\n", encoding="utf-8")
        if text:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
            print(text, end="")

    write("kernels", {"rows": rows}, table(rows))
    if BUNDLES.value and "tpu" in platforms:
        from experiments.aot import bundles, cycles

        cases = [case for case in bundles.kernels() if ONLY.value in case.name]
        found = bundles.count(cases)
        write("bundles", {"kernels": found}, "")
        recurrences = [case for case in cases if case.kernel.startswith(tuple(cycles.RECURRENCES))]
        compared = [row for case in recurrences for row in cycles.compare(case, found[case.name])]
        write("cycles", {"rows": compared}, cycles.table(compared))
    return 0 if all(map(fits, rows)) else 1


def renewed(kept: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier table, if there is one, with these in the place of those of the same cases."""
    named = lambda row: tuple(row[field.name] for field in dataclasses.fields(Case))
    new = {named(row): row for row in rows}
    if kept.exists():
        table = json.loads(kept.read_text(encoding="utf-8"))
        old = {named(row): {"commit": table["commit"], **row} for row in table["rows"]}
        new = {**old, **new}
    return list(new.values())


def fits(row: dict[str, Any]) -> bool:
    """Whether it compiles, and keeps to its registers."""
    return row["ok"] and not row.get("spill_bytes")


def line(row: dict[str, Any]) -> str:
    """A row as it passes by."""
    rest = {name: value for name, value in row.items() if name not in FIRST_COLUMNS}
    return " ".join(f"{row[name]}" for name in FIRST_COLUMNS) + "  " + ", ".join(f"{k} {v}" for k, v in rest.items())


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns, errors below."""
    columns = list(FIRST_COLUMNS) + sorted(
        {name for row in rows for name in row} - {*FIRST_COLUMNS, "error", "dtype", "commit"}
    )
    cells = [columns] + [[str(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [f"{row['kernel']} {row['chip']} {row['pattern']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__, compile_cache=False))
