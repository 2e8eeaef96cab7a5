"""Causal convolution of whole rows with filters as long as they are, channel by channel.

Without documents it is one product of Fourier transforms of twice the length, so that nothing wraps around. With them,
real tokens are moved together, and blocks of 1, 2, 4, ... tokens each give to the block that follows what they hold of
the document that runs on from one into the other: O(L log^2 L), and no document sees another.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.ops.segments import Rows

_SMALL = 32  # blocks up to this are multiplied as matrices


def good_size(size: int) -> int:
    """The least 2^a, 3 * 2^a or 5 * 2^a that is not below ``size``: fast for every Fourier transform."""
    options = [odd << max(0, (-(-size // odd) - 1).bit_length()) for odd in (1, 3, 5)]
    return min(options)


def fft_conv(x: jax.Array, kernel: jax.Array, *, rows: Rows | None = None) -> jax.Array:
    """y_i = sum_j kernel[j] x_{i-j}, where i - j counts the real tokens of i's own document.

    Args:
      x: [B, L, C].
      kernel: [n, C], the current token's first; beyond n it is 0.
      rows: padding and documents, of which that of epoch 0 has nothing before it here; None for neither.

    Returns:
      [B, L, C], float32 (float64 for such x), arbitrary on padding.
    """
    kind = jnp.promote_types(x.dtype, jnp.float32)
    x, kernel, length = x.astype(kind), kernel.astype(kind), x.shape[1]
    if rows is None:
        kernel = kernel[:length]
        return _circular(x, kernel, good_size(length + kernel.shape[0] - 1))[:, :length]
    order = jnp.argsort(~rows.real, axis=1, stable=True)  # real tokens in front
    x = jnp.take_along_axis(jnp.where(rows.real[..., None], x, 0), order[..., None], 1)
    y = _conv_of_documents(x, kernel, jnp.take_along_axis(rows.epoch, order, 1))
    return jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], 1)


def _circular(x: jax.Array, kernel: jax.Array, size: int) -> jax.Array:
    """The convolution of [..., l, C] with [n, C] on a circle of ``size`` tokens."""
    product = jnp.fft.rfft(x, size, axis=-2) * jnp.fft.rfft(kernel, size, axis=-2)
    return jnp.fft.irfft(product, size, axis=-2)


def _conv_of_documents(x: jax.Array, kernel: jax.Array, epoch: jax.Array) -> jax.Array:
    """`fft_conv` of rows [B, L, C] without padding, but at the end, and the number of each token's document [B, L]."""
    batch, length, channels = x.shape
    size = 1 << max(0, (length - 1).bit_length())
    x = jnp.pad(x, ((0, 0), (0, size - length), (0, 0)))
    epoch = jnp.pad(epoch, ((0, 0), (0, size - length)), mode="edge")
    kernel = jnp.pad(kernel[:size], ((0, max(0, size - kernel.shape[0])), (0, 0)))
    y = kernel[0] * x
    block = 1
    while block < size:
        pairs = x.reshape(batch, -1, 2, block, channels)
        marks = epoch.reshape(batch, -1, 2, block, 1)
        runs_on = marks[:, :, :1, -1:]  # the document at the end of the first block
        held = jnp.where(marks[:, :, 0] == runs_on[:, :, 0], pairs[:, :, 0], 0)
        if block <= _SMALL:
            at = block + jnp.arange(block)[:, None] - jnp.arange(block)
            given = jnp.einsum("ijc,bnjc->bnic", kernel[at], held, precision="highest")
        else:
            given = _circular(held, kernel[: 2 * block], 2 * block)[:, :, block:]  # what wraps falls before it
        given = jnp.where(marks[:, :, 1] == runs_on[:, :, 0], given, 0)
        y = y + jnp.stack((jnp.zeros_like(given), given), 2).reshape(batch, size, channels)
        block *= 2
    return y[:, :length]
