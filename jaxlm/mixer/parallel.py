"""Two mixers side by side on the same input, their outputs added, each with a factor before and after it.

    y = o_1 first(i_1 x) + o_2 second(i_2 x)

Either may be such a pair again. Learned: what the two learn. Claimed for attention beside Mamba-2: recall of the one at
the speed of the other, and head counts that are chosen apart (Zuo et al. 2025, Falcon-H1; Dong et al. 2024, Hymba).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxlm.core.config import Spec, slot
from jaxlm.core.types import Context, Dims, Params, Specs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ParallelState:
    """The states of both."""

    first: Any
    second: Any

    def grow(self, capacity: int) -> ParallelState:
        """With room for ``capacity`` tokens in what has a capacity."""
        grown = (one.grow(capacity) if hasattr(one, "grow") else one for one in (self.first, self.second))
        return ParallelState(*grown)


@dataclasses.dataclass(frozen=True)
class Parallel(Spec):
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

    @property
    def inner(self) -> tuple[Any, ...]:
        """The mixers that this one is made of."""
        return self.first, self.second

    @property
    def streaming(self) -> bool:  # one that looks ahead is refused a state by its own `init_state`
        return all(mixer.streaming for mixer in self.inner)

    @property
    def causal(self) -> bool:
        return all(mixer.causal for mixer in self.inner)

    @property
    def padding_takes_room(self) -> bool:
        return any(getattr(mixer, "padding_takes_room", True) for mixer in self.inner)

    def params(self, dims: Dims) -> Specs:
        return {"first": self.first.params(dims), "second": self.second.params(dims)}

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> ParallelState:
        """An empty state of each."""
        return ParallelState(*(mixer.init_state(dims, batch, max_length, dtype, cache) for mixer in self.inner))

    def flops(self, dims: Dims, length: int) -> float:
        """Those of both."""
        return sum(mixer.flops(dims, length) for mixer in self.inner)

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: ParallelState | None = None
    ) -> tuple[jax.Array, ParallelState | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue it."""

        def run(i: int, name: str) -> tuple[jax.Array, Any]:
            x = x_BLD if self.in_scales[i] == 1 else x_BLD * self.in_scales[i]
            y, after = self.inner[i](p[name], x, ctx, None if state is None else getattr(state, name))
            return y if self.out_scales[i] == 1 else y * self.out_scales[i], after

        (one, first), (two, second) = run(0, "first"), run(1, "second")
        return one + two, None if state is None else ParallelState(first, second)
