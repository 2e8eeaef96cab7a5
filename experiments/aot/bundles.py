"""The static cost of TPU kernels: what the compiler's final schedule is made of, per kernel.

A bundle is the instructions of one cycle if nothing stalls. The count takes every branch of a kernel once (full and
partial tiles, start and end of a row), so it ranks versions of a kernel and block sizes but is not a time. It is kept
in results/aot/bundles.json, and a test notices when it rises.

libtpu dumps schedules only if it is told before it loads, so counting is the work of a process of its own:
``python -m experiments.aot.bundles NAME ...`` prints JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.aot import tpu
from experiments.aot.cases import Case

FOLDER = "JAXLM_SCHEDULES"  # the environment's name for where the child writes
PATTERNS = ("window 1024 + 4", "landmark", "Mamba-2", "Mamba")
KERNEL = re.compile(r"(?:block_sparse|landmark|ssd|selective_scan)_\w+?_kernel")
UNITS = {"MXU": "matrix", "VALU": "vector", "XLU": "lanes", "EUP": "exponential"}


def kernels() -> list[Case]:
    """One gradient per chip, operation and head width; it holds the forward kernel too."""
    chosen = lambda case: case.pattern in PATTERNS and case.length == 4096 and case.direction == "gradient"
    return [case for case in tpu.kernels() if chosen(case)]


def count(cases: list[Case]) -> dict[str, dict[str, Any]]:
    """By case and kernel: bundles, spilled vectors, and the share of the bundles' slots that each unit fills."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = {**os.environ, "LIBTPU_INIT_ARGS": arguments, FOLDER: folder}
        command = [sys.executable, "-m", "experiments.aot.bundles", *(case.name for case in cases)]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"counting bundles failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(names: list[str]) -> None:
    folder, found = Path(os.environ[FOLDER]), {}
    for case in kernels():
        if case.name in names:
            tpu.executable(case)
            found[case.name] = _schedules(folder)
            for path in folder.iterdir():  # some 200 MB a kernel
                path.unlink()
    print(json.dumps(found))


def _schedules(folder: Path) -> dict[str, Any]:
    """What was dumped of each Pallas kernel."""
    found = {}
    for path in sorted(folder.glob("*kernel*final_hlo-static-per-bundle-utilization.txt")):
        _, names, slots, *rows = path.read_text(encoding="utf-8").splitlines()
        units = [name.strip() for name in names.split(",")]
        used = [list(map(int, row.split())) for row in rows if row[:1].isdigit()]
        total = dict(zip(units, map(sum, zip(*used, strict=True)), strict=True))
        room = dict(zip(units, map(int, slots.split()), strict=True))
        found[KERNEL.findall(path.name)[0]] = {
            "bundles": len(used),
            "spills": total["VSTORE:SPILL"],
            **{word: round(total[unit] / (len(used) * room[unit]), 3) for unit, word in UNITS.items()},
        }
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
