"""What a cache shows to the queries that read it."""

from __future__ import annotations

from typing import NamedTuple

import jax


class View(NamedTuple):
    """Keys and what is known of them.

    Attributes:
      k, v: [B, T, G, K] and [B, T, G, any].
      position, segment: int32 [B, T]; segment 0 is seen by nobody.
      side: float32 [B, T, S], what the position encoding has each token carry beside its key.
    """

    k: jax.Array
    v: jax.Array
    position: jax.Array
    segment: jax.Array
    side: jax.Array
