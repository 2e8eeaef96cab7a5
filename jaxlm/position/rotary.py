"""Rotary position embedding: pairs of channels of q and k are turned by angle i * f_m, f_m = base^(-2m/d).

The score of (i, j) then depends on i - j alone. Learned: nothing. Claimed: relative positions at no cost (Su et al.
2021); does not extrapolate untouched (Kazemnejad et al. 2023). Shown by: experiments.length_generalization.
Pairing is not visible in shapes: ``"half"`` pairs channel m with m + d/2 (Llama, GPT-NeoX), ``"interleaved"`` pairs 2m
with 2m + 1 (the paper, GPT-J, and McGill-NLP's length-generalization project, which turns a quarter of each head).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Params, PositionEncoding


def turn(x_BLHK: jax.Array, cos: jax.Array, sin: jax.Array, pairing: str) -> jax.Array:
    """Rotates the first 2m channels of each head by angles with the given float32 cos and sin [B or 1, L, m].

    Works in float32 and returns x's dtype; the remaining channels pass through.
    """
    pairs = cos.shape[-1]
    x = x_BLHK[..., : 2 * pairs].astype(jnp.float32)
    cos, sin = cos[:, :, None], sin[:, :, None]
    if pairing == "half":
        a, b = x[..., :pairs], x[..., pairs:]
        turned = jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = x[..., 0::2], x[..., 1::2]
        turned = jnp.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    turned = turned.astype(x_BLHK.dtype)
    return turned if 2 * pairs == x_BLHK.shape[-1] else jnp.concatenate((turned, x_BLHK[..., 2 * pairs :]), -1)


@dataclasses.dataclass(frozen=True)
class Rotary(PositionEncoding):
    """RoPE.

    Attributes:
      base: theta; the longest wavelength over 2 pi. May differ per layer.
      fraction: of each head's channels that turn (the first ones); the rest carry no position.
      pairing: ``"half"`` or ``"interleaved"``.
    """

    paper: ClassVar[str] = "Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding"

    base: float = 10_000.0
    fraction: float = 1.0
    pairing: str = "half"

    def check(self) -> None:
        choose("Rotary.pairing", self.pairing, ("half", "interleaved"))
        require(
            hasattr(self.base, "aval") or self.base > 0, f"Rotary.base: expected a positive number, got {self.base}"
        )
        require(0 < self.fraction <= 1, f"Rotary.fraction: expected a number in (0, 1], got {self.fraction}")

    def frequencies(self, head_dim: int) -> jax.Array:
        """float32 [m]: radians per position of each pair. Raises `ConfigError` for an odd rotated width."""
        width = int(head_dim * self.fraction)
        require(
            width % 2 == 0 and width > 0,
            f"rotary: {self.fraction} of head width {head_dim} is {width} channels; need an even number",
        )
        return self.base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)

    def rotate(self, p: Params, x_BLHK: jax.Array, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        # An element-wise product: as a matmul, TF32 or bfloat16 passes would ruin the angle of a large position.
        angles = positions[..., None].astype(jnp.float32) * self.frequencies(x_BLHK.shape[-1])
        return turn(x_BLHK, jnp.cos(angles), jnp.sin(angles), self.pairing)
