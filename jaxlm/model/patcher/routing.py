"""Learned boundaries: one stage of H-Net (Hwang et al. 2025, arXiv 2507.07955).

    h = encoder(e(b))                                            local, causal
    p_t = (1 - cos(W_q h_(t-1), W_k h_t)) / 2,  1 at the first;  a patch begins at t if p_t > 1/2:  z_j = norm(h_t) W_z
    e_j = p_j y_j + (1 - p_j) e_(j-1)                            smoothing over patches, p clipped to [1e-4, 1 - 1e-4]
    x = decoder(h_t + c_t e_(j(t)) W_y)                          j(t) the latest patch
    loss += weight N/(N-1) ((N-1) F G + (1-F) (1-G))             F the share of boundaries, G the mean of p

c_t is p_t at a boundary and 1 - p_t elsewhere, rounded up to 1 with a straight-through gradient: that, the smoothing
and the ratio loss are how boundaries learn. W_q and W_k are identities at first. The published code pads h with a
learned vector to the model's width and has a learned matrix on the residual h; here W_z and W_y are all.

Learned: W_q, W_k, W_z, W_y, the norm. Claimed: at equal compute and data above a BPE transformer, with boundaries that
look like words. The weight 0.03 is not verified.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.ffn.base import AUXILIARY_LOSS
from jaxlm.model.patcher import boundaries
from jaxlm.model.patcher.base import Answer, Reading, Row, Run, Slots, WithEncoder, at, projection
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity matrix, as an initial value."""

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        return jnp.eye(*spec.shape, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class RoutingPatcher(WithEncoder):
    """Boundaries where neighbouring local states differ.

    Attributes:
      ratio: N, the mean length in bytes that the ratio loss asks for.
      ratio_weight: of that loss, which enters training with the layers' own (`jaxlm.objective.auxiliary`).
    """

    paper: ClassVar[str] = "Hwang et al. 2025, Dynamic Chunking for End-to-End Hierarchical Sequence Modeling"

    ratio: float = 6.0
    ratio_weight: float = 0.03

    def check(self) -> None:
        super().check()
        require(self.ratio > 1, f"RoutingPatcher.ratio: expected a mean length above 1 byte, got {self.ratio}")
        require(self.ratio_weight >= 0, f"RoutingPatcher.ratio_weight: expected 0 or more, got {self.ratio_weight}")
        require(
            self.patches_per_byte * self.ratio >= 1,
            f"RoutingPatcher.patches_per_byte: a ratio of {self.ratio} needs room for {1 / self.ratio:.4g} a byte and "
            f"more, got {self.patches_per_byte}",
        )

    def params(self, dims: Dims) -> Specs:
        square = ParamSpec((self.width, self.width), (None, None), Identity())
        return {
            "query": square,
            "key": square,
            "norm": self.norm.params(self.width),
            "down": projection(self.width, dims.width),
            "up": projection(dims.width, self.width, up=True),
        }

    def start(self, dims: Dims, batch: int, dtype: Any) -> dict[str, jax.Array]:
        return {"before": jnp.zeros((batch, self.width), dtype)}

    def read(self, p: Params, row: Row, state: dict[str, jax.Array], run: Run) -> Reading:
        h = run("encoder", row.embedded, row.documents)
        q, k = dense(row.shifted(h, state["before"]), p["query"]), dense(h, p["key"])
        chance = boundaries.routing_probability(q, k, row.first)
        loss = boundaries.ratio_loss(chance, row.real, self.ratio)
        aux = {AUXILIARY_LOSS: self.ratio_weight * loss, "ratio_loss": loss}
        after = {"before": row.last(h, state["before"])}
        return Reading(h, row.real & (chance > 0.5), after, {"chance": chance}, aux)

    def down(self, p: Params, row: Row, reading: Reading, slots: Slots, run: Run) -> jax.Array:
        return dense(self.norm(p["norm"], at(reading.x, slots.place)), p["down"])

    def settle(self, y: jax.Array, reading: Reading, slots: Slots, before: tuple[jax.Array, jax.Array]) -> jax.Array:
        previous = jnp.concatenate([before[1][:, None], slots.segment_ids[:, :-1]], 1)
        chance = at(reading.data["chance"], slots.place)
        return boundaries.smooth(y, chance, slots.segment_ids != previous, before[0]).astype(y.dtype)

    def up(self, p: Params, row: Row, reading: Reading, answer: Answer, run: Run) -> jax.Array:
        sure = boundaries.confidence(reading.data["chance"])
        sure = (sure + jax.lax.stop_gradient(1 - sure)).astype(reading.x.dtype)
        added = answer.of_bytes(dense(answer.y, p["up"]), jnp.zeros(()))
        return run("decoder", reading.x + sure[..., None] * added, row.documents)
