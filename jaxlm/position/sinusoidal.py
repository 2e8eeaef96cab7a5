"""Sinusoidal absolute positions: sin(i f_m) and cos(i f_m), f_m = base^(-2m/D), added to the embeddings.

Learned: nothing. Claimed: "may allow the model to extrapolate" (Vaswani et al. 2017); it does not (Kazemnejad et al.
2023). Shown by: experiments.length_generalization. Two layouts exist: all sines then all cosines (Marian, McGill-NLP's
length-generalization project, the default) and interleaved (the original).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Params, PositionEncoding


@dataclasses.dataclass(frozen=True)
class Sinusoidal(PositionEncoding):
    """Fixed sinusoids.

    Attributes:
      base: the longest wavelength over 2 pi.
      layout: ``"concat"`` ([sin | cos]) or ``"interleaved"`` (sin, cos, sin, ...).
      scale: factor of the table; 1 as published.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"
    scope: ClassVar[str] = "model"

    base: float = 10_000.0
    layout: str = "concat"
    scale: float = 1.0

    def check(self) -> None:
        choose("Sinusoidal.layout", self.layout, ("concat", "interleaved"))
        require(self.base > 0, f"Sinusoidal.base: expected a positive number, got {self.base}")

    def embed(self, p: Params, positions: jax.Array, width: int) -> jax.Array:
        """float32 [B, L, width]; ``width`` must be even."""
        require(width % 2 == 0, f"sinusoidal positions need an even model width, got {width}")
        frequencies = self.base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        pair = (jnp.sin(angles), jnp.cos(angles))
        table = (
            jnp.concatenate(pair, -1)
            if self.layout == "concat"
            else jnp.stack(pair, -1).reshape(*angles.shape[:-1], width)
        )
        return self.scale * table
