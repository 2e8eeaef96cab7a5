"""The base of rotary encodings that put far keys at other distances: two views, merged as one softmax.

Each view turns un-rotated queries and keys by positions of its own choice, whole or not, and holds in a region of the
score square. Masks are named, since the rooms of positions and of masks are siblings.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import registry
from jaxlm.core.config import make, require
from jaxlm.core.types import Mask, Params
from jaxlm.position.base import Wrapper


def mask_of(name: str, **args: Any) -> Mask:
    """The registered mask ``name``."""
    return make("mask", {"name": name, "args": args})


@dataclasses.dataclass(frozen=True)
class RotaryViews(Wrapper):
    """A rotary encoding whose positions are changed for some pairs; keys are cached as they are before rotation."""

    def check(self) -> None:
        require(
            self.is_rotary,
            f"{type(self).__name__}.inner: expected the encoding 'rotary', got "
            f"{registry.name_of('position', self.inner)!r}",
        )

    @property
    def is_rotary(self) -> bool:
        return isinstance(self.inner, registry.get("position", "rotary"))

    @property
    def pre_rotate(self) -> bool:
        return False  # a key's position depends on the query that meets it

    def view(
        self, p: Params, q: jax.Array, k: jax.Array, at_q: jax.Array, at_k: jax.Array, length: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Queries and keys turned by the positions ``at_q`` and ``at_k``, int32 or float32 [B or 1, L or T]."""
        return self.inner.rotate(p, q, at_q, length), self.inner.rotate(p, k, at_k, length)

    def known(self, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None) -> jax.Array | None:
        """What scalings that depend on the length are told: the declared one, or each row's own."""
        if self.by_length and length is None:
            return jnp.maximum(pos_q.max(-1), pos_k.max(-1)) + 1
        return length
