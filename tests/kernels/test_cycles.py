"""Cycles are counted as often as loops go round, in compiled programs and in kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from experiments.aot.cycles import of_program, steps

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (a: f32[8]) -> f32[8] {
  ROOT %n = f32[8]{0} negate(%a), backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = s32[] constant(1)
  %f.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(64)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main.2 (a: f32[8]) -> f32[8] {
  %f.2 = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"30"}}
  %loop = (s32[], f32[8]{0}) while(%t), condition=%condition.1, body=%body.1
}
"""


def test_a_program_with_a_loop():
    """Nothing within a fusion counts: its own note is of all of it."""
    assert of_program(PROGRAM) == 30 + 64 * 7


def test_a_kernel_with_a_loop_under_transformations():
    def kernel(x_ref, y_ref):
        y_ref[...] = jax.lax.fori_loop(0, 5, lambda i, y: y + i, x_ref[...])

    def run(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        block = pl.BlockSpec((1, 8), lambda i, j: (i, j))
        return pl.pallas_call(
            kernel, grid=(2, 3), in_specs=[block], out_specs=block, out_shape=shape, name="added", interpret=True
        )(x)

    jaxpr = jax.make_jaxpr(jax.jit(run))(jnp.zeros((2, 24))).jaxpr
    assert list(steps(jaxpr)) == [("added", 2 * 3 * 5)]
