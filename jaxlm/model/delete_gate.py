"""A delete gate: after some layers of an encoder, each token's share in what follows is learned, down to none.

Paper: Kallini et al. 2024, MrT5: Dynamic Token Merging for Efficient Byte-level Language Models (arXiv 2410.20771).
Formula: G = k sigmoid(-(w . norm(h) + b)), k = -30, so 0 keeps a token and k deletes it; G is k at padding. In
training G of the key is added to the logits of all later attention, of the encoder and of the decoder over it (soft
deletion). At inference tokens with G > k / 2 are kept, moved to the left in their order, and the rest is gone (hard
deletion): they keep their positions, so relative biases are those of the text, and the gate counts no more.
With noise, in training logistic numbers (two Gumbel variables' difference, as in a binary concrete variable: Maddison
et al. 2017; the source's own optional noise is of Gumbel's kind, too) are added to w . norm(h) + b: near the threshold
a token is then kept at times and deleted at others, so that a model learns what its deletion costs before it is final.
Learned: w, b and the norm.
Claimed: up to 75 % shorter sequences at the accuracy of ByT5. Shown by: tests/model/test_delete_gate.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.params import Constant, ParamSpec
from jaxlm.core.types import Params, Specs


@dataclasses.dataclass(frozen=True)
class Xavier:
    """Uniform within sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010), with one output."""

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        bound = math.sqrt(6 / (spec.fan_in_size + 1))
        return jax.random.uniform(key, spec.shape, jnp.float32, -bound, bound)


@dataclasses.dataclass(frozen=True)
class DeleteGate(Spec):
    """Where the gate is and what it starts from.

    Attributes:
      layer: the number of encoder blocks before it.
      scale: k, below 0; half of it is the threshold of deletion.
      bias: the initial b; 1 keeps a token that w says nothing of.
      noise: scale of the noise in training; 0 for none.
      norm: of the hidden states it reads.
    """

    paper: ClassVar[str] = "Kallini et al. 2024, MrT5: Dynamic Token Merging for Efficient Byte-level Language Models"

    layer: int = 3
    scale: float = -30.0
    bias: float = 1.0
    noise: float = 0.0
    norm: Any = slot("norm", "rms")

    def check(self) -> None:
        require(self.layer > 0, f"DeleteGate.layer: expected a positive number of blocks, got {self.layer}")
        require(self.scale < 0, f"DeleteGate.scale: expected a number below 0, got {self.scale}")
        require(self.noise >= 0, f"DeleteGate.noise: expected a number >= 0, got {self.noise}")

    @property
    def threshold(self) -> float:
        return self.scale / 2

    def params(self, width: int) -> Specs:
        return {
            "norm": self.norm.params(width),
            "weight": ParamSpec((width,), ("embed",), Xavier(), decay=False),
            "bias": ParamSpec((), (), Constant(self.bias), fan_in=(), decay=False),
        }

    def __call__(self, p: Params, hidden: jax.Array, real: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """G, float32 [B, L], of hidden states [B, L, D]; ``real`` is False at padding, and ``key`` draws the noise."""
        h = self.norm(p["norm"], hidden).astype(jnp.float32)
        logits = h @ p["weight"].astype(jnp.float32) + p["bias"].astype(jnp.float32)
        if self.noise and key is not None:
            logits += self.noise * jax.random.logistic(key, logits.shape)
        return self.gate(logits, real)

    def gate(self, logits: jax.Array, real: jax.Array) -> jax.Array:
        """G of w . norm(h) + b, float32 [B, L]."""
        return jnp.where(real, self.scale * jax.nn.sigmoid(-logits), self.scale)

    def keeps(self, gate: jax.Array) -> jax.Array:
        """Boolean [B, L]: the tokens that are not deleted."""
        return gate > self.threshold

    def report(self, gate: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
        """``gate``, the mean of G over real tokens, which training lowers; ``deleted``, the share of them that goes."""
        count = jnp.maximum(jnp.sum(real), 1)
        mean = lambda x: jnp.sum(jnp.where(real, x, 0)) / count
        return {"gate": mean(gate), "deleted": mean((~self.keeps(gate)).astype(jnp.float32))}


class Kept(NamedTuple):
    """What is left of a batch of rows.

    Attributes:
      index: int32 [B, C], where in the row each place's token was; 0 where there is none.
      filled: boolean [B, C].
      overflow: int32 [B], how many tokens were to be kept and had no place; they are lost, and counted here.
    """

    index: jax.Array
    filled: jax.Array
    overflow: jax.Array


def compact(keep: jax.Array, capacity: int) -> Kept:
    """The kept tokens of ``keep`` boolean [B, L], moved left in their order into C = ``capacity`` places."""
    length = keep.shape[1]
    require(0 < capacity <= length, f"capacity: expected 1 to {length} places, got {capacity}")
    order = jnp.argsort(~keep, axis=1, stable=True)[:, :capacity]
    count = jnp.sum(keep, 1, dtype=jnp.int32)
    filled = jnp.arange(capacity) < count[:, None]
    return Kept(jnp.where(filled, order, 0).astype(jnp.int32), filled, jnp.maximum(count - capacity, 0))
