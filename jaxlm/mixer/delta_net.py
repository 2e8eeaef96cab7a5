"""DeltaNet: linear attention that, before it writes a value to a key, takes away what that key had.

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T      o_t = S_t^T q_t / sqrt(K)      y = U norm(o)

q, k, v = silu(conv(x W)), q and k of unit length, beta = sigmoid(x . b). Learned: the projections, convolutions, beta,
and a norm's gain. Claimed: better recall than linear attention with gates, trained in parallel (Yang et al. 2024).
`experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxlm.mixer.delta import Delta


@dataclasses.dataclass(frozen=True)
class DeltaNet(Delta):
    """DeltaNet. Its fields are those of `Keyed` and `Delta`; K = V = D / H by default."""

    paper: ClassVar[str] = "Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule"
