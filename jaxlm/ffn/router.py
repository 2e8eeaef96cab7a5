"""The router of a mixture of experts: which experts a token goes to, and how much each counts.

    s = score(x W [+ b])          softmax over the experts, or the sigmoid of each
    chosen = top k of s [+ c]     c is DeepSeek-V3's correction, which balances the load without touching the weights
    w = scale * s[chosen]         over their sum, if normalised

With groups (DeepSeek-V3), the experts to choose from are those of the best ``top_groups`` groups, a group being as good
as its two best experts together. All of it is float32: in low precision near-ties would choose at random.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import Spec, require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Params, Specs

SCORES = ("softmax", "sigmoid", "softmax_top_k")


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
      experts: int32 [B, L, k], the chosen ones.
      weights: float32 [B, L, k], what each counts.
      shares: float32 [B, L, E], the scores of all experts, adding up to 1.
      logits: float32 [B, L, E].
    """

    experts: jax.Array
    weights: jax.Array
    shares: jax.Array
    logits: jax.Array


@dataclasses.dataclass(frozen=True)
class Router(Spec):
    """Top-k routing.

    Attributes:
      top_k: experts per token.
      score: ``"softmax"`` over all experts (Switch, Mixtral, Qwen), ``"sigmoid"`` of each (DeepSeek-V3, Llama 4),
        ``"softmax_top_k"`` over the chosen ones (GPT-OSS; Mixtral's, written otherwise).
      normalize: whether the chosen scores are divided by their sum (Mixtral; not Qwen2-MoE).
      bias: whether the logits have a learned offset (GPT-OSS).
      correction: whether there is an offset of the scores that only decides who is chosen. It has no gradient: training
        leaves it as it is.
      groups, top_groups: number of groups that the experts form, and of those that a token may use; 0 for no groups.
      scale: factor of the weights (DeepSeek's ``routed_scaling_factor``).
    """

    top_k: int = 2
    score: str = "softmax"
    normalize: bool = True
    bias: bool = False
    correction: bool = False
    groups: int = 0
    top_groups: int = 0
    scale: float = 1.0

    def check(self) -> None:
        choose("Router.score", self.score, SCORES)
        require(self.top_k > 0, f"Router.top_k: expected a positive integer, got {self.top_k}")
        require(
            self.groups == self.top_groups == 0 or 0 < self.top_groups <= self.groups,
            f"Router.top_groups: expected 1 to {self.groups} (Router.groups), got {self.top_groups}",
        )

    def check_experts(self, experts: int) -> None:
        """Raises `ConfigError` unless this router can choose among ``experts``."""
        size = experts // self.groups if self.groups else experts
        require(
            not self.groups or (experts % self.groups == 0 and size > 1),
            f"Router.groups: {experts} experts do not form {self.groups} equal groups of 2 or more",
        )
        most = size * self.top_groups if self.groups else experts
        require(self.top_k <= most, f"Router.top_k: expected 1 to {most} (experts to choose from), got {self.top_k}")

    def params(self, width: int, experts: int) -> Specs:
        specs = {"kernel": ParamSpec((width, experts), ("embed", None))}
        for name, wanted in (("bias", self.bias), ("correction", self.correction)):
            if wanted:
                specs[name] = ParamSpec((experts,), (None,), zeros, decay=False)
        return specs

    def __call__(self, p: Params, x_BLD: jax.Array) -> Routing:
        logits = jnp.matmul(x_BLD.astype(jnp.float32), p["kernel"].astype(jnp.float32), precision="highest")
        if self.bias:
            logits = logits + p["bias"]
        if self.score == "sigmoid":
            scores = jax.nn.sigmoid(logits)
            shares = scores / (scores.sum(-1, keepdims=True) + 1e-20)
        else:
            scores = shares = jax.nn.softmax(logits, -1)
        rank, batch = scores + p["correction"] if self.correction else scores, ("batch", None, None)
        # Each device for its own rows: left to itself, the compiler gathers all rows before it sorts.
        experts = dist.per_device(self._choose, (jax.lax.stop_gradient(rank),), (batch,), batch)
        weights = jnp.take_along_axis(scores, experts, -1)
        if self.score == "softmax_top_k":
            weights = jax.nn.softmax(jnp.take_along_axis(logits, experts, -1), -1)
        elif self.normalize:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return Routing(experts, weights * self.scale, shares, logits)

    def _choose(self, rank: jax.Array) -> jax.Array:
        """int32 [B, L, k], the best of the best groups by their ``rank`` [B, L, E]."""
        if self.groups:
            grouped = rank.reshape(*rank.shape[:-1], self.groups, -1)
            worth = jax.lax.top_k(grouped, 2)[0].sum(-1)
            _, best = jax.lax.top_k(worth, self.top_groups)
            among = jax.nn.one_hot(best, self.groups, dtype=bool).any(-2)
            rank = jnp.where(among[..., None], grouped, -jnp.inf).reshape(rank.shape)
        return jax.lax.top_k(rank, self.top_k)[1]
