"""The decode loop: one prefill (`start`), then a jitted `lax.while_loop` of single steps (`proceed`).

`proceed` runs to a step that is an argument, so one compiled loop serves both a whole text and a stream in pieces, and
its caller may look, and stop, in between. Each layer has its own cache and its own weights, taken apart once outside
the loop: with a scan over stacked weights and one stacked cache it is several times slower on a CPU.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.types import Memory, Params
from jaxlm.decode.processor import Processors, apply_all, init_all
from jaxlm.decode.sample import choose
from jaxlm.model import decoder, patch_state
from jaxlm.model.spec import ModelSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """How a batch is continued. All of it is data: other values of the same shapes compile nothing.

    Attributes:
      lengths: int32 [B], how much of each row is prompt.
      limits: int32 [B], how many tokens each row may get, at most N.
      rows: int32 [B], the ids by which rows draw their noise.
      stop: int32 [S], the tokens that end a row.
      processors: what the logits pass through.
      key: of the noise; None takes the likeliest token.
      positions: int32 [B, L + N - 1] of each row's real tokens, where the model draws them at random; otherwise None.
    """

    lengths: jax.Array
    limits: jax.Array
    rows: jax.Array
    stop: jax.Array
    processors: Processors = ()
    key: jax.Array | None = None
    positions: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What has been generated.

    Attributes:
      step: int32 scalar, the number of tokens so far.
      token: int32 [B], the last of them; None before the first.
      done: boolean [B], the rows that have ended; they repeat their last token.
      counts: int32 [B], how many tokens are a row's own, the repeated ones left out.
      out: int32 [B, N]; what lies beyond ``step`` repeats the last token.
      processed: the state of each processor.
    """

    step: jax.Array | int
    token: jax.Array | None
    done: jax.Array
    counts: jax.Array
    out: jax.Array
    processed: tuple[Any, ...]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def start(
    spec: ModelSpec,
    cache: Any,
    capacity: int,
    new: int,
    params: Params,
    prompt_BL: jax.Array,
    request: Request,
    memory: Memory | None = None,
) -> tuple[Progress, Any]:
    """The first token of N = ``new`` after prompts padded on the right, and the state, for ``capacity`` tokens; the
    state holds what the model reads of ``memory``."""
    batch, size = prompt_BL.shape
    real = jnp.arange(size) < request.lengths[:, None]
    state = decoder.init_state(spec, batch, capacity, cache, 0 if memory is None else memory.hidden.shape[1])
    positions = None if request.positions is None else request.positions[:, :size]
    output = decoder.forward(
        spec,
        params,
        prompt_BL,
        positions=positions,
        segment_ids=real.astype(jnp.int32),
        state=state,
        memory=memory,
        logits=False,
    )
    empty = Progress(
        step=0,
        token=None,
        done=jnp.zeros(batch, bool),
        counts=jnp.zeros(batch, jnp.int32),
        out=jnp.zeros((batch, new), jnp.int32),
        processed=init_all(request.processors, prompt_BL, real, spec.vocab_size),
    )
    progress = _extend(spec, params, request, empty, output.hidden[jnp.arange(batch), request.lengths - 1])
    return _filled(progress), output.state


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def proceed(
    spec: ModelSpec, params: Params, request: Request, progress: Progress, until: jax.Array | int, *, state: Any
) -> tuple[Progress, Any]:
    """Further tokens, up to ``until`` in all or until every row has ended; the state given is used up."""

    def more(carry: tuple[Progress, Any]) -> jax.Array:
        progress, _ = carry
        return (progress.step < until) & ~progress.done.all()

    # A batch of one is carried without its axis: matmuls drop it, and XLA would else write every cache twice, in both
    # shapes, which takes copies of it all.
    full = jax.tree.map(jnp.shape, state)

    def advance(carry: tuple[Progress, Any]) -> tuple[Progress, Any]:
        progress, slim = carry
        state = jax.tree.map(jnp.reshape, slim, full)
        assert progress.token is not None
        positions = None
        if request.positions is not None:
            positions = jnp.take_along_axis(request.positions, (request.lengths + progress.step - 1)[:, None], 1)
        output = decoder.forward(spec, params, progress.token[:, None], positions=positions, state=state, logits=False)
        return _extend(spec, params, request, progress, output.hidden[:, 0]), jax.tree.map(jnp.squeeze, output.state)

    progress, slim = jax.lax.while_loop(more, advance, (progress, jax.tree.map(jnp.squeeze, state)))
    return _filled(progress), jax.tree.map(jnp.reshape, slim, full)


@functools.partial(jax.jit, static_argnums=(0, 1))
def grow(spec: ModelSpec, capacity: int, state: Any) -> Any:
    """The state with room for ``capacity`` tokens of text in every cache."""
    if spec.patcher is not None:
        return patch_state.grow(spec, capacity, state)
    grown = (
        entry.grow(room) if hasattr(entry, "grow") else entry
        for entry, room in zip(state["layers"], decoder.rooms(spec, capacity), strict=True)
    )
    return {**state, "layers": tuple(grown)}


def _extend(spec: ModelSpec, params: Params, request: Request, progress: Progress, hidden_BD: jax.Array) -> Progress:
    """One more token a row, chosen by the hidden states of the last ones."""
    step, last = progress.step, progress.token
    logits = decoder.unembed(spec, params, hidden_BD)
    logits, processed = apply_all(request.processors, logits, last, step, progress.processed)
    token = choose(logits, request.key, request.rows, step)
    token = token if last is None else jnp.where(progress.done, last, token)
    done = progress.done | (token[:, None] == request.stop).any(1) | (step + 1 >= request.limits)
    counts = progress.counts + ~progress.done
    out = jax.lax.dynamic_update_slice(progress.out, token[:, None], (0, step))
    return Progress(jnp.int32(step + 1), token, done, counts, out, processed)


def _filled(progress: Progress) -> Progress:
    written = jnp.arange(progress.out.shape[1]) < progress.step
    assert progress.token is not None
    return dataclasses.replace(progress, out=jnp.where(written, progress.out, progress.token[:, None]))
