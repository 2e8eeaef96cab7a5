"""The differentiable call of a block-sparse back end: layout, padding, and the one `jax.custom_vjp` of all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Options


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: BlockMask,
    bias: Bias | None,
    options: Options,
    backend: ModuleType,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v over what ``mask`` shows, by ``backend`` (`core`), differentiable in q, k, v and
    the bias' numbers.

    Args:
      q: [B, Lq, H, K]; k, v: [B, Lk, G, K], [B, Lk, G, V], of any lengths up to the mask's padded ones.

    Returns:
      [B, Lq, H, V] in v's dtype, and the log-sum-exp, float32 [B, H, Lq]; its cotangent counts too.
    """
    numbers = None if bias is None else bias.numbers
    static = dataclasses.replace(mask, rows=None, columns=None, positions=None, data=None, numbers=None)
    fixed = None if bias is None else dataclasses.replace(bias, numbers=None)

    def parts(arrays: Any, numbers: Any) -> tuple[BlockMask, Bias | None]:
        rows, columns, positions, data, values = arrays
        whole = dataclasses.replace(static, rows=rows, columns=columns, positions=positions, data=data, numbers=values)
        return whole, None if fixed is None else dataclasses.replace(fixed, numbers=numbers)

    # Static lists stay out of the arguments, so that back ends find numpy arrays in them.
    arrays = mask.rows, mask.columns, mask.positions, mask.data, mask.numbers
    leaves, tree = jax.tree.flatten(arrays)
    traced = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
    constants = [None if i in traced else x for i, x in enumerate(leaves)]

    def joined(given: list[jax.Array]) -> Any:
        items = list(constants)
        for i, x in zip(traced, given, strict=True):
            items[i] = x
        return jax.tree.unflatten(tree, items)

    @jax.custom_vjp
    def run(q, k, v, numbers, given):
        return backend.forward(q, k, v, *parts(joined(given), numbers), options)

    def run_forward(q, k, v, numbers, given):
        out, lse = run(q, k, v, numbers, given)
        return (out, lse), (q, k, v, numbers, given, out, lse)

    def run_backward(saved, cotangents):
        q, k, v, numbers, given, out, lse = saved
        dout, dlse = cotangents
        some = jnp.isfinite(lse)
        delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - jnp.where(some, dlse, 0.0)
        dq, dk, dv, dnumbers = backend.backward(
            q, k, v, *parts(joined(given), numbers), options, jnp.where(some, lse, 0.0), delta, dout.astype(v.dtype)
        )
        if dnumbers is None:
            dnumbers = jax.tree.map(jnp.zeros_like, numbers)
        else:
            dnumbers = jax.tree.map(lambda d, n: d.astype(n.dtype), dnumbers, numbers)
        return dq, dk, dv, dnumbers, [_no_gradient(x) for x in given]

    run.defvjp(run_forward, run_backward)
    rows = -(-q.shape[1] // mask.block_q) * mask.block_q
    cols = -(-k.shape[1] // mask.block_k) * mask.block_k
    out, lse = run(_laid(q, rows), _laid(k, cols), _laid(v, cols), numbers, [leaves[i] for i in traced])
    return out[:, :, : q.shape[1]].transpose(0, 2, 1, 3), lse[:, :, : q.shape[1]]


def _laid(x: jax.Array, length: int) -> jax.Array:
    """[B, L, H, K] -> [B, H, length, K], zeros behind."""
    x = x.transpose(0, 2, 1, 3)
    return x if x.shape[2] == length else jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))


def _no_gradient(x: jax.Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@dataclasses.dataclass(frozen=True)
class Target:
    """For what a call is made: the platform and chip of the default device, unless said otherwise."""

    platform: str = ""
    chip: str = ""
    interpret: Any = False


_target = Target()


@contextlib.contextmanager
def aimed_at(platform: str = "", chip: str = "", interpret: Any = False) -> Iterator[None]:
    """Within it, calls are made for another platform, to compile for a machine that is not there, or are interpreted.

    Args:
      platform: ``"gpu"``, ``"tpu"`` or ``"cpu"``; chip: its device kind.
      interpret: True, or an interpreter's own parameters: kernels then run on any platform.
    """
    global _target
    before, _target = _target, Target(platform, chip, interpret)
    try:
        yield
    finally:
        _target = before


def target() -> Target:
    """For what calls are made now."""
    if _target.platform:
        return _target
    return dataclasses.replace(_target, platform=jax.default_backend(), chip=jax.devices()[0].device_kind)
