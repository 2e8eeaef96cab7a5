"""The grouped product against a loop over groups, in value and gradient, with empty groups and rows of no group."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import grouped
from jaxlm.ops.grouped import grouped_dense
from tests.tiny import close

# Sizes of the groups and rows beyond them: blocks of one row, of several, of the largest size and not divided by it.
SIZES = {
    "few rows": ([1, 0, 1, 0, 0, 0, 1, 0], 1),
    "even": ([4, 4, 4], 0),
    "ragged": ([0, 9, 1, 0, 13, 2], 5),
    "one has all": ([0, 17, 0], 0),
    "none has any": ([0, 0], 3),
    "large": ([300, 0, 129], 40),
}


def draw(name: str, dtype: str = "float32"):
    sizes, beyond = SIZES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sum(sizes) + beyond, 5))
    w = rng.standard_normal((len(sizes), 5, 3, 2))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(sizes, jnp.int32)


def by_loop(x, w, sizes):
    """Differentiable, and as the words say it: each group's rows times its weight."""
    ends = np.cumsum(sizes)
    parts = [
        jnp.einsum("md,dfg->mfg", x[end - n : end], w[e]) for e, (n, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    return jnp.concatenate([*parts, jnp.zeros((len(x) - ends[-1], 3, 2), x.dtype)])


@pytest.mark.parametrize("name", SIZES)
def test_equals_a_loop_over_groups(name):
    x, w, sizes = draw(name)
    ct = jnp.asarray(np.random.default_rng(1).standard_normal((len(x), 3, 2)), jnp.float32)

    def both(product, w, x):
        out, pull = jax.vjp(product, x, w)
        return out, pull(ct)

    found = jax.jit(lambda x, w, sizes: both(lambda x, w: grouped_dense(x, w, sizes), w, x))(x, w, sizes)
    close(found, jax.jit(lambda x, w: both(lambda x, w: by_loop(x, w, np.asarray(sizes)), w, x))(x, w), 2e-6)


def test_second_derivatives():
    """A gradient of gradients: each of the two products is the other's derivative."""
    x, w, sizes = draw("ragged")

    def twice(product):
        first = jax.grad(lambda xw: jnp.sin(product(*xw)).sum())
        return jax.jit(jax.grad(lambda xw: sum(jnp.sin(leaf).sum() for leaf in first(xw))))((x, w))

    close(twice(lambda x, w: grouped_dense(x, w, sizes)), twice(lambda x, w: by_loop(x, w, np.asarray(sizes))), 2e-6)


@pytest.mark.parametrize("name", ["ragged", "large"])
def test_the_loop_is_what_other_devices_run(name):
    """`jax.lax.ragged_dot` and the loop for CPUs, forwards and for the weights' gradient."""
    x, w, sizes = draw(name)
    w, g = w.reshape(*w.shape[:2], -1), jnp.cos(jnp.arange(len(x) * 6.0)).reshape(-1, 6)
    real = (jnp.arange(len(x)) < sizes.sum())[:, None]
    close(jnp.where(real, grouped._product_on_cpu(x, w, sizes), 0), jax.lax.ragged_dot(x, w, sizes), 1e-6)
    close(grouped._outer_on_cpu(x, g, sizes), grouped._outer_of_xla(x, g, sizes), 2e-6)


def test_bfloat16():
    x, w, sizes = draw("ragged", "bfloat16")
    out = grouped_dense(x, w.astype(jnp.float32), sizes)
    assert out.dtype == jnp.bfloat16
    want = by_loop(x.astype(jnp.float32), w.astype(jnp.float32), np.asarray(sizes))
    close(out.astype(jnp.float32), want, 1e-2)
