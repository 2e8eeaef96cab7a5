"""What every binary does before its work: compiled programs from earlier runs at hand, and the device it was promised.

Errors that a person can mend are one line on stderr and exit code 2 (`complaint`); all others are tracebacks.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError

FAILED = 2  # exit code of a bad setting
UNUSED_DAYS = 30
QUICKEST = 0.3  # seconds of compilation that are worth a file
ASK_FOR_CPU = "JAX_PLATFORMS=cpu asks for the CPU"

# What jax calls it -> (in words, its plugins, the extra that brings one)
ACCELERATORS = {
    "cuda": ("an NVIDIA GPU", ("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda13"),
    "tpu": ("a TPU", ("libtpu",), "tpu"),
}


def begin(*, compile_cache: bool = True) -> None:
    """Turns the compilation cache on and makes sure of the device, where jax is loaded.

    Args:
      compile_cache: whether programs may come from it; no where compiling is what is measured.

    Raises:
      ConfigError: the computer has an accelerator that jax cannot use, and nobody asked for the CPU.
    """
    if "jax" not in sys.modules:
        return
    if compile_cache:
        cache_compiled()
    # One of several processes may not touch a device before it has joined the others (`jaxlm.dist.processes`).
    if not os.environ.get("JAXLM_COORDINATOR"):
        check_device()


def cache_compiled() -> Path | None:
    """Keeps what is compiled on disk, in ``~/.cache/jaxlm`` (``XDG_CACHE_HOME`` moves it); the folder, if there is one.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder and ``JAX_ENABLE_COMPILATION_CACHE=false`` does without, as they
    do for all of jax. Processes may share a folder: a file that is read half-written is a warning and compiled again.
    """
    import jax

    config: Any = jax.config  # whose values have no types
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs for a CPU have its instructions in them, and a home folder may be shared by unlike computers.
        folder = caches / "jaxlm" / "compiled" / hashlib.sha256(_instructions().encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        _forget(folder)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: compile again
        return None
    if not os.access(folder, os.W_OK):
        return None
    config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", QUICKEST)
    return folder


def check_device() -> None:
    """Raises `ConfigError` where jax came up on the CPU, or not at all, beside an accelerator it should have used.

    An accelerator for which nothing is installed is a note only: a bare install is a CPU's.
    """
    import jax

    config: Any = jax.config
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # a platform that was asked for and is not there is either
        asked = f"JAX_PLATFORMS={config.jax_platforms}" if config.jax_platforms else "any platform"
        raise ConfigError(complaint(error) or f"jax has no device to run on for {asked}; {ASK_FOR_CPU}") from None
    if found != "cpu" or config.jax_platforms:
        return
    for name in accelerators():
        words, plugins, extra = ACCELERATORS[name]
        if not any(find_spec(plugin) for plugin in plugins):
            note = (
                f"note: this computer has {words}, which jax does not use: pip install 'jaxlm[{extra}]'; {ASK_FOR_CPU}"
            )
            print(note, file=sys.stderr)
            continue
        try:
            jax.devices(name)
        except RuntimeError as error:
            raise ConfigError(f"this computer has {words}, but jax cannot use it: {error}; {ASK_FOR_CPU}") from None


def accelerators() -> list[str]:
    """The accelerators that the operating system shows and the environment does not hide, as jax calls them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpu = not hidden and any(Path("/dev").glob("nvidia[0-9]*"))
    tpu = any(Path("/dev").glob("accel[0-9]*")) or any(
        _read(vendor) == "0x1ae0" for vendor in Path("/sys/bus/pci/devices").glob("*/vendor")
    )
    return [name for name, there in (("cuda", gpu), ("tpu", tpu)) if there]


def complaint(error: BaseException) -> str | None:
    """The one line of an error that a person can mend; None of any other."""
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        return text
    if isinstance(error, RuntimeError) and text.startswith("Unable to initialize backend"):
        return f"jax has no device to run on: {text}; {ASK_FOR_CPU}"
    return None


def _instructions() -> str:
    """What the CPU can do, for telling computers apart."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _forget(folder: Path) -> None:
    """Removes files that were neither written nor read for long."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        try:
            stat = path.stat()
            if max(stat.st_mtime, stat.st_atime) < oldest:
                path.unlink(missing_ok=True)
        except OSError:  # another process was first
            continue


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
