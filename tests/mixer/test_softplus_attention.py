"""LSSA and LSSAR against the formula in float64, where float32 would overflow, underflow or divide by 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.mask import Causal, Window
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.softplus_attention import Lssar
from jaxlm.ops.softplus_attention import Places, View, Weighting, softplus_attention
from tests.tiny import close

DRAWS = np.random.default_rng(0)
LENGTH, WIDTH = 23, 6


def formula(q, k, v, see, weighting: Weighting) -> np.ndarray:
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for b, i, h in np.ndindex(*q.shape[:3]):
        g = h // (q.shape[2] // k.shape[2])
        seen = np.flatnonzero(see[i])
        if not len(seen):
            continue
        factor = weighting.length * np.log(len(seen)) if weighting.length else 1.0
        logits = weighting.scale * factor * (k[b, seen, g] @ q[b, i, h])
        a = np.logaddexp(0, logits)
        a = a / a.sum()
        if weighting.power:
            sharp = np.maximum(len(seen) * a - weighting.offset, 0).astype(np.longdouble) ** weighting.power
            a = sharp / sharp.sum() if sharp.sum() else a
        out[b, i, h] = a.astype(np.float64) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize(
    "weighting",
    [
        Weighting(0.4, 0.0, 0.0, 0.0, 0.0),
        Weighting(0.4, 0.0, np.log(WIDTH), 0.0, 0.0),
        Weighting(0.4, 0.0, np.log(WIDTH), 15.0, 0.0),
        Weighting(0.4, 0.0, 1.0, 3.0, 1.0),
        Weighting(0.4, 0.0, 1.0, 5.0, 4.0),  # an offset that empties rows
        Weighting(40.0, 0.0, 1.0, 0.0, 0.0),  # rows whose softplus is 0 in float32
        Weighting(0.4, 0.0, 1.0, 80.0, 0.0),  # powers beyond float32
    ],
    ids=lambda w: f"{w.scale}-{w.length:.1f}-{w.power}-{w.offset}",
)
def test_it_is_the_formula(weighting, block):
    q, k, v = (DRAWS.standard_normal((2, LENGTH, n, WIDTH)) for n in (4, 2, 2))
    q, k = np.abs(q), np.where(DRAWS.random((2, LENGTH, 1, 1)) < 0.5, -np.abs(k), k)
    at = np.arange(LENGTH)
    for mask, see in (
        (Causal(), at[:, None] >= at),
        (Window(5), (at[:, None] >= at) & (at[:, None] - at < 5)),
    ):
        ones = jnp.ones((2, LENGTH), jnp.int32)
        places = Places(jnp.asarray(at[None], jnp.int32), jnp.asarray(at[None], jnp.int32), ones, ones)

        def call(q, k, v, mask=mask, places=places):
            views = [View(q, k, None, None)]
            return softplus_attention(views, v, places, mask=mask, weighting=weighting, block=block)

        single = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
        close(jax.jit(call)(*single), formula(*(np.asarray(x, np.float64) for x in single), see, weighting), 3e-5)
        gradient = jax.jit(jax.grad(lambda q, k, v, call=call: jnp.sin(call(q, k, v)).sum(), argnums=(0, 1, 2)))(
            *single
        )
        assert all(np.isfinite(x).all() for x in gradient)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"length": "log"}, "unknown Lssar.length 'log'"),
        ({"power": 0.5}, "power: expected a number >= 1"),
        ({"offset": -1.0}, "offset: expected a number >= 0"),
        ({"block": 0}, "block: expected a positive integer"),
    ],
)
def test_bad_settings(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Lssar(heads=4, **args)
    assert "\n" not in str(caught.value)
