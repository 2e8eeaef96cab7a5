"""What mixers have in common whose state is a matrix K x V per head, which tokens change linearly.

    S_t = A_t S_{t-1} + (what the token adds)        o_t = S_t^T q_t

A mixer names the op that runs it, and calls `run`, which on a mesh with a context axis splits the rows over devices
(LASP-2, `jaxlm.dist.lasp`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any, ClassVar

import jax

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Dims
from jaxlm.mixer.recurrent import Recurrent, Stream


@dataclasses.dataclass(frozen=True)
class Linear(Recurrent):
    """The base of such a mixer. Subclasses give `op`, and ``memory`` with one array, ``state`` of shape (H, K, V).

    Attributes:
      chunk: tokens that meet each other as matrices.
      implementation: a back end of the op, or ``"auto"``.
    """

    op: ClassVar[Any]  # of jaxlm.ops, as a staticmethod
    diagonal: ClassVar[bool] = True  # the op takes q, k, v and at most a log decay, and reads what it has written

    chunk: int = dataclasses.field(default=64, kw_only=True)
    implementation: str = dataclasses.field(default="auto", kw_only=True)

    def check(self) -> None:
        name = type(self).__name__
        require(self.chunk > 0, f"{name}.chunk: expected a positive integer, got {self.chunk}")
        back_ends = sys.modules[self.op.__module__].IMPLEMENTATIONS  # type: ignore[attr-defined]
        choose(f"{name}.implementation", self.implementation, ("auto", *back_ends))

    def flops(self, dims: Dims, length: int) -> float:
        """Within a chunk, into the state and out of it, per token."""
        del length
        heads, key, value = self.memory(dims)["state"]
        return heads * (2.0 * self.chunk * (key + value) + 4.0 * key * value)

    def run(
        self,
        stream: Stream,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *others: jax.Array | None,
        **options: Any,
    ) -> tuple[jax.Array, Stream]:
        """`op` of these tokens after those before: outputs [B, L, H, V], and the stream with the new state."""
        name = None if self.implementation == "auto" else self.implementation
        op = functools.partial(self.op, chunk=self.chunk, implementation=name, **options)
        state = None if stream.memory is None else stream.memory["state"]
        out, state = dist.lasp(op, q, k, v, *others, rows=stream.rows, state=state, diagonal=self.diagonal)
        return out, stream.remember(state=state)
