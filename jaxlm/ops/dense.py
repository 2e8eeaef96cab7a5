"""Matmul with a weight of several input or output axes, done as one 2-D product.

Keeping a fused projection as (D, groups, parts, K) lets each axis shard by name; multiplying it as (D, groups*parts*K)
is what a CPU or MXU wants (4-D einsums cost 1.5x on a CPU).

The gradient of the weight is written by hand. A CPU multiplies rows by columns, so x^T g needs a transposed copy, and
JAX's rule has it made of g whatever the shapes: in an MLP that is the cotangent of the wide hidden layer, with the
activation's derivative fused into strided reads (a fifth of a training step). Here the narrower of x and g is copied.
The price of `jax.custom_vjp` is that forward-mode differentiation stops here.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp


def dense(x: jax.Array, weight: jax.Array, inputs: int = 1, dtype: Any = None) -> jax.Array:
    """x [..., *in] times weight [*in, *out] over its first ``inputs`` axes -> [..., *out].

    The product is of x's dtype; ``dtype`` (by default that of x) is what it is summed into and returned as.
    """
    lead = x.shape[: x.ndim - inputs]
    size = math.prod(weight.shape[:inputs])
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    out: Any = _matmul(dtype, x.reshape(*lead, size), weight.reshape(size, -1).astype(x.dtype))
    return out.reshape(*lead, *weight.shape[inputs:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(dtype: Any, x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., D] weight [D, F] -> [..., F]."""
    return jnp.matmul(x, weight, preferred_element_type=dtype)


def _forward(dtype: Any, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matmul(dtype, x, weight), (x, weight)


def _backward(dtype: Any, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    g = g.astype(x.dtype)
    dw = jax.lax.platform_dependent(x, g, cpu=_outer_on_cpu, default=_outer)
    return jnp.matmul(g, weight.T), dw


def _outer(x: jax.Array, g: jax.Array) -> jax.Array:
    """The sum over all leading axes of x_i g_j: [..., D], [..., F] -> [D, F]."""
    lead = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, g, ((lead, lead), ((), ())))


def _outer_on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
    if x.shape[-1] > g.shape[-1]:
        return _outer_on_cpu(g, x).T
    # The barriers keep the two transposes from being folded into the product, which would undo the choice.
    x = jax.lax.optimization_barrier(jnp.moveaxis(x, -1, 0))
    dims = tuple(range(1, x.ndim)), tuple(range(g.ndim - 1))
    return jax.lax.optimization_barrier(jax.lax.dot_general(x, g, (dims, ((), ()))))


_matmul.defvjp(_forward, _backward)
