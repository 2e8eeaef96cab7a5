"""What mixers with a state of fixed size have in common: the state, its laws for padding and packing, its checks.

A mixer says what it remembers of a row (`memory`), how much of the input its short convolution reads (`taps`), and how
tokens and memory make output and memory (`mix`). Everything else is here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.types import Context, Dims, Params
from jaxlm.ops.causal_conv import Tail, causal_conv, empty_tail
from jaxlm.ops.segments import Rows, last_segment, rows_of

Memory = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentState:
    """State of one layer; it has no capacity, and nothing in it grows.

    Attributes:
      memory: float32 arrays [B, ...] by name. Set them to begin with another state than zero; they have gradients.
      tail: the last inputs of each convolution, by name.
      segment: int32 [B], that of the last real token; 0 before the first, which therefore continues ``memory``.
    """

    memory: Memory
    tail: dict[str, Tail]
    segment: jax.Array


class Stream(NamedTuple):
    """What goes along a row beside the input, before these tokens or after them.

    Attributes:
      rows: padding and documents; None if there is neither and nothing came before.
      segment_ids: int32 [B, L] or None, as the convolution wants them.
      memory: of the tokens before; None for none, which is as good as zeros.
      tail: of the tokens before, by the convolution's name; empty for none.
    """

    rows: Rows | None
    segment_ids: jax.Array | None
    memory: Memory | None
    tail: dict[str, Tail]

    def convolve(self, name: str, x: jax.Array, taps: jax.Array) -> tuple[jax.Array, Stream]:
        """`jaxlm.ops.causal_conv` of x [B, L, ...] with taps [n, ...], current token first, and the stream with the new
        tail. Padding comes out as 0."""
        if self.rows is None:  # one document a row, and nobody asks for the tail
            return dist.convolve(x, taps), self
        y, tail = causal_conv(x, taps, self.segment_ids, self.tail.get(name))
        return _of_real(y, self.rows), self._replace(tail={**self.tail, name: tail})

    def remember(self, **memory: jax.Array) -> Stream:
        """The stream with the memory after these tokens."""
        return self._replace(memory=memory)


@dataclasses.dataclass(frozen=True)
class Recurrent(Spec):
    """The base of a mixer whose state does not grow. Subclasses give `params`, `memory`, `mix`, `flops`, and, if they
    convolve, `taps`."""

    paper: ClassVar[str] = ""
    streaming: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # other published or useful initialisations, as fields

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Any:
        """The mixer with the fields of a named preset, and others. Raises `ConfigError` for an unknown name."""
        choose(f"{cls.__name__}.preset", name, cls.presets)
        return cls(**{**cls.presets[name], **fields})

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        """Shapes, for one row, of what is remembered: arrays of float32 that start at zero."""
        raise NotImplementedError

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Of each short convolution: tokens it reads, shape of its channels."""
        return {}

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        """[B, L, D] -> [B, L, D], arbitrary on padding, and the stream after these tokens."""
        raise NotImplementedError

    def state_floats(self, dims: Dims) -> int:
        """Numbers remembered per row, those of the convolutions included."""
        sizes = [math.prod(shape) for shape in self.memory(dims).values()]
        return sum(sizes) + sum((n - 1) * math.prod(shape) for n, shape in self.taps(dims).values())

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> RecurrentState:
        """An empty state, of the same size for any ``max_length`` and cache policy.

        Raises `ConfigError` for a mixer, or a form of it, that looks ahead.
        """
        if not self.causal:
            name = registry.name_of("mixer", self)
            raise ConfigError(f"mixer {name!r} looks ahead: it has no state, and its model does not generate")
        return RecurrentState(
            memory={name: jnp.zeros((batch, *shape), jnp.float32) for name, shape in self.memory(dims).items()},
            tail={name: empty_tail(batch, n, shape, dtype) for name, (n, shape) in self.taps(dims).items()},
            segment=jnp.zeros((batch,), jnp.int32),
        )

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: RecurrentState | None = None
    ) -> tuple[jax.Array, RecurrentState | None]:
        """[B, L, D] -> [B, L, D], 0 on padding; with a state, the L tokens continue it.

        The same call serves the full pass, a prefill in pieces and single steps. Raises `ConfigError` for a state of
        another batch or another model.
        """
        before = self.before(x_BLD, ctx, state)
        y, after = self.mix(p, x_BLD, before, ctx)
        y = _of_real(y, before.rows)
        if state is None:
            return y, None
        assert after.memory is not None and before.segment_ids is not None
        return y, RecurrentState(after.memory, after.tail, last_segment(before.segment_ids, state.segment))

    def before(self, x_BLD: jax.Array, ctx: Context, state: RecurrentState | None) -> Stream:
        """What goes along the rows before these tokens."""
        segments = ctx.segment_ids
        if state is None:
            return Stream(None if segments is None else rows_of(segments), segments, None, {})
        self._check_state(x_BLD, state)
        segments = jnp.ones(x_BLD.shape[:2], jnp.int32) if segments is None else segments
        return Stream(rows_of(segments, state.segment), segments, state.memory, state.tail)

    def _check_state(self, x: jax.Array, state: RecurrentState) -> None:
        name, batch, dims = type(self).__name__, x.shape[0], Dims(width=x.shape[-1])
        require(isinstance(state, RecurrentState), f"{name}: a state of another mixer: {type(state).__name__}")
        tails = {f"tail {key}": (n - 1, *shape) for key, (n, shape) in self.taps(dims).items()}
        expected = {key: (batch, *shape) for key, shape in {**self.memory(dims), **tails}.items()}
        held = {**state.memory, **{f"tail {key}": tail.values for key, tail in state.tail.items()}}
        found = {key: value.shape for key, value in held.items()}
        require(found == expected, f"{name}: a state of another model or batch: expected {expected}, got {found}")


def _of_real(y: jax.Array, rows: Rows | None) -> jax.Array:
    """y [B, L, ...] with 0 on padding."""
    return y if rows is None else jnp.where(rows.real.reshape(*rows.real.shape, *(1,) * (y.ndim - 2)), y, 0)
