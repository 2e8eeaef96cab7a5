"""Two mixers side by side on the same input, their outputs added, each with a factor before and after it.

    y = o_1 first(i_1 x) + o_2 second(i_2 x)

Either may be such a pair again. Learned: what the two learn. Claimed for attention beside Mamba-2: recall of the one at
the speed of the other, and head counts that are chosen apart (Zuo et al. 2025, Falcon-H1; Dong et al. 2024, Hymba).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxlm.core.config import slot
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.composite import Composite, States


@dataclasses.dataclass(frozen=True)
class Parallel(Composite):
    """Two mixers on the same input.

    Attributes:
      first, second: the mixers.
      in_scales, out_scales: factors of what each reads, and of what each gives.
    """

    paper: ClassVar[str] = "Zuo et al. 2025, Falcon-H1: A Family of Hybrid-Head Language Models"

    first: Any = slot("mixer", "mamba2")
    second: Any = slot("mixer", "attention")
    in_scales: tuple[float, float] = (1.0, 1.0)
    out_scales: tuple[float, float] = (1.0, 1.0)

    def params(self, dims: Dims) -> Specs:
        return {"first": self.first.params(dims), "second": self.second.params(dims)}

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: States | None = None
    ) -> tuple[jax.Array, States | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue it."""

        def run(i: int, name: str) -> tuple[jax.Array, Any]:
            x = x_BLD if self.in_scales[i] == 1 else x_BLD * self.in_scales[i]
            y, after = self.inner[i](p[name], x, ctx, None if state is None else state.parts[i])
            return y if self.out_scales[i] == 1 else y * self.out_scales[i], after

        (one, first), (two, second) = run(0, "first"), run(1, "second")
        return one + two, None if state is None else States((first, second))
