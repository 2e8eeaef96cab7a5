"""The long short-term memory, token after token: nothing of it runs in parallel but the products with the inputs.

    i, f, o = sigmoid(.), g = tanh(.)   of   x_t W + h_{t-1} R + b        c_t = f c_{t-1} + i g      h_t = o tanh(c_t)

Gates are ordered i, f, g, o, as in torch and in ONNX exports of it (Hochreiter and Schmidhuber 1997; Gers et al. 2000
for the forget gate).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.ops.dense import dense
from jaxlm.ops.segments import Rows


def lstm(
    x: jax.Array,
    w: jax.Array,
    r: jax.Array,
    bias: jax.Array,
    *,
    rows: Rows | None = None,
    state: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer over L tokens.

    Args:
      x: [B, L, D].
      w: [D, 4, N], of the inputs. r: [N, 4, N], of the last output. bias: [4, N].
      rows: padding and documents; None for neither.
      state: h and c, float32 [B, N], before these tokens; None for zeros.

    Returns:
      h of every token, [B, L, N] in x's dtype, arbitrary on padding, and the float32 h and c after the last.
    """
    kind = jnp.promote_types(x.dtype, jnp.float32)
    batch, width = x.shape[0], r.shape[0]
    inputs = dense(x, w, dtype=kind) + bias.astype(kind)  # of all tokens at once: what is left in the loop is h R
    flat = r.astype(x.dtype).reshape(width, -1)
    if state is None:
        state = jnp.zeros((batch, width), kind), jnp.zeros((batch, width), kind)
    along = (inputs,)
    if rows is not None:
        along = inputs, rows.real, jnp.diff(rows.epoch, axis=1, prepend=0) > 0

    def token(before: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]) -> tuple[tuple, jax.Array]:
        h, c = before
        if rows is not None:
            h, c = (jnp.where(now[2][:, None], 0, s) for s in before)
        product = jnp.matmul(h.astype(x.dtype), flat, preferred_element_type=kind)
        i, f, g, o = jnp.moveaxis(now[0] + product.reshape(batch, 4, width), 1, 0)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        if rows is not None:
            new_h, new_c = (jnp.where(now[1][:, None], *pair) for pair in ((new_h, h), (new_c, c)))
        return (new_h, new_c), new_h.astype(x.dtype)

    start = state[0].astype(kind), state[1].astype(kind)
    (h, c), out = jax.lax.scan(token, start, jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), along))
    return jnp.moveaxis(out, 0, 1), (h, c)
