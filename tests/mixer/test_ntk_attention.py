"""NTK-attention against its formula in float64, also where scores are beyond what exp holds, and a true prefix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.ntk_attention import NtkAttention
from tests.tiny import close, draw_params

WIDTH, LENGTH = 12, 9


def phi(x):
    x = x / x.shape[-1] ** 0.25
    return np.where(x > 0, x, np.expm1(x)) + 1


def formula(p, x):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    qkv = np.einsum("bld,dgrk->blgrk", x.astype(np.float64), p["qkv"])
    q, k, v = (qkv[..., i, :] for i in range(3))  # as many key heads as query heads
    z, values = np.log1p(np.exp(p["prefix_weights"]))[:, 0], p["prefix_values"][:, 0]
    out = np.zeros(q.shape, np.longdouble)
    for b, t, h in np.ndindex(*q.shape[:3]):
        e = np.exp((k[b, : t + 1, h] @ q[b, t, h] / q.shape[-1] ** 0.5).astype(np.longdouble))
        f = phi(q[b, t, h])
        out[b, t, h] = (e @ v[b, : t + 1, h] + f @ values[h]) / (e.sum() + f @ z[h])
    return np.einsum("blgk,gkd->bld", out.astype(np.float64), p["out"][:, 0])


@pytest.mark.parametrize("size", [1.0, 12.0])
def test_it_is_the_formula(size):
    mixer = NtkAttention(heads=3, position="none")
    p = draw_params(mixer.params(Dims(width=WIDTH)))
    x = (size * np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))).astype(np.float32)
    ctx = Context(positions=jnp.arange(LENGTH)[None])
    run = lambda p, x: mixer(p, x, ctx)[0]
    expected = formula(p, x)
    close(jax.jit(run)(p, x), expected, 1e-5)
    if size > 1:
        scores = np.einsum("bld,dgk->blgk", x, p["qkv"][..., 0, :])
        scores = np.einsum("blgk,bmgk->bglm", scores, np.einsum("bld,dgk->blgk", x, p["qkv"][..., 1, :])) / 2
        assert np.abs(scores).max() > 89  # whose exponentials overflow float32
    gradients = jax.jit(jax.grad(lambda p, x: jnp.sin(run(p, x)).sum(), (0, 1)))(p, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_it_is_attention_to_a_prefix_where_phi_is_the_kernel():
    """One virtual key of 0 has the score 0 with any query: z sums to 1 over phi(0) = 1, if queries are 0, too."""
    mixer = NtkAttention(heads=1, position="none")
    p = draw_params(mixer.params(Dims(width=WIDTH)))
    p = {**p, "qkv": p["qkv"].at[..., 0, :].set(0.0)}  # all scores are 0, and so are those of the prefix
    value = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)
    p["prefix_weights"] = jnp.full_like(p["prefix_weights"], np.log(np.expm1(1 / WIDTH)))
    p["prefix_values"] = jnp.broadcast_to(value / WIDTH, p["prefix_values"].shape)
    x = np.random.default_rng(0).standard_normal((1, LENGTH, WIDTH)).astype(np.float32)
    v = np.einsum("bld,dk->blk", x, p["qkv"][:, 0, 2])
    means = (np.cumsum(v, 1) + value) / np.arange(2, LENGTH + 2)[:, None]
    out = mixer(p, jnp.asarray(x), Context(positions=jnp.arange(LENGTH)[None]))[0]
    close(out, np.einsum("blk,kd->bld", means, p["out"][0, 0]))


def test_a_prefix_starts_as_one_empty_key():
    specs = NtkAttention(heads=2).params(Dims(width=WIDTH))
    weights = jax.nn.softplus(specs["prefix_weights"].value(jax.random.key(0)))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not specs["prefix_values"].value(jax.random.key(0)).any()


def test_bad_settings():
    with pytest.raises(ConfigError, match=r"unknown NtkAttention\.implementation 'fast'") as caught:
        NtkAttention(implementation="fast")
    assert "\n" not in str(caught.value)
