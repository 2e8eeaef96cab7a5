"""What every attention implementation is held to: the float64 oracle in value and all gradients, case by case.

Kernels run in Pallas' interpreter. What an implementation refuses is listed with its reason; anything else must pass.
"""

from __future__ import annotations

import contextlib

from jaxlm.ops.attention import supports
from pallas_kernels.block_sparse_attention.call import aimed_at
from tests.kernels.cases import CASES, draw, error, oracle, run

INTERPRETED = ("tpu", "triton")

# What an implementation may refuse in the table: (implementation, case), and words of the reason.
REFUSED: dict[tuple[str, str], str] = {
    ("tpu", "float16"): "float16",
    **{(name, "diagonals by head"): "tables" for name in INTERPRETED},
}


def place(implementation: str):
    return aimed_at(interpret=True) if implementation in INTERPRETED else contextlib.nullcontext()


def check(name: str, implementation: str) -> None:
    """One case by one implementation."""
    case, drawn = CASES[name], draw(name)
    with place(implementation):
        if (implementation, name) in REFUSED:
            shapes = (drawn.arrays[x] for x in "qkv")
            reason = supports(implementation, *shapes, mask=drawn.mask, block_sizes=case.blocks)
            assert reason and REFUSED[implementation, name] in reason
            return
        got = run(name, drawn, implementation)
    want = oracle(name, drawn)
    assert got.keys() == want.keys()
    for key, value in want.items():
        bound = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}[case.dtype]
        array = drawn.arrays.get(key[1:]) if key.startswith("d") else None
        assert array is None or got[key].dtype == array.dtype
        assert error(got[key], value) <= bound, key
