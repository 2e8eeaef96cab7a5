"""Cross-entropy of a vocabulary head without ever holding [B, L, V]: rows are cut, pieces recomputed backward."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

PIECE = 2**23  # logits alive at once, per batch of rows


def token_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[target] and log-sum-exp, float32 [...], of float32 logits [..., V] and targets [...]."""
    lse = jax.nn.logsumexp(logits, axis=-1)
    # A comparison fuses into the sum; a gather would scatter in the backward pass.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    return lse - jnp.where(hit, logits, 0.0).sum(-1), lse


def cross_entropy(
    hidden: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    piece: int = PIECE,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over tokens of the loss and of correct top-1 predictions.

    Args:
      hidden: [B, L, D].
      unembed: hidden -> float32 logits [..., V].
      targets: int32 [B, L]. weights: float32 [B, L]; a token of weight 0 costs nothing and sends no gradient.
      z_loss: factor of the added ``log-sum-exp ** 2`` (Chowdhery et al. 2022, PaLM: 1e-4).
      piece: at most about this many logits are held at once.

    Returns:
      float32 scalars: sum of weight * loss, sum of weight * (argmax == target).
    """

    def sums(hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = unembed(hidden)
        loss, lse = token_losses(logits, targets)
        if z_loss:
            loss = loss + z_loss * lse**2
        # where, not a product: a padded row may hold anything
        loss = jnp.where(weights > 0, loss * weights, 0.0).sum()
        return loss, (weights * (jnp.argmax(logits, -1) == targets)).sum()

    batch, length = targets.shape
    vocabulary = jax.eval_shape(unembed, hidden[:1, :1]).shape[-1]
    pieces = min(length, -(-batch * length * vocabulary // piece))
    if pieces == 1:
        return sums(hidden, targets, weights)
    size = -(-length // pieces)
    room = size * pieces - length

    def cut(x: jax.Array) -> jax.Array:  # [B, L, ...] -> [pieces, B, size, ...]
        x = jnp.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, pieces, size, *x.shape[2:]), 1, 0)

    def add(total: tuple[jax.Array, jax.Array], one: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, jax.Array], None]:
        loss, correct = jax.checkpoint(sums, prevent_cse=False)(*one)
        return (total[0] + loss, total[1] + correct), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), (cut(hidden), cut(targets), cut(weights)))[0]
