"""Two processes with four CPU devices each, started and watched by a test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from tests.devices import flags_for

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 900


def launch(folder: Path, task: str, mesh: str, *, alone: dict[int, list[str]] | None = None) -> list[int]:
    """Runs `tests.dist.worker` in two processes and returns their exit codes.

    Each writes stderr to ``folder/<process>.err``. Once one has failed the other, which waits for it in vain, is killed
    as a cluster would do it, and so are both after ``LIMIT`` seconds. ``alone`` holds further arguments of one process.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = []
    for i in range(2):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": flags_for(4),
            "JAXLM_COORDINATOR": f"localhost:{port}",
            "JAXLM_PROCESS_COUNT": "2",
            "JAXLM_PROCESS_ID": str(i),
        }
        command = [sys.executable, "-m", "tests.dist.worker", task, str(folder), mesh, *(alone or {}).get(i, [])]
        with (folder / f"{i}.err").open("w") as err:
            pair.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=err, stderr=err))
    try:
        until = time.monotonic() + LIMIT
        while any(process.poll() is None for process in pair) and not any(process.poll() for process in pair):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    return [process.returncode for process in pair]


def errors(folder: Path) -> str:
    return "\n".join((folder / f"{i}.err").read_text()[-3000:] for i in range(2))
