"""`dense` is a plain product in value and gradient, whichever of its operands is the narrower one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlm.ops.dense import dense

SHAPES = {  # x, weight, number of input axes, the product as an einsum
    "wide weight": ((2, 5, 4), (4, 7), 1, "bld,df->blf"),
    "narrow weight": ((2, 5, 7), (7, 4), 1, "bld,df->blf"),
    "several outputs": ((2, 5, 4), (4, 3, 2, 6), 1, "bld,dgrk->blgrk"),
    "several inputs": ((2, 5, 3, 2, 6), (3, 2, 6, 4), 3, "blgrk,grkd->bld"),
    "no leading axis": ((4,), (4, 7), 1, "d,df->f"),
    "one leading axis": ((5, 7), (7, 4), 1, "ld,df->lf"),
}


def draw(name: str, dtype: str = "float32"):
    x, w, inputs, formula = SHAPES[name]
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal(x), dtype), jnp.asarray(rng.standard_normal(w), "float32"), inputs, formula


@pytest.mark.parametrize("name", SHAPES)
def test_equals_einsum_in_value_and_gradient(name: str) -> None:
    x, w, inputs, formula = draw(name)
    out, pull = jax.vjp(lambda x, w: dense(x, w, inputs), x, w)
    want, pull_want = jax.vjp(lambda x, w: jnp.einsum(formula, x, w), x, w)
    ct = jnp.asarray(np.random.default_rng(1).standard_normal(want.shape), jnp.float32)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    for got, expected in zip(jax.jit(pull)(ct), pull_want(ct), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_finite_differences(name: str) -> None:
    x, w, inputs, _ = draw(name)
    with jax.enable_x64(True):
        x, w = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, w))
        check_grads(lambda x, w: jnp.sin(dense(x, w, inputs)), (x, w), order=2, modes=["rev"])


def test_under_vmap_and_scan() -> None:
    x, w, inputs, _ = draw("narrow weight")
    ws = jnp.stack([w, 2 * w, -w])
    grad = jax.grad(lambda w: (dense(x, w, inputs) ** 2).sum())
    want = jnp.stack([grad(w) for w in ws])
    np.testing.assert_allclose(jax.vmap(grad)(ws), want, rtol=1e-5)
    np.testing.assert_allclose(jax.lax.map(grad, ws), want, rtol=1e-5)


@pytest.mark.parametrize("name", ["wide weight", "narrow weight"])
def test_bfloat16(name: str) -> None:
    x, w, inputs, formula = draw(name, "bfloat16")
    out, pull = jax.vjp(lambda x, w: dense(x, w, inputs), x, w)
    dx, dw = pull(jnp.ones_like(out))
    assert out.dtype == dx.dtype == jnp.bfloat16 and dw.dtype == jnp.float32
    wide = dense(x, w, inputs, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    want = jnp.einsum(formula, x.astype(jnp.float32), w.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(wide, want, rtol=1e-5, atol=1e-5)  # float32 sums of bfloat16 products
    np.testing.assert_allclose(out.astype(jnp.float32), want, rtol=1e-2, atol=1e-2)
    wide_grad = jax.vjp(lambda x, w: dense(x, w, inputs, dtype=jnp.float32), x, w)[1](jnp.ones_like(wide))
    assert wide_grad[0].dtype == jnp.bfloat16 and wide_grad[1].dtype == jnp.float32
    np.testing.assert_allclose(wide_grad[1], dw, rtol=1e-2, atol=1e-2)
