"""Mixers that only this study needs: Mamba-2 made to forget at inference, and a bag of tokens.

They have no line in the library's table of mixers; importing this file registers them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core import registry
from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.recurrent import Memory, Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.segments import Rows


@dataclasses.dataclass(frozen=True)
class ForgetfulMamba2(Mamba2):
    """Mamba-2 with the training-free mitigations of state collapse (Chen et al. 2024, Stuffed Mamba).

    Its parameters are those of Mamba-2, so that a trained model is read with it in place.

        g <- forget g        b <- remember b        S_t <- S_t min(1, limit / |S_t|)
        y_t = c_t^T (S_t - exp(g_{t-r+1} + ... + g_t) S_{t-r})        with r = window

    The difference of two states is what the last r tokens wrote, because the recurrence is linear. In float32 it loses
    digits as the state outgrows what r tokens write; at a thousand times that, three or four digits are left.

    Attributes:
      forget: factor of the log decay.
      remember: factor of b.
      window: r, in tokens; 0 for all of the past.
      buffer: old states that are kept for the window.
      limit: largest Frobenius norm of a head's state; 0 for no limit.
    """

    paper: ClassVar[str] = "Chen et al. 2024, Stuffed Mamba: State Collapse of RNN-Based Long-Context Modeling"

    forget: float = 1.0
    remember: float = 1.0
    window: int = 0
    buffer: int = 64
    limit: float = 0.0

    def check(self) -> None:
        super().check()
        for name in ("forget", "remember", "limit"):
            value = getattr(self, name)
            require(value >= 0, f"ForgetfulMamba2.{name}: expected a number >= 0, got {value}")
        require(
            0 <= self.window <= self.buffer,
            f"ForgetfulMamba2.window: {self.window} tokens do not fit the buffer of {self.buffer} old states; "
            f"allowed: 0 (all of the past) to {self.buffer}",
        )
        require(
            not (self.window and self.limit),
            "ForgetfulMamba2.limit: a state that was scaled down has no difference that is a window; set one of both",
        )

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        """With a window: the last states and decays, slot t mod buffer for token t, and the tokens of the document."""
        memory = super().memory(dims)
        if not self.window:
            return memory
        shape = memory["state"]
        return {**memory, "old": (self.buffer, *shape), "decays": (self.buffer, shape[0]), "count": ()}

    def recur(
        self, c: jax.Array, b: jax.Array, v: jax.Array, log_decay: jax.Array, stream: Stream
    ) -> tuple[jax.Array, Stream]:
        b, log_decay = b * self.remember, log_decay * self.forget
        if not self.window and not self.limit:
            return super().recur(c, b, v, log_decay, stream)
        batch, length, heads = log_decay.shape
        c, b = (jnp.repeat(x.astype(jnp.float32), heads // self.groups, 2) for x in (c, b))
        rows = stream.rows
        if rows is None:
            rows = Rows(jnp.ones((batch, length), bool), jnp.zeros((batch, length), jnp.int32))
        begins = jnp.diff(rows.epoch, axis=1, prepend=0) > 0
        memory = stream.memory
        if memory is None:
            shapes = self.memory(Dims(width=round(heads * self.head_dim / self.expand)))
            memory = {name: jnp.zeros((batch, *shape), jnp.float32) for name, shape in shapes.items()}
        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (c, b, v, log_decay, rows.real, begins))
        memory, y = jax.lax.scan(functools.partial(_windowed if self.window else _normalised, self), memory, tokens)
        return jnp.moveaxis(y, 0, 1), stream.remember(**memory)


def _next_state(state: jax.Array, now: tuple[jax.Array, ...]) -> jax.Array:
    """The state [B, H, N, P] after one token; padding leaves it, a document begins at zero."""
    _, b, v, decay, real, begins = now
    fade = jnp.where(begins[:, None], 0, jnp.where(real[:, None], jnp.exp(decay), 1))
    written = jnp.where(real[:, None, None, None], b[..., :, None] * v[..., None, :], 0)
    return fade[..., None, None] * state + written


def _normalised(mixer: ForgetfulMamba2, memory: Memory, now: tuple[jax.Array, ...]) -> tuple[Memory, jax.Array]:
    state = _next_state(memory["state"], now)
    size = jnp.sqrt(jnp.sum(jnp.square(state), (2, 3), keepdims=True))
    state = state * jnp.minimum(1, mixer.limit / jnp.maximum(size, 1e-30))
    return {"state": state}, jnp.sum(now[0][..., None] * state, 2)


def _windowed(mixer: ForgetfulMamba2, memory: Memory, now: tuple[jax.Array, ...]) -> tuple[Memory, jax.Array]:
    c, _, _, decay, real, begins = now
    each, room = jnp.arange(len(c)), mixer.buffer
    state = _next_state(memory["state"], now)
    count = jnp.where(begins, 0, memory["count"])
    place = count.astype(jnp.int32)
    slot = place % room
    decays = memory["decays"].at[each, slot].set(jnp.where(real[:, None], decay, memory["decays"][each, slot]))
    # Slots of the last r tokens: how long ago each slot was written, and that it was in this document.
    ago = (slot[:, None] - jnp.arange(room)) % room
    faded = jnp.sum(jnp.where((ago < mixer.window)[..., None], decays, 0), 1)
    before = memory["old"][each, (place - mixer.window) % room]
    left = jnp.where((place >= mixer.window)[:, None], jnp.exp(faded), 0)
    y = jnp.sum(c[..., None] * (state - left[..., None, None] * before), 2)
    # Padding writes back what is there: a choice between whole buffers would copy them for every token.
    kept = jnp.where(real[:, None, None, None], state, memory["old"][each, slot])
    old = memory["old"].at[each, slot].set(kept)
    return {"state": state, "old": old, "decays": decays, "count": jnp.where(real, count + 1, count)}, y


@dataclasses.dataclass(frozen=True)
class Bag(Spec):
    """The mean of what the row's tokens project to, whatever their order: y = mean(x W)."""

    paper: ClassVar[str] = "Harris 1954, Distributional Structure (the bag of words)"
    streaming: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    def params(self, dims: Dims) -> Specs:
        return {"out": ParamSpec((dims.width, dims.width), ("embed", None))}

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> Any:
        """Raises `ConfigError`: it has no state."""
        raise ConfigError("mixer 'bag' looks ahead: it has no state")

    def flops(self, dims: Dims, length: int) -> float:
        return float(dims.width)

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context, state: Any = None) -> tuple[jax.Array, Any]:
        real = jnp.ones(x_BLD.shape[:2], bool) if ctx.segment_ids is None else ctx.segment_ids != 0
        mean = jnp.mean(x_BLD, 1, keepdims=True, where=real[..., None], dtype=jnp.float32)
        return jnp.broadcast_to(dense(mean.astype(x_BLD.dtype), p["out"]), x_BLD.shape), state


registry.register("mixer", "mamba2_forgetful", ForgetfulMamba2)
registry.register("mixer", "bag", Bag)
