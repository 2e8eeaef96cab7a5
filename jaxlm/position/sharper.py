"""The base of temperatures: queries times a number that says how sharp the softmax is, around any encoding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.core import registry
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Mask, Params
from jaxlm.position.base import Wrapper


@dataclasses.dataclass(frozen=True)
class Sharper(Wrapper):
    """A wrapper that multiplies queries; subclasses say by what.

    The logits' bias, if there is one, stays as it is (but one that reads queries reads these), and a soft cap comes
    after.
    """

    @property
    def says_where(self) -> bool:
        return self.inner.says_where

    @property
    def pre_rotate(self) -> bool:
        return False  # queries are not treated as keys are

    def sharpness(self, p: Params, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        """Float32 [B or 1, L or 1, 1 or H] for queries' positions [B or 1, L]; ``length`` as of `rotate`, or [B]."""
        raise NotImplementedError

    def rotate(self, p: Params, x_BLHK: jax.Array, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        """Raises `ConfigError`: who turns queries and keys by themselves would lose the temperature."""
        name = registry.name_of("position", self)
        raise ConfigError(
            f"position {name!r} treats queries unlike keys: it may wrap others, not be wrapped or retrieved"
        )

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        now = jnp.maximum(pos_q.max(-1), pos_k.max(-1)) + 1 if self.by_length and length is None else length
        times = self.sharpness(p, pos_q, now)[..., None]
        views = self.inner.views(p, q, k, pos_q, pos_k, length)
        return [((q * times).astype(q.dtype), k, region) for q, k, region in views]
