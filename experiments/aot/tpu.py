"""TPU: the real compiler of the `libtpu` wheel, which needs no chip, only the name of a topology."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import jax

from experiments.aot.cases import LANDMARK, SELECTIVE_SCAN, SSD, Case, cases_of, lowered_for, program
from pallas_kernels.block_sparse_attention.call import aimed_at

CHIPS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}  # topologies the compiler has names for


def kernels() -> list[Case]:
    """Every case of every TPU kernel. The long gradients stand for their forward passes, which they contain."""
    lengths = 4096, 65536
    cases = cases_of("attention/tpu", CHIPS, lengths)
    cases += cases_of("landmark/tpu", CHIPS, lengths, patterns=LANDMARK)
    cases += cases_of("ssd/tpu", CHIPS, lengths, patterns=SSD)
    cases += cases_of("selective_scan/tpu", CHIPS, lengths, (16,), SELECTIVE_SCAN)
    return [case for case in cases if case.direction == "gradient" or case.length == lengths[0]]


def compile(case: Case) -> dict[str, Any]:
    """Compiles a case; the row has its temporary memory and how many Pallas kernels the program holds."""
    start = time.perf_counter()
    try:
        compiled = executable(case)
    except Exception as error:  # whatever the compiler may raise is the result
        row = {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    else:
        memory = compiled.memory_analysis()
        row = {"ok": True, "temp_bytes": memory.temp_size_in_bytes, "code_bytes": memory.generated_code_size_in_bytes}
        row["kernels"] = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def executable(case: Case) -> Any:
    """The compiled program of a case."""
    device = _device(case.chip)
    with aimed_at("tpu", device.device_kind), lowered_for("tpu", device.device_kind, device.num_cores):
        return traced(case).lower(lowering_platforms=("tpu",)).compile()


def traced(case: Case) -> Any:
    """The program of a case as jax has it, for its chip."""
    device = _device(case.chip)
    function, shapes = program(case)
    place = jax.sharding.SingleDeviceSharding(device)
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in shapes]
    with aimed_at("tpu", device.device_kind), lowered_for("tpu", device.device_kind, device.num_cores):
        return jax.jit(function).trace(*arguments)


@functools.cache
def _device(chip: str) -> Any:
    from jax.experimental import topologies

    # Read when libtpu is loaded: no metadata server, one host, and other processes may compile too.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(CHIPS[chip], platform="tpu").devices[0]
