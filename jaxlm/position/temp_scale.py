"""TempScale: softmax(logits / tau) in every layer, bias included, with one tau; around any encoding.

Learned: nothing; tau is tuned, 0.5 to 1. Claimed: embeddings of long texts, which attention's low-pass filter draws
together, keep apart (Zhou et al. 2025, Length-Induced Embedding Collapse). The same is what YaRN does to logits,
1 / tau = g(s)^2 with g(s) = 0.1 ln s + 1, for use where rotary is not there to carry it. A tau that falls with the
length: `log_n` with count "length", inside this one if both are wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import Params, RowBias, Side, TileBias
from jaxlm.position.scaling.yarn import magnitude
from jaxlm.position.sharper import Sharper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Times(TileBias):
    """Another bias times a number."""

    inner: Any
    factor: float = dataclasses.field(metadata={"static": True})

    @property
    def trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.trainable

    def numbers(self) -> jax.Array | None:
        return self.inner.numbers()

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.factor * self.inner.at(numbers, pos_q, pos_k)

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.factor * self.inner.tile(pos_q, pos_k)


@dataclasses.dataclass(frozen=True)
class TimesRule:
    """A `RowBias`'s rule times a number."""

    rule: Callable[..., jax.Array]
    factor: float

    def __call__(self, *arguments: Any) -> jax.Array:
        return self.factor * self.rule(*arguments)


@dataclasses.dataclass(frozen=True)
class TempScale(Sharper):
    """All logits over tau.

    Attributes:
      inner: the encoding that says where tokens are.
      tau: the temperature.
      factor: s of YaRN's, longer context over that of training, whose temperature multiplies this one.
    """

    paper: ClassVar[str] = "Zhou et al. 2025, Length-Induced Embedding Collapse in PLM-based Models"

    tau: float = 1.0
    factor: float = 1.0

    def check(self) -> None:
        require(
            self.tau > 0 and self.factor >= 1,
            f"TempScale: expected tau > 0 and factor >= 1, got {self.tau} and {self.factor}",
        )

    def sharpness(self, p: Params, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        return jnp.full((1, 1, 1), self._times, jnp.float32)

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias | RowBias | None:
        plain = (q / self._times).astype(q.dtype)  # a bias that reads queries reads them as they were
        bias = self.inner.bias(p, plain, k, pos_q, pos_k, side)
        if isinstance(bias, RowBias):
            return dataclasses.replace(bias, rule=TimesRule(bias.rule, self._times))
        return bias if bias is None else Times(bias, self._times)

    @property
    def _times(self) -> float:
        return magnitude(self.factor) ** 2 / self.tau
