"""PoNet: tokens mixed by pooling alone, over all, over segments and over neighbours.

    y = U ((global + segment_t) o_t + local_t)      of q, k, o, s, l, five projections of x (`jaxlm.ops.ponet`)

Learned: the projections in (D, H, 5, K) and out. Claimed: 95.7 % of BERT on GLUE, and a mean of 61.05 on the Long Range
Arena against attention's 58.77, in linear time (Tan et al. 2022). The published form looks ahead; the causal one, with
running sums, complete segments and a trailing window, is ours. Segments have a fixed length here, where the paper cuts
each row into a number of them: L tokens in S segments are a length of L // S + 1.
`experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.ops import ponet
from jaxlm.ops.dense import dense

FORMS = ("causal", "bidirectional")


@dataclasses.dataclass(frozen=True)
class PoNet(Recurrent):
    """Pooling network.

    Attributes:
      heads: H, a divisor of the width.
      segment: tokens of a segment.
      window: tokens of the local pooling; an odd number where it looks ahead.
      form: ``"causal"`` or ``"bidirectional"``.
    """

    paper: ClassVar[str] = "Tan et al. 2022, PoNet: Pooling Network for Efficient Token Mixing in Long Sequences"

    heads: int = 8
    segment: int = 32
    window: int = 3
    form: str = "causal"

    def check(self) -> None:
        for name in ("heads", "segment", "window"):
            value = getattr(self, name)
            require(value > 0, f"PoNet.{name}: expected a positive integer, got {value}")
        choose("PoNet.form", self.form, FORMS)
        require(
            self.causal or self.window % 2 == 1,
            f"PoNet.window: expected an odd number where it looks ahead, got {self.window}",
        )

    @property
    def causal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.form == "causal"

    @property
    def streaming(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.causal

    def _width(self, dims: Dims) -> int:
        require(dims.width % self.heads == 0, f"PoNet.heads: model width {dims.width} is not divisible by {self.heads}")
        return dims.width // self.heads

    def params(self, dims: Dims) -> Specs:
        width = self._width(dims)
        return {
            "in": ParamSpec((dims.width, self.heads, 5, width), ("embed", "heads", None, None)),
            "out": ParamSpec((self.heads, width, dims.width), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        each, full = (self.heads,), (self.heads, self._width(dims))
        softmax = {"count": (), "total": full, "top": each, "weight": each, "keys": full}
        return {**softmax, "segments": (2, *full)}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        # One channel more, which says whether there was a token.
        return {"local": (self.window, (self.heads, self._width(dims) + 1))}

    def flops(self, dims: Dims, length: int) -> float:
        """A few operations per channel."""
        del length
        return dims.width * (12.0 + self.window)

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        parts = dist.constrain(dense(x_BLD, p["in"]), ("batch", None, "heads", None, None))
        q, k, o, segment, local = (parts[..., i, :] for i in range(5))
        rows = stream.rows
        if self.causal:
            pooled, stream = self._running(q, k, segment, stream)
            near, stream = self._trailing(local, stream)
        else:
            pooled = ponet.whole_global(q, k, rows) + ponet.whole_segments(segment, self.segment, rows)
            near = ponet.whole_local(local, self.window, rows)
        out = (pooled * o + near).astype(x_BLD.dtype)
        return dense(out, p["out"], inputs=2), stream

    def _running(self, q: jax.Array, k: jax.Array, segment: jax.Array, stream: Stream) -> tuple[jax.Array, Stream]:
        memory = stream.memory
        if memory is None:
            shapes = self.memory(Dims(width=q.shape[2] * q.shape[3]))
            memory = {name: jnp.zeros((q.shape[0], *shape), jnp.float32) for name, shape in shapes.items()}
        before = ponet.Running(*(memory[name] for name in ponet.Running._fields))
        everywhere, count, last = ponet.running_global(q, k, before, stream.rows)
        done, segments = ponet.running_segments(segment, self.segment, count, memory["segments"], stream.rows)
        return everywhere + done, stream.remember(**last._asdict(), segments=segments)

    def _trailing(self, x: jax.Array, stream: Stream) -> tuple[jax.Array, Stream]:
        """The maximum over each token and those before it, which a convolution with a single tap brings here."""
        marked = jnp.concatenate((x, jnp.ones_like(x[..., :1])), -1)
        top, after = x, stream
        for shift in range(1, self.window):
            taps = jnp.zeros((self.window, *marked.shape[2:]), x.dtype).at[shift].set(1)
            earlier, after = stream.convolve("local", marked, taps)
            top = jnp.maximum(top, jnp.where(earlier[..., -1:] > 0, earlier[..., :-1], ponet.LOW))
        return top, after
