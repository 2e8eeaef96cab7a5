"""Longformer's attention (Beltagy et al. 2020, Longformer: The Long-Document Transformer, sections 3.1 and 3.2).

Most tokens attend within a window, half of it ahead, and to the global tokens; a global token attends to all, through
projections of its own:

    y_i = softmax(q_i k^T over window(i) | globals) v             where i is not global
    y_i = softmax(q'_i k'^T over all) v'                          where it is

Learned: the projections of `jaxlm.mixer.heads`, and a second fused one, ``globals/qkv``, for q', k' and v'. Claimed:
quality of full attention on long documents in time linear in their length. Which tokens are global is said by position,
so that each document of a packed row has its own. Both softmaxes are by block lists at long lengths: the second costs
the query blocks that hold a global token, and no more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.attention.mask import Globals, Window
from jaxlm.core.config import require, slot
from jaxlm.core.params import map_specs
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.encoder import EncoderHeads


@dataclasses.dataclass(frozen=True)
class Longformer(EncoderHeads):
    """A window for most tokens, everything for a few.

    Attributes:
      heads, kv_heads, head_dim, position, scale, ..., implementation: of `EncoderHeads`.
      mask: which keys a token sees that is not global, beside the global ones.
      global_tokens: positions of the global tokens; a document's first token is at 0. Without any, the second
        projections rest.
    """

    paper: ClassVar[str] = "Beltagy et al. 2020, Longformer: The Long-Document Transformer"

    mask: Any = slot("mask", Window(257, ahead=256))
    global_tokens: tuple[int, ...] = ()

    def check(self) -> None:
        super().check()
        require(
            all(at >= 0 for at in self.global_tokens),
            f"Longformer.global_tokens: expected positions >= 0, got {self.global_tokens}",
        )

    def params(self, dims: Dims) -> Specs:
        specs = super().params(dims)
        second = {name: specs[name] for name in ("qkv", "qkv_bias") if name in specs}
        used = float(bool(self.global_tokens))
        return {**specs, "globals": map_specs(lambda _, one: dataclasses.replace(one, active=used), second)}

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sums: 4 H K per key that a token sees, and for global tokens all keys besides."""
        own, count = self.dims(dims), min(length, len(self.global_tokens))
        return 4.0 * own.heads * own.head_dim * (min(length, self.mask.mean_keys(length) + count) + count)

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context, state: None = None) -> tuple[jax.Array, None]:
        """[B, L, D] -> [B, L, D]."""
        if not self.global_tokens:
            return self.unproject(p, self.read(p, p, x_BLD, ctx, self.mask)), None
        near = self.read(p, p, x_BLD, ctx, self.mask | Globals(self.global_tokens, queries=False))
        far = self.read(p, {**p, **p["globals"]}, x_BLD, ctx, Globals(self.global_tokens, keys=False))
        chosen = jnp.isin(ctx.positions, jnp.asarray(self.global_tokens))
        return self.unproject(p, jnp.where(chosen[..., None, None], far, near)), None
