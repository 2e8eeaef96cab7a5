"""Autoregressive generation: what a user asks for, checked, and the loop of `jaxlm.decode.loop` run on it.

A prompt is what a decoder continues, and the source that an encoder-decoder answers.

Prompts of different lengths are padded, on either side; padding has segment 0, so nothing attends to it, and a row's
positions go on from its own length. A row's text depends on its prompt, its id and the key alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import config
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose, shown
from jaxlm.core.types import Params
from jaxlm.decode import loop
from jaxlm.decode.processor import Processor, Processors, make_all
from jaxlm.decode.processors.min_p import MinP
from jaxlm.decode.processors.repetition import Repetition
from jaxlm.decode.processors.suppress import Suppress
from jaxlm.decode.processors.temperature import Temperature
from jaxlm.decode.processors.top_k import TopK
from jaxlm.decode.processors.top_p import TopP
from jaxlm.model import decoder, patch_state
from jaxlm.model.language_model import Model
from jaxlm.model.spec import ModelSpec

# Called with each row's new tokens, int32 [n] (none once the row has ended); what it returns, None or booleans that
# broadcast to [B], says which rows are to end here.
Stream = Callable[[list[np.ndarray]], Any]


def generate(
    model: Model,
    params: Params,
    prompt_BL: Any,
    max_new_tokens: Any = 16,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    prompt_lengths: Any = None,
    stop: Sequence[int] = (),
    top_k: int = 0,
    top_p: float = 1.0,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    processors: Iterable[Processor | str | dict[str, Any]] = (),
    padding: str = "right",
    rows: Any = None,
    cache: Any = "full",
    stream: Stream | None = None,
    stream_every: int = 1,
) -> jax.Array:
    """Continues prompts, or answers sources.

    The logits pass through, in this order: the repetition penalty, ``processors``, and, if the temperature is not 0,
    temperature, top-k, top-p and min-p. Other values of the numbers compile nothing, but for ``top_k``.

    Args:
      model, params: the model; ``params`` stacked or unstacked.
      prompt_BL: integers [B, L], padded where prompts are shorter than L (with any token); the source, for an
        encoder-decoder, whose new tokens come after its start token.
      max_new_tokens: N, for all rows or for each [B].
      temperature: 0 takes the likeliest token; otherwise tokens are sampled at this temperature, which needs ``key``.
      key: of the sampling noise, which depends on (key, row id, step) only, and of positions that a model draws at
        random (a fixed key if None).
      prompt_lengths: integers [B], how much of each row is prompt; None for all of it.
      stop: token ids that end a row. Generation ends early when every row has ended.
      top_k: sample among the k likeliest tokens only; 0 for all.
      top_p: sample among the fewest likeliest tokens whose probability, at this temperature, reaches p.
      min_p: sample among the tokens with at least this share of the likeliest one's probability.
      repetition_penalty: divides the positive and multiplies the negative logits of tokens that the row holds already,
        prompt included (Keskar et al. 2019, CTRL); 1 is off.
      processors: further logits processors (`jaxlm.list("processor")`, or objects of `jaxlm.decode.processor`).
      padding: the side on which prompts are padded, ``"right"`` or ``"left"``.
      rows: integers [B], the rows' ids; None counts them. A text depends on its row's id, never on its place.
      cache: a registered cache policy.
      stream: called with the new tokens of every row as they come, a list of int32 arrays, the stop token included and
        nothing once a row has ended. It may return booleans, one or [B], for the rows that are to end here. What it
        raises reaches the caller.
      stream_every: tokens of a row between two calls.

    Returns:
      int32 [B, N], the new tokens alone. After its end (a stop token, its own limit, or the word of ``stream``) a row
      repeats its last token.

    Raises:
      ConfigError: an argument that does not fit, or rows longer than the model's position encoding can represent, or
        with more patches than its patcher has room for.
    """
    spec, reader = model.pure.writer, model.pure.reader
    prompt, lengths = _checked_prompt(reader, prompt_BL, prompt_lengths, padding)
    limits = _checked_integers("max_new_tokens", max_new_tokens, len(prompt), 1, None)
    ids = np.arange(len(prompt)) if rows is None else _checked_integers("rows", rows, len(prompt), 0, 2**31 - 1)
    chain = _checked_processors(spec, temperature, key, top_k, top_p, min_p, repetition_penalty, processors)
    require(stream_every >= 1, f"stream_every: expected at least 1 token, got {stream_every}")
    stop_ids, policy = _checked_stop(spec, stop), config.make("cache", cache, where="cache")
    prompt, lengths, params, memory = model.pure.prompt(params, prompt, lengths)
    new, needed = int(limits.max()), int((lengths + limits).max()) - 1
    limit = decoder.max_positions(spec)
    require(
        limit is None or needed <= limit,
        f"a prompt of {lengths[np.argmax(lengths + limits)]} tokens and {limits[np.argmax(lengths + limits)]} new ones "
        f"need {needed} positions; the model's position encoding can represent {limit}",
    )
    if limit is not None and prompt.shape[1] + new - 1 > limit:
        prompt = prompt[:, : lengths.max()]  # columns of padding alone, for which there is no room
    places = np.minimum(np.arange(prompt.shape[1] + new - 1), (lengths + limits)[:, None] - 2)
    noise, positions = _draw(spec, jax.random.key(0) if key is None else key, places, ids)
    request = loop.Request(
        lengths=jnp.asarray(lengths, jnp.int32),
        limits=jnp.asarray(limits, jnp.int32),
        rows=jnp.asarray(ids, jnp.int32),
        stop=jnp.asarray(stop_ids, jnp.int32),
        processors=chain,
        key=noise if temperature > 0 else None,
        positions=positions,
    )
    params, size = _unstacked(params), prompt.shape[1]
    if "position" in params:
        params = {**params, "position": _prepare_positions(spec, params["position"])}
    capacities = policy.capacities(size, size + new - 1)
    tokens = jnp.asarray(prompt, jnp.int32)
    with _refusals():
        progress, state = loop.start(spec, policy, capacities[0], new, params, tokens, request, memory)

    @_refusals()
    def advance(progress: loop.Progress, state: Any, until: int) -> tuple[loop.Progress, Any]:
        """Up to ``until`` tokens; caches that are full grow on the way."""
        step = int(progress.step)
        for room, capacity in zip((0, *capacities), capacities, strict=False):
            if step == room - size + 1:
                state = loop.grow(spec, capacity, state)
            if step < (stage := min(until, capacity - size + 1)):
                progress, state = loop.proceed(spec, params, request, progress, stage, state=state)
                step = int(progress.step)
        if spec.patcher is not None:
            patch_state.check_overflow(state)
        return progress, state

    if stream is None:
        return advance(progress, state, new)[0].out
    seen = np.zeros(len(prompt), np.int32)
    while True:
        out, counts, done = (np.array(x) for x in (progress.out, progress.counts, progress.done))
        ended = stream([row[start:stop] for row, start, stop in zip(out, seen, counts, strict=True)])
        done |= _checked_answer(ended, len(prompt))
        if done.all():
            return progress.out
        seen, until = counts, int(progress.step) + stream_every
        progress, state = advance(dataclasses.replace(progress, done=jnp.asarray(done)), state, min(until, new))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What a processor refuses on the host, inside the compiled loop, is raised as it was there."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        refused = re.search(r"ConfigError: (.+)", str(error))
        if refused is None:
            raise
        raise ConfigError(refused[1]) from None


@functools.partial(jax.jit, static_argnums=0)
def _draw(spec: ModelSpec, key: jax.Array, places: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The key of the sampling noise, and the positions [B, L + N - 1] of each row's tokens if the model draws them."""
    noise_key, position_key = jax.random.split(key)
    return noise_key, decoder.draw_positions(spec, position_key, places, rows)


_unstack = jax.jit(decoder.unstack)
_prepare_positions = jax.jit(decoder.prepare_positions, static_argnums=0)


def _unstacked(params: Params) -> Params:
    """``params`` as the loop wants them: taken apart once, unless the caller has done so for many calls."""
    stacked = any(isinstance(group, dict) for name, group in params.items() if name.startswith("group_"))
    return _unstack(params) if stacked else params


def _checked_prompt(
    spec: ModelSpec, prompt_BL: Any, prompt_lengths: Any, padding: str
) -> tuple[np.ndarray, np.ndarray]:
    """The prompt [B, L], padded on the right with 0, and its lengths [B]. Raises `ConfigError` for what is not one."""
    prompt = np.asarray(prompt_BL)
    require(
        prompt.ndim == 2 and prompt.dtype.kind in "iu",
        f"prompt_BL: expected integers of shape [B, L], got {prompt.dtype} {list(prompt.shape)}",
    )
    batch, size = prompt.shape
    require(batch and size, f"prompt_BL: the prompt is empty, shape {[batch, size]}; give one token or more")
    lengths = _checked_integers("prompt_lengths", size if prompt_lengths is None else prompt_lengths, batch, 1, size)
    if choose("padding", padding, ("right", "left")) == "left":
        prompt = np.stack([np.roll(row, n - size) for row, n in zip(prompt, lengths, strict=True)])
    tokens = np.where(np.arange(size) < lengths[:, None], prompt, 0)
    odd = tokens[(tokens < 0) | (tokens >= spec.vocab_size)]
    require(not odd.size, f"prompt_BL: token {odd[:1]} is outside the vocabulary of {spec.vocab_size}")
    return tokens, lengths


def _checked_integers(name: str, value: Any, batch: int, least: int, most: int | None) -> np.ndarray:
    """``value`` as integers [B] from ``least`` to ``most``; one integer stands for all rows."""
    array = np.asarray(value)
    require(
        array.dtype.kind in "iu" and array.shape in ((), (batch,)),
        f"{name}: expected {batch} integers, got {array.dtype} {list(array.shape)}",
    )
    wrong = array[(array < least) | (array > (np.inf if most is None else most))]
    allowed = f"outside {least}..{most}" if most is not None else f"less than {least}"
    require(not wrong.size, f"{name}: {wrong[:1]} is {allowed}")
    return np.broadcast_to(array, (batch,))


def _checked_stop(spec: ModelSpec, stop: Any) -> np.ndarray:
    array = np.asarray(stop) if np.size(stop) else np.zeros(0, np.int32)
    require(array.ndim == 1 and array.dtype.kind in "iu", f"stop: expected a sequence of token ids, got {shown(stop)}")
    wrong = array[(array < 0) | (array >= spec.vocab_size)]
    require(not wrong.size, f"stop: token {wrong[:1]} is outside the vocabulary of {spec.vocab_size}")
    return array


def _checked_processors(
    spec: ModelSpec,
    temperature: float,
    key: jax.Array | None,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    processors: Iterable[Any],
) -> Processors:
    """What the logits pass through; first, tokens that only the model's edit writes are suppressed. Settings of
    sampling are checked where the likeliest token is taken, too."""
    temperature, top_p, min_p, penalty = (
        _number(name, value)
        for name, value in (
            ("temperature", temperature),
            ("top_p", top_p),
            ("min_p", min_p),
            ("repetition_penalty", repetition_penalty),
        )
    )
    require(0 <= temperature < math.inf, f"temperature: expected 0 (greedy) or a positive number, got {temperature}")
    require(
        temperature == 0 or key is not None, f"temperature {temperature} samples, so it needs key=jax.random.key(n)"
    )
    require(0 <= top_k <= spec.vocab_size, f"top_k: expected 0 (off) to {spec.vocab_size} (all tokens), got {top_k}")
    marks = spec.edit.marks(spec.vocab_size) if spec.edit is not None else ()
    always = [*([Suppress(marks)] if marks else []), *([] if penalty == 1 else [Repetition(penalty)])]
    narrowing = [
        *([TopK(top_k)] if 0 < top_k < spec.vocab_size else []),
        *([] if top_p == 1 else [TopP(top_p)]),
        *([] if min_p == 0 else [MinP(min_p)]),
    ]
    sampling = [Temperature(temperature), *narrowing] if temperature else []
    return make_all([*always, *processors, *sampling], spec.vocab_size)


def _number(name: str, value: Any) -> float:
    plain = np.asarray(value)
    require(plain.ndim == 0 and plain.dtype.kind in "iuf", f"{name}: expected a number, got {shown(value)}")
    return float(plain)


def _checked_answer(answer: Any, batch: int) -> np.ndarray:
    """What a stream's callback returned, as booleans [B]."""
    ended = np.asarray(False if answer is None else answer)
    require(
        ended.dtype == bool and ended.shape in ((), (batch,)),
        f"stream: expected the callback to return None or booleans, one or {batch}, got {shown(answer)}",
    )
    return np.broadcast_to(ended, (batch,))
