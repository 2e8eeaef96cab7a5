"""CUDA: the real compilers (XLA's Triton, Mosaic GPU, ptxas) for sm_90a, which need no GPU, only its description.

A row has the most registers, spilled bytes and shared memory of any of its kernels, and the least of their `wgmma`
instructions. Mosaic GPU compiles a kernel once in a process: a forward pass is in its own row, not in its gradient's.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from experiments.aot.cases import LANDMARK, SELECTIVE_SCAN, SSD, Case, cases_of, program
from pallas_kernels.block_sparse_attention.call import aimed_at

CHIPS = {
    "NVIDIA H200": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H200"
"""
}
TARGET = "sm_90a"
MOST_SHARED_MEMORY = 232448  # bytes a block may ask for: shared_memory_per_block_optin
NAME = r"(?:(?:block_sparse|landmark)_attention|ssd_|selective_scan_)"  # is part of the kernels' names
KERNELS = ("attention/mosaic_gpu", "attention/triton")


def kernels() -> list[Case]:
    """Every case of every GPU kernel."""
    lengths = 4096, 16384
    both = "bfloat16", "float32"
    cases = [case for kernel in KERNELS for case in cases_of(kernel, CHIPS, lengths)]
    cases += cases_of("landmark/triton", CHIPS, lengths, patterns=LANDMARK, dtypes=both)
    cases += cases_of("ssd/triton", CHIPS, lengths, patterns=SSD)
    cases += cases_of("ssd/triton", CHIPS, lengths, (64,), SSD, ("float32",))  # keys of 128 would spill
    return cases + cases_of("selective_scan/triton", CHIPS, lengths, (16,), SELECTIVE_SCAN, both)


def compile(case: Case) -> dict[str, Any]:
    """Compiles a case; the row says what `_report` finds in what the compilers dumped."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            executable(case, folder)
            row = {"ok": True, **_report(Path(folder), case)}
        except Exception as error:  # whatever the compilers may raise is the result
            row = {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def executable(case: Case, dump: str) -> Any:
    """The compiled program of a case; the compilers write to the folder ``dump``."""
    device = _device(case.chip)
    function, shapes = program(case)
    place = jax.sharding.SingleDeviceSharding(device)
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in shapes]
    # Read by Mosaic GPU whenever it compiles.
    os.environ |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_MLIR_PASSES": "1", "MOSAIC_GPU_DUMP_TO": dump}
    with aimed_at("gpu", case.chip), _target(case.chip):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    # As for users, whatever the environment says: a suite in a hurry lowers the level, and then kernels spill.
    options = {"xla_dump_to": dump, "xla_dump_emitter_re": "ptx", "xla_backend_optimization_level": 3}
    return lowered.compile(options)


def _report(folder: Path, case: Case) -> dict[str, Any]:
    """What the compilers say of the kernels of a case, and how many they are."""
    ptx = [path for path in sorted(folder.glob("*.ptx")) if re.search(NAME, path.read_text())]
    if not ptx:
        raise RuntimeError(
            "no kernel was compiled: another case of this process has the same ones, or dumps have moved"
        )
    said = [_assemble(path) for path in ptx]
    numbers = lambda pattern, texts: [int(n) for text in texts for n in re.findall(pattern, text)]
    if case.implementation == "mosaic_gpu":
        logs, shared = folder.glob("*.mlir-passes.log"), r"dynamic_shared_memory_size %c(\d+)"
    else:
        logs, shared = folder.glob("*.thunk_sequence.txt"), rf"{NAME}.* shared_memory: (\d+)"
    return {
        "kernels": len(ptx),
        "registers": max(numbers(r"Used (\d+) registers", said)),
        "spill_bytes": max(numbers(r"(\d+) bytes spill stores", said)),
        "shared_bytes": max(numbers(shared, (log.read_text() for log in logs))),
        "wgmma": min(path.read_text().count("wgmma.mma_async") for path in ptx),
    }


def _assemble(ptx: Path) -> str:
    """What ptxas says about a file."""
    command = [_ptxas(), "-v", "--gpu-name", TARGET, str(ptx), "-o", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@functools.cache
def _ptxas() -> str:
    """The assembler of the wheel nvidia-cuda-nvcc."""
    found = sorted(Path(jax.__file__).parent.parent.glob("nvidia/*/bin/ptxas"))
    if not found:
        raise FileNotFoundError("no ptxas: the extra `aot` brings the wheel nvidia-cuda-nvcc")
    return str(found[0])


def _target(chip: str) -> Any:
    """A context in which kernels are lowered for the chip though none is there."""
    fields: dict[str, Any] = {"device_kind": chip, "num_cores": None}
    if "platform" in jax.sharding.AbstractDevice.__dataclass_fields__:  # since 0.11
        fields["platform"] = "gpu"
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=jax.sharding.AbstractDevice(**fields))
    return jax.sharding.use_abstract_mesh(mesh)


@functools.cache
def _device(chip: str) -> Any:
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="cuda", target_config=CHIPS[chip], topology="1x1x1").devices[0]
