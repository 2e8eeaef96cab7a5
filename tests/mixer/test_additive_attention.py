"""Additive attention against its formula in float64, with causal and prefix masks; what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.mask import Causal, Prefix
from jaxlm.core.config import make
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.additive_attention import AdditiveAttention
from jaxlm.ops.additive_attention import additive_attention
from tests.tiny import close, draw_params

LENGTH, WIDTH = 11, 5
AT = np.arange(LENGTH)
SEE = {"causal": AT[:, None] >= AT, "prefix": (AT[:, None] >= AT) | (AT[None] < 4)}
MASKS = {"causal": Causal(), "prefix": Causal() | Prefix(4)}


def formula(q, k, v, scorer, see):
    q, k, v, scorer = (np.asarray(x, np.float64) for x in (q, k, v, scorer))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, i, h in np.ndindex(*q.shape[:3]):
        g = h // (q.shape[2] // k.shape[2])
        seen = np.flatnonzero(see[i])
        e = np.exp(np.tanh(q[b, i, h] + k[b, seen, g]) @ scorer[h])
        out[b, i, h] = e / e.sum() @ v[b, seen, g]
    return out


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("block", "implementation"), [(1, "xla"), (4, "xla"), (64, "xla"), (4, "reference")])
def test_it_is_the_formula(mask, block, implementation):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, LENGTH, n, WIDTH)).astype(np.float32) for n in (4, 2, 2))
    scorer = 3 * rng.standard_normal((4, WIDTH)).astype(np.float32)
    places = *[jnp.asarray(AT[None], jnp.int32)] * 2, *[jnp.ones((2, LENGTH), jnp.int32)] * 2
    run = lambda q, k, v, s: additive_attention(
        q, k, v, s, places, mask=MASKS[mask], block=block, implementation=implementation
    )
    close(jax.jit(run)(q, k, v, scorer), formula(q, k, v, scorer, SEE[mask]))


def test_a_source_is_read_before_the_target_goes_on():
    """With a prefix mask a prompt in one piece, then single tokens: as in one pass."""
    mixer = AdditiveAttention(heads=2, mask=MASKS["prefix"])
    dims = Dims(width=8)
    p = draw_params(mixer.params(dims))
    x = np.random.default_rng(0).standard_normal((2, LENGTH, 8)).astype(np.float32)
    context = lambda at: Context(positions=jnp.asarray(AT[None, at], jnp.int32), ordered=False)
    whole = jax.jit(lambda p, x: mixer(p, x, context(slice(None)))[0])(p, x)
    assert not np.allclose(whole[:, 0], jax.jit(lambda p, x: mixer(p, x, context(slice(0, 1)))[0])(p, x[:, :1])[:, 0])
    state = mixer.init_state(dims, 2, LENGTH, jnp.float32, make("cache", "full"))
    out, start = [], 0
    for size in (4, *(1,) * (LENGTH - 4)):
        at = slice(start, start + size)
        y, state = mixer(p, jnp.asarray(x[:, at]), context(at), state)
        out.append(y)
        start += size
    close(jnp.concatenate(out, 1), whole)


def test_memory_of_the_backward_pass_is_of_a_block():
    """Nothing of the size of queries x keys x channels is ever held."""
    length = 256
    x = jax.ShapeDtypeStruct((1, length, 1, 32), jnp.float32)
    places = *[jnp.zeros((1, length), jnp.int32)] * 2, *[jnp.ones((1, length), jnp.int32)] * 2

    def loss(q, k, v):
        return jnp.sin(additive_attention(q, k, v, jnp.ones((1, 32)), places, mask=Causal(), block=8)).sum()

    sizes = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis()
    assert sizes.temp_size_in_bytes < 4 * length * length * 32 / 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"scale": 0.5}, "scale: there are no products to scale"),
        ({"soft_cap": 5.0}, "soft_cap: there are no products to scale"),
        ({"block": 0}, "block: expected a positive integer"),
        ({"implementation": "fast"}, "unknown AdditiveAttention.implementation 'fast'"),
    ],
)
def test_bad_settings(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        AdditiveAttention(**args)
    assert "\n" not in str(caught.value)


def test_positions_that_act_on_products_are_refused():
    mixer = AdditiveAttention(heads=2, position="rotary")
    p = draw_params(mixer.params(Dims(width=8)))
    with pytest.raises(ConfigError, match="Rotary acts on products") as caught:
        mixer(p, jnp.zeros((1, 3, 8)), Context(positions=jnp.arange(3)[None]))
    assert "\n" not in str(caught.value)
