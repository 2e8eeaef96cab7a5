"""xPos: rotary, and a decay that q and k share between them: q zeta^(i/S), k zeta^(-j/S), so scores fall as zeta^(r/S).

    zeta_m = (2m + 0.4 d) / (1.4 d), m = 0..d/2-1: slow pairs hardly fall, fast ones most

Learned: nothing. Claimed: a smooth decay that extrapolates (Sun et al. 2023); with a larger base, and fine-tuned, worse
than rotary alone (Pal et al. 2023). Angles count from 0; scales from the middle of the row, i - ceil(n / 2), whose part
in a score cancels, so that they neither overflow nor vanish. Beyond 64 S positions they would even so, which is
refused. Scaled queries and keys grow to 1e17 there, more than float16 holds.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.types import Mask, Params, PositionEncoding
from jaxlm.ops.rotary import PAIRINGS, angles, inverse_frequencies, turn


@dataclasses.dataclass(frozen=True)
class XPos(PositionEncoding):
    """Extrapolatable rotary positions.

    Attributes:
      base: theta of the rotation.
      scale_base: S, positions over which the fastest pair falls to 0.29.
      pairing: ``"interleaved"``, as published, or ``"half"``.
    """

    paper: ClassVar[str] = "Sun et al. 2023, A Length-Extrapolatable Transformer"

    base: float = 10_000.0
    scale_base: float = 512.0
    pairing: str = "interleaved"

    def check(self) -> None:
        require(
            self.base > 0 and self.scale_base >= 1,
            f"XPos: expected base > 0 and scale_base >= 1, got {self.base} and {self.scale_base}",
        )
        choose("XPos.pairing", self.pairing, PAIRINGS)

    @property
    def pre_rotate(self) -> bool:
        return False  # queries are not treated as keys are

    def max_positions(self) -> int:
        return int(64 * self.scale_base)

    def rotate(self, p: Params, x_BLHK: jax.Array, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        """Raises `ConfigError`: a query is scaled up where a key is scaled down."""
        raise ConfigError("position 'xpos' treats queries unlike keys: its keys cannot be turned by themselves")

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        longest = jnp.maximum(pos_q.max(-1), pos_k.max(-1)) + 1 if length is None else jnp.asarray(length)
        middle = jnp.atleast_1d((longest + 1) // 2)[:, None]
        return [(self._turned(q, pos_q, middle, 1), self._turned(k, pos_k, middle, -1), None)]

    def _turned(self, x: jax.Array, positions: jax.Array, middle: jax.Array, sign: int) -> jax.Array:
        """x [B, L, G, K] rotated, and scaled by zeta to the power of sign * (position - middle) / S."""
        width = x.shape[-1]
        require(width % 2 == 0, f"xPos needs an even head width, got {width}")
        zeta = jnp.asarray(np.log((np.arange(0, width, 2) + 0.4 * width) / (1.4 * width)), jnp.float32)
        turns = angles(positions, inverse_frequencies(self.base, width))
        scale = jnp.exp(angles(positions - middle, zeta * (sign / self.scale_base)))
        return turn(x, jnp.cos(turns) * scale, jnp.sin(turns) * scale, self.pairing)
