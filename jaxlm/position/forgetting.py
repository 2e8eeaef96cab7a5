"""Forgetting attention (FoX): the logit of (i, j) gets sum_{t=j+1..i} ln f_t, f_t = sigmoid(w_h . x_t + b_h).

A recurrent net's forget gate inside the softmax. The running sum of ln f is kept per token beside its key, and the bias
is a difference of two of its values. Learned: a gate per head. Claimed: longer contexts used better than with rotary,
length extrapolation, no position encoding needed (Lin et al. 2025). Float32 sums: at a mean of ln f of -0.1, the bias
of two neighbours is right to 1e-3 at position 100,000. Shown by: experiments.context_extension.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require, slot
from jaxlm.core.params import FanIn, ParamSpec, zeros
from jaxlm.core.types import Dims, Params, RowBias, Side, Specs
from jaxlm.ops.dense import dense
from jaxlm.ops.segments import previous_segment, running_sum
from jaxlm.position.base import Wrapper


def _rule(
    sums_q: jax.Array, sums_k: jax.Array, heads: tuple[()], pos_q: jax.Array, pos_k: jax.Array, seen: jax.Array
) -> jax.Array:
    return sums_q.swapaxes(1, 2)[..., None] - sums_k.swapaxes(1, 2)[:, :, None]


@dataclasses.dataclass(frozen=True)
class Forgetting(Wrapper):
    """Forget gates.

    Attributes:
      inner: an encoding that they are added to; the paper needs none, and offers rotary.
    """

    paper: ClassVar[str] = "Lin et al. 2025, Forgetting Transformer: Softmax Attention with a Forget Gate"

    inner: Any = slot("position", "none")

    def check(self) -> None:
        require(self.inner.scope == "layer", "Forgetting.inner: expected an encoding of queries and keys")

    def params(self, dims: Dims) -> Specs:
        return {
            "gate": ParamSpec((dims.width, dims.heads), ("embed", "heads"), FanIn()),
            "gate_bias": ParamSpec((dims.heads,), ("heads",), zeros, decay=False),
            **self.inner.params(dims),
        }

    def side_width(self, dims: Dims) -> int:
        return dims.heads + 1

    def side(self, p: Params, x_BLD: jax.Array, segment_ids: jax.Array | None, before: jax.Array | None) -> jax.Array:
        """Each head's running sum, which begins anew with each document, and the document's segment."""
        gates = dense(x_BLD, p["gate"]).astype(jnp.float32) + p["gate_bias"].astype(jnp.float32)
        steps = jax.nn.log_sigmoid(gates)
        if before is None:
            before = jnp.zeros((steps.shape[0], steps.shape[2] + 1), jnp.float32)
        last = before[:, -1].astype(jnp.int32)
        segments = jnp.ones(steps.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        real, previous = segments != 0, previous_segment(segments, last)
        steps = jnp.where(real[..., None], steps, 0.0)  # padding forgets nothing
        sums = running_sum(steps, real & (segments != previous), before[:, :-1])
        return jnp.concatenate((sums, jnp.where(real, segments, previous)[..., None].astype(jnp.float32)), -1)

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> RowBias:
        require(
            side is not None, "position 'forgetting' needs a mixer that keeps data beside keys, such as 'attention'"
        )
        require(
            self.inner.bias(p, q, k, pos_q, pos_k) is None,
            "Forgetting.inner: expected an encoding without a bias of its own",
        )
        assert side is not None
        return RowBias(side[0][..., :-1], side[1][..., :-1], (), _rule)
