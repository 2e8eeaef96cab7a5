"""Running the experts of a mixture on the tokens sent to them, in two ways.

`run_sorted` sorts the (token, expert) pairs by expert and multiplies groups of rows by their expert's weights: every
pair is computed, whatever the load. `run_buffered` gives each expert C places per row of the batch and computes those,
filled or not (Lepikhin et al. 2021, GShard): plain batched matmuls, at the price of what finds no place.

Both take any part of the experts and treat a pair of another one as absent, so that each device can run its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.types import Params
from jaxlm.ffn.base import FeedForward
from jaxlm.ops.grouped import grouped_dense


def run_sorted(
    x_BLD: jax.Array,
    experts_BLk: jax.Array,
    weights_BLk: jax.Array,
    numbers_E: jax.Array,
    p: Params,
    *,
    expert: FeedForward,
    weigh_input: bool,
) -> jax.Array:
    """The weighted sum of each token's experts, [1, B, L, D].

    Args:
      x_BLD: tokens.
      experts_BLk, weights_BLk: which experts, and their weights. Pairs whose expert is not here count as absent.
      numbers_E: the numbers of the experts that are here, in a row.
      p: their parameters, each array with the axis E in front.
      expert: the feed-forward they all are.
      weigh_input: whether weights multiply an expert's input (Llama 4) and not its output.
    """
    *lead, width = x_BLD.shape
    choices = experts_BLk.shape[-1]
    local, here = _local(experts_BLk.reshape(-1), numbers_E)
    weights = jnp.where(here, weights_BLk.reshape(-1), 0)[:, None]
    order = jnp.argsort(local, stable=True)
    inverse = jnp.argsort(order)
    sorted_ids = local[order]
    sizes = jnp.diff(jnp.searchsorted(sorted_ids, jnp.arange(len(numbers_E) + 1))).astype(jnp.int32)
    rows = jnp.repeat(x_BLD.reshape(-1, width), choices, axis=0)
    rows = (rows * weights).astype(x_BLD.dtype) if weigh_input else rows

    def linear(name: str, x: jax.Array) -> jax.Array:
        y = grouped_dense(x, p[name], sizes)
        bias = p.get(f"{name}_bias")
        return y if bias is None else y + bias[sorted_ids].astype(y.dtype)

    out = _permute(expert.apply(linear, _permute(rows, order, inverse)), inverse, order)
    out = jnp.where(here[:, None], out if weigh_input else out * weights, 0)
    return out.reshape(1, *lead, choices, width).sum(-2).astype(x_BLD.dtype)


def run_buffered(
    x_BLD: jax.Array,
    experts_BLk: jax.Array,
    weights_BLk: jax.Array,
    places_BLk: jax.Array,
    numbers_E: jax.Array,
    p: Params,
    *,
    expert: FeedForward,
    weigh_input: bool,
    capacity: int,
) -> jax.Array:
    """As `run_sorted`, for pairs that each have a place below ``capacity`` in their expert's buffer of their row."""
    batch, length, width = x_BLD.shape
    count, (local, here) = len(numbers_E), _local(experts_BLk, numbers_E)
    size = count * capacity
    slot = jnp.where(here, local * capacity + places_BLk, size).reshape(batch, -1)  # `size` is nowhere
    rows = jnp.arange(batch)[:, None]

    def filled(values: jax.Array, empty: int) -> jax.Array:
        """``values`` of each pair at its slot, [B, E * C]."""
        return jnp.full((batch, size + 1), empty, values.dtype).at[rows, slot].set(values)[:, :-1]

    token = jnp.broadcast_to(jnp.arange(length)[:, None], experts_BLk.shape[1:]).reshape(1, -1)
    x = _with_nothing(x_BLD)[rows, filled(jnp.broadcast_to(token, slot.shape), length)]
    if weigh_input:
        x = (x * filled(weights_BLk.reshape(batch, -1), 0)[..., None]).astype(x.dtype)

    def linear(name: str, x: jax.Array) -> jax.Array:
        weight = p[name].astype(x.dtype)
        flat = weight.reshape(*weight.shape[:2], -1)
        y = jnp.einsum("emd,edf->emf", x, flat).reshape(*x.shape[:2], *weight.shape[2:])
        bias = p.get(f"{name}_bias")
        return y if bias is None else y + bias[:, None].astype(y.dtype)

    x = x.reshape(batch, count, capacity, width).swapaxes(0, 1).reshape(count, -1, width)
    y = expert.apply(linear, x)
    y = y.reshape(count, batch, capacity, width).swapaxes(0, 1).reshape(batch, size, width)
    out = _with_nothing(y)[rows, slot].reshape(*experts_BLk.shape, width)
    out = out if weigh_input else out * weights_BLk[..., None]
    return out.sum(-2).astype(x_BLD.dtype)[None]


def places(experts_BLk: jax.Array, count: int) -> jax.Array:
    """For each pair, how many pairs before it in its row have the same expert: int32 [B, L, k].

    Pairs are counted token after token, so that a later token never displaces an earlier one (GShard counts all first
    choices before the second ones). Those of expert ``count`` or more are not counted.
    """
    flat = experts_BLk.reshape(experts_BLk.shape[0], -1)
    seen = jnp.cumsum(jax.nn.one_hot(flat, count, dtype=jnp.int32), axis=1)
    before = jnp.take_along_axis(seen, jnp.minimum(flat, count - 1)[..., None], -1) - 1
    return before.reshape(experts_BLk.shape)


def _local(experts: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each expert's index among those that are here (their count if it is not), and whether it is."""
    index = experts - numbers[0]
    here = (index >= 0) & (index < len(numbers))
    return jnp.where(here, index, len(numbers)), here


def _with_nothing(x: jax.Array) -> jax.Array:
    """A row of zeros after the last of [B, M, D]."""
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[order]. Its gradient is a permutation too, where JAX's would be a scatter, which a CPU does row by row."""
    del inverse
    return x[order]


_permute.defvjp(lambda x, order, inverse: (x[order], (order, inverse)), lambda saved, g: (g[saved[1]], None, None))
