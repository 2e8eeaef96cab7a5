"""What every test shares: a CPU with 8 devices, a compilation cache on disk, and the folder of golden vectors."""

from __future__ import annotations

import collections
import gc
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

# The suite compiles thousands of tiny programs: made in a hurry they cost 40 % of the time, slow as they then are.
# To test programs compiled as users compile them, set these flags in XLA_FLAGS to 3, true and 32.
FLAGS = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # gone in 0.11, and an unknown flag ends the process
    FLAGS["xla_cpu_use_fusion_emitters"] = "false"

# All of this must stand in the environment before jax is imported; subprocesses of a test inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
said = os.environ.get("XLA_FLAGS", "")
added = (f"--{name}={value}" for name, value in FLAGS.items() if name not in said)
os.environ["XLA_FLAGS"] = " ".join([said, *added]).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


# How long an example takes says how busy the machine is, not whether the example is right.
hypothesis.settings.register_profile("jaxlm", deadline=None)
hypothesis.settings.load_profile("jaxlm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the comparisons with PyTorch where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason="PyTorch is not installed; make test-all installs it"))


ROOM = 3 * 2**30  # bytes by which a process may grow before it forgets its programs
_kept = 0  # bytes that it had when it last did


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Compiled programs, those of kernels in interpreters above all, add up to gigabytes. To forget them takes seconds,
    and to make the small ones again more, so it is done when there is need."""
    global _kept
    yield
    if _memory() > _kept + ROOM:
        import jax

        jax.clear_caches()
        _kept = _memory()


def _memory() -> int:
    """Bytes of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


gc.set_threshold(100_000, 50, 50)  # what tracing makes mostly stays; looking it over again and again costs a tenth


UNREGISTERED = "family not registered yet"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts the golden checkpoints of families that are not registered, so that a skip is not overlooked."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    found = collections.Counter(reason.rsplit(": ", 1)[-1].rstrip("')") for reason in reasons if UNREGISTERED in reason)
    if found:
        names = ", ".join(f"{name} ({count} tests)" for name, count in sorted(found.items()))
        terminalreporter.write_line(f"skipped, {UNREGISTERED}: {names}")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors: `JAXLM_GOLDEN`, or the copy kept beside the tests."""
    folder = Path(os.environ.get("JAXLM_GOLDEN") or ROOT / "tests" / "golden" / "data")
    if not folder.is_dir():
        raise pytest.UsageError(f"JAXLM_GOLDEN names {folder}, which is not a folder")
    return folder
