"""LM-Infinite: distances that never pass a ceiling, for keys beyond a local window.

Keys at distances below ``local`` stand where they are; all others, of which the mask leaves the first few, at the one
distance ``limit``: a rotary query turned by ``limit`` meets keys that are not turned. Biases that fall with distance
(ALiBi) are capped at that of ``limit``. Learned: nothing. Claimed: fluent to 200M tokens (Han et al. 2024). Shown by:
experiments.context_extension. The mask is a field of its own; the two together, as the paper has them:

    position = LmInfinite(rotary, local=4096, sinks=10, limit=4096)
    longer = jaxlm.replace(model, {"mixer.position": position, "mixer.mask": position.mask()})

The authors' code takes min(limit, T - 1) for the ceiling of a text of T tokens; here it is ``limit`` whatever the text,
which only differs where ``local`` is less than T - 1 and that less than ``limit``, so that a key's distance does not
depend on later tokens.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.types import Mask, Params, RowBias, Side, TileBias
from jaxlm.position.views import RotaryViews, mask_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Capped(TileBias):
    """Another bias with no key further from its query than ``limit``."""

    inner: TileBias
    limit: int = dataclasses.field(metadata={"static": True})

    @property
    def trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.trainable

    def numbers(self) -> jax.Array | None:
        return self.inner.numbers()

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.inner.at(numbers, pos_q, jnp.clip(pos_k, pos_q - self.limit, pos_q + self.limit))


@dataclasses.dataclass(frozen=True)
class LmInfinite(RotaryViews):
    """A ceiling of distances.

    Attributes:
      inner: a rotary encoding, or ALiBi.
      local: how many distances, from 0, are exact. ALiBi is exact below ``limit``, and leaves this to the mask.
      sinks: how many of the first keys `mask` shows beside the local ones.
      limit: the distance of all further keys.
    """

    paper: ClassVar[str] = "Han et al. 2024, LM-Infinite: Zero-Shot Extreme Length Generalization for LLMs"

    local: int = 4096
    sinks: int = 10
    limit: int = 4096

    def check(self) -> None:
        require(
            self.is_rotary or self.is_alibi,
            f"LmInfinite.inner: expected the encoding 'rotary' or 'alibi', got "
            f"{registry.name_of('position', self.inner)!r}",
        )
        for name in ("local", "sinks", "limit"):
            value = getattr(self, name)
            require(
                not hasattr(value, "aval") and value > 0, f"LmInfinite.{name}: expected a positive integer, got {value}"
            )

    @property
    def is_alibi(self) -> bool:
        return isinstance(self.inner, registry.get("position", "alibi"))

    @property
    def pre_rotate(self) -> bool:
        return self.is_alibi

    def mask(self) -> Mask:
        """The Lambda-shaped mask that the paper has with it: the local keys and the first ``sinks``."""
        return mask_of("lambda", size=self.local, sinks=self.sinks)

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        if self.is_alibi:
            return self.inner.views(p, q, k, pos_q, pos_k, length)
        length = self.known(pos_q, pos_k, length)
        near = mask_of("window", size=self.local)
        ceiling, start = jnp.full_like(pos_q, self.limit), jnp.zeros_like(pos_k)
        return [
            (*self.view(p, q, k, pos_q, pos_k, length), near),
            (*self.view(p, q, k, ceiling, start, length), ~near),
        ]

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias | RowBias | None:
        found = self.inner.bias(p, q, k, pos_q, pos_k, side)
        return Capped(found, self.limit) if isinstance(found, TileBias) else found
