"""What scalings share: checks of their numbers, and rules that change the frequencies another scaling gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlm.core.config import require, slot
from jaxlm.core.types import Params, RotaryScaling, Specs
from jaxlm.ops.rotary import inverse_frequencies


def check_factor(name: str, factor: float) -> None:
    """Raises `ConfigError` unless ``factor`` makes contexts longer, or leaves them be."""
    require(factor >= 1, f"{name}: expected the longer context over that of training, a number from 1 on, got {factor}")


def check_original(name: str, original: int) -> None:
    """Raises `ConfigError` unless ``original`` is a length."""
    require(original > 1, f"{name}: expected the length of training, an integer over 1, got {original}")


@dataclasses.dataclass(frozen=True)
class Changed(RotaryScaling):
    """The base of rules that are applied to the frequencies of another; they override `change`.

    Attributes:
      inner: the scaling whose frequencies are changed, or None for the plain ones.
    """

    inner: Any = slot("rotary_scaling", None, optional=True)

    def change(self, frequencies: jax.Array) -> jax.Array:
        """New frequencies [..., m] for others."""
        raise NotImplementedError

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        if self.inner is None:
            return self.change(inverse_frequencies(base, width))
        return self.change(self.inner.frequencies(p, base, width, length))

    @property
    def scope(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "layer" if self.inner is None else self.inner.scope

    @property
    def by_length(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner is not None and self.inner.by_length

    def params(self, width: int) -> Specs:
        return {} if self.inner is None else self.inner.params(width)

    def prepare(self, p: Params, base: jax.Array | float, width: int) -> Params:
        return p if self.inner is None else self.inner.prepare(p, base, width)

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        return positions if self.inner is None else self.inner.draw_training(key, positions, rows)

    def amplitude(self) -> float:
        return 1.0 if self.inner is None else self.inner.amplitude()
