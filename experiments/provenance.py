"""Where a result comes from: command, commit, hardware, versions. Written beside every result that is kept."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "jaxlm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "torch",
    "transformers",
    "libtpu",
    "jax-cuda13-plugin",
    "nvidia-cuda-nvcc",
)


def collect() -> dict[str, Any]:
    """JSON-ready facts of this process: command, commit (``-dirty`` if the code differs), date, hardware, versions."""
    import jax

    return {
        "command": _command(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "devices": sorted({device.device_kind for device in jax.devices()}),
            "device_count": jax.device_count(),
        },
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
    }


def write(workdir: Path, **more: Any) -> None:
    """Writes ``provenance.json`` into the workdir; a study continued in several sittings keeps one entry for each."""
    path = workdir / "provenance.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    entries.append({**collect(), **more})
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _command() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {Path(sys.argv[0]).name}"
    # An absolute path is of one computer; its last part is what a reader needs.
    arguments = [re.sub(r"=/.*/", "=", argument) for argument in sys.argv[1:]]
    return " ".join((program, *map(shlex.quote, arguments)))


def _commit() -> str:
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in a repository of others
        commit = git("rev-parse", "HEAD")
        code = (".", ":(exclude)results")  # a study that is continued writes to its own committed results
        changed = git("-C", "..", "status", "--porcelain", "--untracked-files=no", "--", *code)
        return commit + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
