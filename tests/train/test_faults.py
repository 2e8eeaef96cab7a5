"""The eleven faults of a checkpoint folder, each detected or harmless: `python -m tests.train.test_faults` shows it.

A run of five steps saves each of them. Into its first three a fault is put: files are damaged in place, or a process of
its own is killed, or runs into a full disk (a limit on the size of files), while it saves step 3. Then the run is
resumed as a trainer would. The fault scores if the newest good step was used, no file was lost, and step 5 is, bit for
bit, the one of the run without faults.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.train import integrity
from jaxlm.train.checkpoint import SET_ASIDE, Checkpointer
from tests.devices import flags_for

ROOT = Path(__file__).resolve().parent.parent.parent
LAST = 5
LIMIT = 64 * 1024  # bytes in a file, on the "full disk"; the state has 1 MB


# The run.


@jax.jit
def update(state: dict[str, jax.Array]) -> dict[str, jax.Array]:
    noise = jax.random.normal(jax.random.fold_in(state["key"], state["step"]), state["w"].shape)
    return state | {"w": 0.9 * state["w"] + noise, "step": state["step"] + 1}


def first() -> dict[str, jax.Array]:
    return {"w": jnp.ones((512, 512)), "step": jnp.int32(0), "key": jax.random.key(1)}


def digest(state: dict[str, jax.Array]) -> str:
    leaves = (state["w"], state["step"], jax.random.key_data(state["key"]))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def resume(checkpointer: Checkpointer, until: int) -> tuple[int, str, dict[str, jax.Array]]:
    """What a trainer does: restore, go on, save each step. Returns the step restored, its digest and the last state."""
    restored = checkpointer.restore(first())
    state, step = (first(), 0) if restored is None else (restored.state, restored.step)
    found = digest(state)
    for i in range(step + 1, until + 1):
        state = update(state)
        checkpointer.save(i, state, {"step": i})
    return step, found, state


@functools.cache
def history() -> tuple[str, ...]:
    """The digests of the run without faults, by step."""
    state, out = first(), [digest(first())]
    for _ in range(LAST):
        state = update(state)
        out.append(digest(state))
    return tuple(out)


# Faults in the files of the newest step.


def array_file(step: Path) -> Path:
    return max((path for path in step.rglob("*") if path.parent.name == "d"), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    os.truncate(array_file(folder / "3"), 1000)


def overwrite(folder: Path, change: Callable[[bytes], bytes], size: int) -> None:
    with open(array_file(folder / "3"), "r+b") as file:
        file.seek(os.path.getsize(file.name) // 2)
        old = file.read(size)
        assert change(old) != old
        file.seek(-size, os.SEEK_CUR)
        file.write(change(old))


def empty(folder: Path) -> None:
    (folder / "4").mkdir()


def delete_side_files(folder: Path) -> None:
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding"):
        (path,) = (folder / "3").rglob(name)
        path.unlink()


# Faults of the process that saves: these run this file as a program of its own.


def child(fault: str, folder: Path) -> None:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags_for(1),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    command = [sys.executable, "-m", "tests.train.test_faults", fault, str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == (0 if fault.startswith("full") else -signal.SIGKILL), ran.stderr
    if fault.startswith("full"):
        (line,) = ran.stderr.splitlines()
        assert "saving step 3 failed, the steps before it stay" in line


def child_main(fault: str, folder: Path) -> None:
    kind, mode, moment = (*fault.split(" "), "")[:3]
    checkpointer = Checkpointer(folder, asynchronous=mode == "async")
    step, _, state = resume(checkpointer, until=2)
    assert step == 2
    state = update(state)
    if kind == "full":
        full_disk(checkpointer, state)
        return
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if moment == "arrays":
        threading.Thread(target=lambda: (wait_for_arrays(folder), die())).start()
    elif moment == "hashing":
        integrity.write_manifest = die
    elif moment == "manifest":
        os.replace = die
    checkpointer.save(3, state, {"step": 3})
    if moment != "returned":
        checkpointer.wait()
        threading.Event().wait(30)
    die()


def wait_for_arrays(folder: Path) -> None:
    while not any(path.parent.name == "d" for path in folder.glob("3*/**/*")):
        pass


def full_disk(checkpointer: Checkpointer, state: dict[str, jax.Array]) -> None:
    """The save fails, the run lives, the steps before stay, and once there is space again so does this one."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, unlimited[1]))
    saved = checkpointer.save(3, state, {"step": 3})
    assert not (saved and checkpointer.wait())
    assert checkpointer.steps() == [1, 2]
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [path.name for path in checkpointer._folder.glob("3*")] == []  # nothing of it takes up the disk
    assert checkpointer.save(3, state, {"step": 3}) and checkpointer.wait()


# The table.


@dataclasses.dataclass(frozen=True)
class Fault:
    """How it is brought about in a folder, from which steps the resumed run may then start, and what is set aside."""

    inject: Callable[[Path], None]
    resumed_from: tuple[int, ...] = (2,)
    aside: str = "3"


MOMENTS = ("returned", "arrays", "hashing", "manifest")
FAULTS: dict[str, list[Fault]] = {
    # When the process dies by the clock, either step may be the newest good one; by the hook, it is known.
    "kill -9 in an asynchronous save": [
        Fault(functools.partial(child, f"kill async {moment}"), (2, 3) if moment in ("returned", "arrays") else (2,))
        for moment in MOMENTS
    ],
    "kill -9 in a synchronous save": [
        Fault(functools.partial(child, f"kill sync {moment}"), (2, 3) if moment == "arrays" else (2,))
        for moment in ("arrays", "hashing")
    ],
    "disk full, synchronous save": [Fault(functools.partial(child, "full sync"), (3,), aside="")],
    "disk full, asynchronous save": [Fault(functools.partial(child, "full async"), (3,), aside="")],
    "array file truncated": [Fault(truncate)],
    "4 KiB of an array file zeroed": [Fault(lambda folder: overwrite(folder, lambda old: bytes(len(old)), 4096))],
    "one byte of an array file flipped": [Fault(lambda folder: overwrite(folder, lambda old: bytes([old[0] ^ 1]), 1))],
    "array file deleted": [Fault(lambda folder: array_file(folder / "3").unlink())],
    "manifest.ocdbt deleted": [Fault(lambda folder: (folder / "3" / "state" / "manifest.ocdbt").unlink())],
    "_METADATA, _CHECKPOINT_METADATA, _sharding deleted": [Fault(delete_side_files)],
    "empty step folder": [Fault(empty, (3,), aside="4")],
}
CASES = [pytest.param(fault, id=f"{name} {i}") for name, faults in FAULTS.items() for i, fault in enumerate(faults)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a resumed run made of a fault: ``resumed_from``, the warnings, the names set aside, and three verdicts."""

    resumed_from: int
    warnings: tuple[str, ...]
    aside: tuple[str, ...]
    good_step: bool  # the newest good step was used and what was bad was set aside and named
    nothing_lost: bool  # every file that was there still is, in place or set aside
    bitwise: bool  # the restored state and that of the last step are those of the run without faults

    @property
    def survived(self) -> bool:
        return self.good_step and self.nothing_lost and self.bitwise


def survive(fault: Fault, good: Path, folder: Path) -> Outcome:
    """Copies the folder ``good`` (steps 1 to 3), brings the fault about, resumes to the end and looks."""
    children = isinstance(fault.inject, functools.partial)
    shutil.copytree(good, folder, ignore=lambda _, names: {"3"} & set(names) if children else set())
    fault.inject(folder)
    before, traces = contents(folder), bool(fault.aside) and any(folder.glob(f"{fault.aside}*"))
    with Warnings() as warnings, Checkpointer(folder, keep=None) as checkpointer:
        step, found, state = resume(checkpointer, until=LAST)
        assert checkpointer.wait()
        last = checkpointer.restore(first())
    aside = tuple(sorted(path.name for path in folder.glob(f"{SET_ASIDE}/*")))
    harmed = traces and step != int(fault.aside)  # a process may die before it has written anything, or too late
    named = [line for line in warnings.lines if line.startswith(f"checkpoint step {fault.aside} is set aside as")]
    expected = (fault.aside,) if harmed else ()
    states = (found, digest(state), last and digest(last.state))
    return Outcome(
        resumed_from=step,
        warnings=tuple(warnings.lines),
        aside=aside,
        good_step=step in fault.resumed_from and aside == expected and len(named) == len(aside),
        nothing_lost=not before - contents(folder),
        bitwise=states == (history()[step], history()[LAST], history()[LAST]),
    )


def contents(folder: Path) -> collections.Counter[str]:
    return collections.Counter(hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file())


class Warnings(logging.Handler):
    """Collects the lines that jaxlm logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Warnings:
        logging.getLogger("jaxlm").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("jaxlm").removeHandler(self)


def save_good(folder: Path) -> Path:
    with Checkpointer(folder) as checkpointer:
        resume(checkpointer, until=3)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return save_good(tmp_path_factory.mktemp("good"))


def test_there_are_eleven():
    assert len(FAULTS) == 11


@pytest.mark.parametrize("fault", CASES)
def test_fault(fault, good, tmp_path):
    outcome = survive(fault, good, tmp_path / "run")
    assert outcome.survived, outcome


def test_without_hashes_a_flipped_byte_goes_unseen(good, tmp_path):
    """Orbax has no checksum: this is what the manifest is for."""
    shutil.copytree(good, tmp_path / "run")
    (fault,) = FAULTS["one byte of an array file flipped"]
    fault.inject(tmp_path / "run")
    restored = Checkpointer(tmp_path / "run", verify=False).restore(first())
    assert restored is not None and restored.step == 3 and digest(restored.state) != history()[3]


def test_without_hashes_a_load_that_fails_is_looked_into(good, tmp_path):
    shutil.copytree(good, tmp_path / "run")
    (fault,) = FAULTS["4 KiB of an array file zeroed"]
    fault.inject(tmp_path / "run")
    restored = Checkpointer(tmp_path / "run", verify=False).restore(first())
    assert restored is not None and restored.step == 2 and digest(restored.state) == history()[2]
    assert (tmp_path / "run" / SET_ASIDE / "3").is_dir()


def main() -> None:
    """Prints one row per fault and the score."""
    score = 0
    with tempfile.TemporaryDirectory() as temporary:
        good = save_good(Path(temporary) / "good")
        print(f"{'fault':52}{'resumed from':14}{'set aside':11}{'nothing lost':14}{'bitwise':9}")
        for name, faults in FAULTS.items():
            outcomes = [survive(fault, good, Path(temporary) / f"{name} {i}") for i, fault in enumerate(faults)]
            score += all(outcome.survived for outcome in outcomes)
            yes = lambda flags: "yes" if all(flags) else "NO"
            steps = ", ".join(str(outcome.resumed_from) for outcome in outcomes)
            aside = ", ".join(sorted({step for outcome in outcomes for step in outcome.aside})) or "-"
            lost, bitwise = yes(o.nothing_lost for o in outcomes), yes(o.bitwise for o in outcomes)
            print(f"{name:52}{steps:14}{aside:11}{lost:14}{bitwise:9}")
    print(f"survived: {score} of {len(FAULTS)}")


if __name__ == "__main__":
    child_main(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else main()
