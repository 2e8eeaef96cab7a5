"""Span corruption for a decoder alone: each row becomes its corrupted input followed by the target, which is learned.

Paper: Raffel et al. 2020 (T5); for decoders Tay et al. 2023 (UL2). Formula and sizes: `jaxlm.data.span_corruption`.
All rows are corrupted inside the compiled step, with noise by (seed, step), so every epoch has other spans, and their
shapes depend on L alone. A row is one text, as in T5, where documents that are packed together are corrupted together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, slot
from jaxlm.core.types import ModelFn, Params
from jaxlm.data.span_corruption import SpanCorruption as Sizes

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Spec):
    """The tokens of a batch corrupted, and the loss of another objective on what comes of it.

    Attributes:
      how: sentinels, density and lengths; its sentinels and end must be ids of the model.
      inner: the objective of the corrupted rows.
    """

    paper: ClassVar[str] = "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Transformer"

    how: Sizes = Sizes()
    inner: Any = slot("objective", "next_token")

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        """``tokens``, ``targets``, ``weights`` [B, I + T - 1] of rows [B, L] with ``tokens`` and maybe ``segment_ids``.

        I and T are the sizes of input and target. Learned are the target's sentinels, tokens and end, but for tokens
        that were padding (segment 0), which stay where they are: rows should be full. The weights of the batch given
        are not looked at, nor are its segments: positions run through the row.
        """
        tokens = jnp.asarray(batch["tokens"])
        rows, length = tokens.shape
        mask_key, inner_key = jax.random.split(rng)
        noise = jax.vmap(lambda key: noise_mask(self.how, length, key))(jax.random.split(mask_key, rows))
        real = jnp.asarray(batch.get("segment_ids", jnp.ones_like(tokens))) > 0
        whole, weights = jax.vmap(lambda *row: corrupt(self.how, *row))(tokens, real, noise)
        made = {"tokens": whole[:, :-1], "targets": whole[:, 1:], "weights": weights[:, 1:]}
        return self.inner.prepare(made, inner_key)

    def loss(self, model: ModelFn, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The loss of the inner objective on a prepared batch."""
        return self.inner.loss(model, params, batch, rng)


def noise_mask(how: Sizes, length: int, key: jax.Array) -> jax.Array:
    """Which tokens are noise, boolean [L]; spans as in `jaxlm.data.span_corruption.SpanCorruption.spans`."""
    noise, spans = how.counts(length)
    kept_key, noise_key = jax.random.split(key)
    dropped = _cut(noise, spans, noise_key)
    stops = jnp.cumsum(_cut(length - noise, spans, kept_key) + dropped)
    edges = jnp.zeros(length + 1, jnp.int32).at[stops - dropped].add(1).at[stops].add(-1)
    return jnp.cumsum(edges[:-1]) > 0


def corrupt(how: Sizes, tokens: jax.Array, real: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Input and target of one row end to end, int32 [I + T], and weights float32 [I + T] of the target's tokens.

    Args:
      how: must give the sizes that ``noise`` has.
      tokens: int32 [L].
      real: boolean [L]; others are not learned.
      noise: boolean [L], in spans that do not touch.
    """
    length = tokens.shape[0]
    (first, second), (_, spans) = how.sizes(length), how.counts(length)
    begins = noise & ~jnp.concatenate([jnp.zeros(1, bool), noise[:-1]])
    span = jnp.cumsum(begins) - 1  # of noise tokens
    nowhere = first + second
    kept_at = jnp.where(noise, nowhere, jnp.cumsum(~noise | begins) - 1)
    mark_at = jnp.where(begins, jnp.cumsum(~noise | begins) - 1, nowhere)
    drop_at = jnp.where(noise, first + jnp.cumsum(noise) + span, nowhere)
    marks = how.sentinel - span
    whole = jnp.full(first + second, how.end, jnp.int32)
    weights = jnp.concatenate([jnp.zeros(first), jnp.ones(second)])
    for at, values in ((kept_at, tokens), (mark_at, marks), (drop_at, tokens)):
        whole = whole.at[at].set(values, mode="drop")
    whole = whole.at[jnp.where(begins, drop_at - 1, nowhere)].set(marks, mode="drop")
    if how.closing:
        whole = whole.at[-2].set(how.sentinel - spans)
    return whole, weights.at[drop_at].set(real.astype(jnp.float32), mode="drop")


def _cut(total: int, parts: int, key: jax.Array) -> jax.Array:
    """The sizes of ``parts`` non-empty parts of ``total``, all compositions equally likely, int32 [parts]."""
    begins = jax.random.permutation(key, (jnp.arange(total - 1) < parts - 1).astype(jnp.int32))
    part = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), begins]))
    return jnp.zeros(parts, jnp.int32).at[part].add(1)
