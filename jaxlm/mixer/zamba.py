"""Zamba: a transformer block that many layers share, which tells each layer's own mixer what it has read.

    h = attention(norm([x, e]))        t = ffn(norm(h)) W        y = mixer(norm(x + t))

x is the stream, not normed (the block's placement is "none"), and e the embeddings of the same tokens, which are the
input of the first layer. Attention reads both side by side, and t reaches the stream through the mixer alone. Learned:
W and the mixer in each layer; attention, ffn and their norms in each as well, or once for all layers that ``share``
them under one name, with adapters of each layer's own if they have any.

Claimed: what attention is for at a small part of its parameters (Glorioso et al. 2024, Zamba; Zamba2 has two blocks by
turns, and the adapters).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require, slot
from jaxlm.core.params import ParamSpec, shared
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.ffn.base import FeedForward
from jaxlm.mixer.composite import Composite, States
from jaxlm.mixer.heads import Heads
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Zamba(Composite):
    """A mixer that a shared transformer block goes before.

    Attributes:
      attention: of the shared block; it reads twice the model's width, which its heads divide by default.
      mixer: the layer's own.
      ffn: of the shared block.
      norm: the kind of normalisation of all three inputs.
      share: the name under which layers have attention and ffn in common; empty for each its own.
    """

    paper: ClassVar[str] = "Glorioso et al. 2024, The Zamba2 Suite: Technical Report"

    attention: Any = slot("mixer", "attention")
    mixer: Any = slot("mixer", "mamba2")
    ffn: Any = slot("ffn", "glu")
    norm: Any = slot("norm", "rms")
    share: str = ""

    def check(self) -> None:
        require(isinstance(self.attention, Heads), "Zamba.attention: expected attention with the projections of Heads")
        require(isinstance(self.ffn, FeedForward), "Zamba.ffn: expected a feed-forward that treats each token alone")
        require("/" not in self.share, f"Zamba.share: expected a name without '/', got {self.share!r}")

    def widths(self, dims: Dims) -> tuple[Dims, ...]:
        return dataclasses.replace(dims, width=2 * dims.width, out=dims.width), dims

    def params(self, dims: Dims) -> Specs:
        wide, _ = self.widths(dims)
        block: Specs = {
            "attention_norm": self.norm.params(wide.width),
            "attention": self.attention.params(wide),
            "ffn_norm": self.norm.params(dims.width),
            "ffn": self.ffn.params(dims),
        }
        return {
            **(shared(block, self.share) if self.share else block),
            "tell": ParamSpec((dims.width, dims.width), ("embed", None)),
            "norm": self.norm.params(dims.width),
            "mixer": self.mixer.params(dims),
        }

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: States | None = None
    ) -> tuple[jax.Array, States | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue it."""
        require(ctx.embedded is not None, "mixer 'zamba' reads the embeddings, and works in a whole model alone")
        read, kept = (None, None) if state is None else state.parts
        both = jnp.concatenate((x_BLD, jnp.asarray(ctx.embedded, x_BLD.dtype)), -1)
        h, read = self.attention(p["attention"], self.norm(p["attention_norm"], both), ctx, read)
        t, _ = self.ffn(p["ffn"], self.norm(p["ffn_norm"], h), ctx)
        y, kept = self.mixer(p["mixer"], self.norm(p["norm"], x_BLD + dense(t, p["tell"])), ctx, kept)
        return y, None if state is None else States((read, kept))
