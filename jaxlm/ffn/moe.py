"""Mixture of experts: y = sum over the k experts that a router chooses of w_e expert_e(x), plus shared experts.

Learned: the router, the experts (arrays of one feed-forward with an axis of experts in front) and what is shared.
Claimed: the quality of many parameters at the cost of few (Shazeer et al. 2017; Fedus et al. 2022, Switch; Jiang et al.
2024, Mixtral). Experts that nobody is sent to learn nothing, so training adds Switch's loss (equations 4 to 6),

    balance * E * sum_e f_e P_e,    f_e the share of (token, choice) pairs at e, P_e the mean score share of e,

which is ``balance`` times 1 when the load is even. Padding is sent nowhere and counts for nothing.

Outside training nothing is dropped, so a full pass, pieces and single steps agree. In training a ``capacity`` makes
each expert take at most capacity * k * L / E pairs of a row; what is over passes by on the residual. On a mesh each
device runs its own experts on its own rows, and one sum over the experts' axis brings the parts together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.params import ParamSpec, map_specs
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.ffn.base import AUXILIARY_LOSS, Aux, FeedForward, linear
from jaxlm.ffn.experts import places, run_buffered, run_sorted
from jaxlm.ffn.router import Router, Routing


@dataclasses.dataclass(frozen=True)
class Moe(Spec):
    """Mixture of experts.

    Attributes:
      experts: how many, E.
      expert: the feed-forward that each is.
      shared: a feed-forward that every token goes through as well, or None (DeepSeek, Qwen2-MoE, Llama 4).
      shared_gate: whether it is multiplied with sigmoid(x w) (Qwen2-MoE).
      router: how tokens choose.
      weigh_input: whether weights multiply an expert's input (Llama 4) and not its output.
      capacity: in training, places per expert and row as a multiple of an even share; 0 drops nothing.
      balance: coefficient of the load-balancing loss.
      z_loss: coefficient of the mean squared log-sum-exp of the router's logits (Zoph et al. 2022, ST-MoE).
    """

    paper: ClassVar[str] = "Shazeer et al. 2017, Outrageously Large Neural Networks; Fedus et al. 2022, Switch"

    experts: int = 8
    expert: Any = slot("ffn", "glu")
    shared: Any = slot("ffn", None, optional=True)
    shared_gate: bool = False
    router: Router = Router()
    weigh_input: bool = False
    capacity: float = 0.0
    balance: float = 0.01
    z_loss: float = 0.0

    def check(self) -> None:
        require(self.experts > 0, f"Moe.experts: expected a positive integer, got {self.experts}")
        self.router.check_experts(self.experts)
        for name in ("expert", "shared"):
            part = getattr(self, name)
            require(
                part is None or isinstance(part, FeedForward),
                f"Moe.{name}: expected a feed-forward that treats all tokens alike, got {type(part).__name__}",
            )
        require(not getattr(self.expert, "adapter", 0), "Moe.expert: experts have no adapters; allowed: adapter 0")
        require(self.shared is not None or not self.shared_gate, "Moe.shared_gate needs a shared feed-forward")
        for name in ("capacity", "balance", "z_loss"):
            value = getattr(self, name)
            require(value >= 0, f"Moe.{name}: expected a number >= 0, got {value}")

    def params(self, dims: Dims) -> Specs:
        active = self.router.top_k / self.experts

        def each(_: str, one: ParamSpec) -> ParamSpec:
            return dataclasses.replace(
                one,
                shape=(self.experts, *one.shape),
                axes=("expert", *one.axes),
                fan_in=tuple(i + 1 for i in one.fan_in),
                active=active,
            )

        specs: Specs = {
            "router": self.router.params(dims.width, self.experts),
            "experts": map_specs(each, self.expert.params(dims)),
        }
        if self.shared is not None:
            specs["shared"] = self.shared.params(dims)
        if self.shared_gate:
            specs["shared_gate"] = ParamSpec((dims.width, 1), ("embed", None))
        return specs

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context) -> tuple[jax.Array, Aux]:
        """[B, L, D] -> [B, L, D], and ``moe_balance`` (1 is even), ``moe_load`` (the fullest expert's, in even shares),
        ``moe_z`` and ``moe_dropped`` (a fraction) where they apply, and the auxiliary loss."""
        routing = self.router(p["router"], x_BLD)
        real = jnp.ones(x_BLD.shape[:2], bool) if ctx.segment_ids is None else ctx.segment_ids != 0
        experts = jnp.where(real[..., None], routing.experts, self.experts)
        aux = self._report(routing, real)
        method: Any = functools.partial(run_sorted, expert=self.expert, weigh_input=self.weigh_input)
        arguments = (x_BLD, experts, routing.weights)
        if self.capacity and ctx.train:
            room = min(math.ceil(self.capacity * self.router.top_k * x_BLD.shape[1] / self.experts), x_BLD.shape[1])
            place = places(experts, self.experts)
            kept = (place < room) & real[..., None]
            aux["moe_dropped"] = 1 - kept.sum() / jnp.maximum(real.sum() * self.router.top_k, 1)
            method = functools.partial(run_buffered, expert=self.expert, weigh_input=self.weigh_input, capacity=room)
            arguments = (x_BLD, jnp.where(kept, experts, self.experts), routing.weights, place)
        y = dist.per_device(
            method,
            (*arguments, jnp.arange(self.experts), p["experts"]),
            (*(("batch", None, None),) * len(arguments), ("expert",), ("expert",)),
            out=("expert", "batch", None, None),
        ).sum(0)
        if self.shared is not None:
            shared, _ = self.shared(p["shared"], x_BLD, ctx)
            if self.shared_gate:
                shared = shared * jax.nn.sigmoid(linear(p, "shared_gate", x_BLD))
            y = y + shared
        return y, aux

    def _report(self, routing: Routing, real: jax.Array) -> Aux:
        """How even the load is among the real tokens [B, L], and what of it joins the loss."""
        tokens = jnp.maximum(real.sum(), 1)
        chosen = jax.nn.one_hot(routing.experts, self.experts).mean(2)  # each token's pairs weigh 1 together
        load, share = (jnp.where(real[..., None], x, 0).sum((0, 1)) / tokens for x in (chosen, routing.shares))
        balance = self.experts * jnp.sum(load * share)
        aux = {"moe_balance": balance, "moe_load": self.experts * load.max()}
        loss = self.balance * balance
        if self.z_loss:
            squares = jax.nn.logsumexp(routing.logits, -1) ** 2
            aux["moe_z"] = jnp.where(real, squares, 0).sum() / tokens
            loss = loss + self.z_loss * aux["moe_z"]
        return {**aux, AUXILIARY_LOSS: loss}
