"""Rotary position embedding: pairs of channels of q and k are turned by angle i * f_m, f_m = base^(-2m/d).

The score of (i, j) then depends on i - j alone. Learned: nothing, unless a scaling says so. Claimed: relative positions
at no cost (Su et al. 2021); does not extrapolate untouched (Kazemnejad et al. 2023). Shown by:
experiments.length_generalization.
Pairing is not visible in shapes: ``"half"`` pairs channel m with m + d/2 (Llama, GPT-NeoX), ``"interleaved"`` pairs 2m
with 2m + 1 (the paper, GPT-J, and McGill-NLP's length-generalization project, which turns a quarter of each head).
A larger base is a context extension by itself, RoPE-ABF: from 10,000 to 500,000, then training at the longer length,
beats interpolation (Xiong et al. 2023, Effective Long-Context Scaling of Foundation Models). Other ways to longer
contexts are scalings.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require, slot
from jaxlm.core.errors import choose
from jaxlm.core.types import Dims, Mask, Params, PositionEncoding, Specs
from jaxlm.ops.rotary import PAIRINGS, angles, inverse_frequencies, turn


@dataclasses.dataclass(frozen=True)
class Rotary(PositionEncoding):
    """RoPE.

    Attributes:
      base: theta; the longest wavelength over 2 pi. May differ per layer.
      fraction: share of each head's channels that are turned, from the first; the rest carry no position.
      pairing: ``"half"`` or ``"interleaved"``.
      scaling: how frequencies are changed for contexts longer than those of training, or None.
    """

    paper: ClassVar[str] = "Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding"

    base: float = 10_000.0
    fraction: float = 1.0
    pairing: str = "half"
    scaling: Any = slot("rotary_scaling", None, optional=True)

    def check(self) -> None:
        choose("Rotary.pairing", self.pairing, PAIRINGS)
        traced = hasattr(self.base, "aval")
        require(traced or self.base > 0, f"Rotary.base: expected a positive number, got {self.base}")
        require(0 < self.fraction <= 1, f"Rotary.fraction: expected a number in (0, 1], got {self.fraction}")
        require(not traced or self.scope == "layer", "Rotary.base: one for all layers, since they share the scaling's")

    @property
    def scope(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "layer" if self.scaling is None else self.scaling.scope

    @property
    def by_length(self) -> bool:
        return self.scaling is not None and self.scaling.by_length

    @property
    def pre_rotate(self) -> bool:
        return not self.by_length

    def params(self, dims: Dims) -> Specs:
        return {} if self.scaling is None else self.scaling.params(self._width(dims.head_dim))

    def prepare(self, p: Params, dims: Dims) -> Params:
        return p if self.scaling is None else self.scaling.prepare(p, self.base, self._width(dims.head_dim))

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        return positions if self.scaling is None else self.scaling.draw_training(key, positions, rows)

    def frequencies(self, p: Params, head_dim: int, length: jax.Array | int | None = None) -> jax.Array:
        """float32 [m], or [B, m] for a ``length`` [B]: radians per position of each pair.

        An odd share of the channels is rounded up to whole pairs, with the exponents of the odd number, as in
        transformers. Raises `ConfigError` for an odd full head, or a scaling made for another width.
        """
        if self.scaling is None:
            return inverse_frequencies(self.base, self._width(head_dim))
        return self.scaling.frequencies(p, self.base, self._width(head_dim), length)

    def rotate(self, p: Params, x_BLHK: jax.Array, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        if self.by_length and length is None:
            length = positions.max(-1) + 1
        turns = angles(positions, self.frequencies(p, x_BLHK.shape[-1], length))
        cos, sin = jnp.cos(turns), jnp.sin(turns)
        if self.scaling is not None and (amplitude := self.scaling.amplitude()) != 1:
            cos, sin = cos * amplitude, sin * amplitude
        return turn(x_BLHK, cos, sin, self.pairing)

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        if self.by_length and length is None:  # each row's own: its frequencies must not depend on its neighbours
            length = jnp.maximum(pos_q.max(-1), pos_k.max(-1)) + 1
        return super().views(p, q, k, pos_q, pos_k, length)

    def _width(self, head_dim: int) -> int:
        """The number of channels that turn."""
        width = int(head_dim * self.fraction)
        require(
            width > 0 and (width % 2 == 0 or (width < head_dim and self.scaling is None)),
            f"rotary: {self.fraction} of head width {head_dim} is {width} channels; need an even number",
        )
        return width
