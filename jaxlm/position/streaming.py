"""StreamingLLM's positions: tokens counted by their place in a cache of the first S and the last W of them.

Where the key j < S of a query i > S + W - 1 lies next to the window, their distance is S + W - 1 - j; all other keys
that are left are at their true distance. So the score of (i, j) is that of (min(i, S + W - 1), j) for the first S keys,
and the cache (`jaxlm.cache.window_sink`) only has to forget. Learned: nothing. Claimed: stable perplexity over 4M
tokens in constant memory, where a window alone breaks once the first tokens leave it (Xiao et al. 2024). It is no
longer memory: what has left the window is gone. Shown by: experiments.context_extension.

    position = Streaming(rotary, sinks=4, window=1020)
    endless = jaxlm.replace(model, {"mixer.position": position, "mixer.mask": position.mask()})
    jaxlm.generate(endless, params, prompt, 100_000, cache=WindowSink(sinks=4, window=1020))

ALiBi and learned relative biases need no such positions: the mask and the cache suffice. Angles are float32, which
holds whole numbers to 2^24 only; here the differences of positions are taken first, as integers, so that with a cache
distances stay exact until positions leave int32, at 2^31 tokens.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import Mask, Params
from jaxlm.position.views import RotaryViews, mask_of


@dataclasses.dataclass(frozen=True)
class Streaming(RotaryViews):
    """Positions in a cache of sinks and a window.

    Attributes:
      inner: the rotary encoding.
      sinks: S, how many of the first tokens stay; 0 is a plain window.
      window: W, how many of the last tokens do, the query's own included.
    """

    paper: ClassVar[str] = "Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks"

    sinks: int = 4
    window: int = 1020

    def check(self) -> None:
        super().check()
        for name, least in (("sinks", 0), ("window", 1)):
            value = getattr(self, name)
            require(
                not hasattr(value, "aval") and value >= least,
                f"Streaming.{name}: expected an integer >= {least}, got {value}",
            )

    def mask(self) -> Mask:
        """What the cache holds at each query: the first ``sinks`` keys and the last ``window``."""
        window = mask_of("window", size=self.window)
        return mask_of("lambda", size=self.window, sinks=self.sinks) if self.sinks else window

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        size = self.sinks + self.window
        if self.by_length and length is None:  # no text is longer than the cache
            length = jnp.minimum(jnp.maximum(pos_q.max(-1), pos_k.max(-1)) + 1, size)
        if q.shape[1] == 1:  # a step: each row's keys have one position, sinks or not
            at = pos_k - jnp.where(pos_k < self.sinks, jnp.minimum(pos_q, size - 1), pos_q)
            return [(*self.view(p, q, k, jnp.zeros_like(pos_q), at, length), None)]
        origin = pos_q.max(-1, keepdims=True)
        local = self.view(p, q, k, pos_q - origin, pos_k - origin, length)
        if not self.sinks:
            return [(*local, None)]
        first = mask_of("sinks", count=self.sinks)
        return [(*local, ~first), (*self.view(p, q, k, jnp.minimum(pos_q, size - 1), pos_k, length), first)]
