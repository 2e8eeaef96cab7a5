"""Kernels through the real compilers, with no chip there: they compile within memory, and their static cost stays."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from experiments.aot import bundles, cuda, tpu
from experiments.aot.cases import Case
from pallas_kernels.block_sparse_attention import tpu as backend

pytestmark = [pytest.mark.aot]

KEPT = Path(__file__).resolve().parents[2] / "results" / "aot" / "bundles.json"
RISE = 1.1  # of a kernel's bundles, tolerated


def chosen(cases: list[Case]) -> list[Case]:
    """One length, of all masks and chips; `experiments.compile_kernels` compiles every case."""
    return [
        case
        for case in cases
        if case.direction == "gradient"
        and case.length == 4096
        and case.width == 128
        and case not in recurrences([case])
    ]


def recurrences(cases: list[Case]) -> list[Case]:
    """Gradients, which hold the forward kernels, of one length, in all widths and dtypes."""
    named = lambda case: case.kernel.startswith(("ssd/", "selective_scan/"))
    return [case for case in cases if named(case) and case.length == 4096 and case.direction == "gradient"]


def landmark(cases: list[Case]) -> list[Case]:
    """One length of landmark attention, in all head widths and dtypes: each has tiles of its own."""
    return [case for case in cases if case.kernel.startswith("landmark/") and case.length == 4096]


def installed(package: str) -> None:
    pytest.importorskip(package, reason="make test-aot installs the compilers")


@pytest.mark.parametrize("case", chosen(tpu.kernels()), ids=lambda case: case.name)
def test_compiles_for_tpu(case: Case) -> None:
    installed("libtpu")
    row = tpu.compile(case)
    assert row["ok"], row["error"]
    assert row["kernels"] >= 3  # forward, queries, keys: nothing fell to XLA


@pytest.mark.parametrize("case", recurrences(tpu.kernels()), ids=lambda case: case.name)
def test_recurrences_compile_for_tpu(case: Case) -> None:
    installed("libtpu")
    row = tpu.compile(case)
    assert row["ok"], row["error"]
    assert row["kernels"] == 2  # forward, backward: nothing fell to XLA


@pytest.mark.parametrize("case", recurrences(cuda.kernels()), ids=lambda case: case.name)
def test_recurrences_compile_for_cuda(case: Case) -> None:
    installed("jax_cuda13_plugin")
    row = cuda.compile(case)
    assert row["ok"], row["error"]
    # Forward and backward; of SSD, the gradients of states are a kernel of their own.
    assert row["kernels"] == (3 if case.kernel == "ssd/triton" else 2)
    assert row["wgmma"] > 0 or case.kernel != "ssd/triton" or case.dtype == "float32"
    assert row["spill_bytes"] == 0 and row["shared_bytes"] <= cuda.MOST_SHARED_MEMORY


def test_a_tile_that_does_not_fit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """That compiling here is a check at all: the compiler refuses a kernel that needs more fast memory than it may."""
    installed("libtpu")
    monkeypatch.setattr(backend, "blocks", lambda request: (1024, 1024))
    monkeypatch.setattr(backend, "FAST_MEMORY", 2**20)
    row = tpu.compile(next(case for case in tpu.kernels() if case.width == 128))
    assert not row["ok"] and "vmem" in row["error"]


@pytest.mark.parametrize(
    "case", [x for x in chosen(cuda.kernels()) if x not in landmark([x])], ids=lambda case: case.name
)
def test_compiles_for_cuda(case: Case) -> None:
    installed("jax_cuda13_plugin")
    row = cuda.compile(case)
    assert row["ok"], row["error"]
    assert row["kernels"] >= 2 and row["wgmma"] > 0
    assert row["spill_bytes"] == 0 and row["shared_bytes"] <= cuda.MOST_SHARED_MEMORY


@pytest.mark.parametrize("case", landmark(cuda.kernels()), ids=lambda case: case.name)
def test_landmark_compiles_for_cuda(case: Case) -> None:
    installed("jax_cuda13_plugin")
    row = cuda.compile(case)
    assert row["ok"], row["error"]
    assert row["kernels"] == (1 if case.direction == "forward" else 3)  # forward, dq, dk and dv: nothing fell to XLA
    assert row["wgmma"] > 0 or case.dtype == "float32"  # whose tiles are less than the 64 rows that wgmma takes
    assert row["spill_bytes"] == 0 and row["shared_bytes"] <= cuda.MOST_SHARED_MEMORY


@pytest.mark.parametrize("chip", tpu.CHIPS)
def test_static_cost_does_not_rise(chip: str) -> None:
    installed("libtpu")
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    known = {name: kept["versions"][name] for name in versions}
    if versions != known:
        pytest.skip(f"{KEPT.name} was counted with {known}, not {versions}: renew it with experiments.compile_kernels")
    cases = [case for case in bundles.kernels() if case.chip == chip and case.width == 128]
    for name, kernels in bundles.count(cases).items():
        assert kernels.keys() == kept["kernels"][name].keys()
        for kernel, found in kernels.items():
            before = kept["kernels"][name][kernel]["bundles"]
            assert found["bundles"] <= RISE * before, f"{name}, {kernel}: {before} bundles before"
