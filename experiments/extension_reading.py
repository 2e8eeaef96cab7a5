"""What `experiments.context_extension` measures of an arm: losses by position, passkeys, streams, decoding costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import context_extension_report as report
from experiments import extension_streaming as streaming
from experiments.extension_plan import TAIL, Arm, RunConfig
from experiments.extension_text import Text
from jaxlm.core.config import make
from jaxlm.core.params import map_specs
from jaxlm.core.types import Params
from jaxlm.model import decoder, extend
from jaxlm.model.decoder import Decoder

PARTS = 8  # equal parts of a window, for the loss by position
STREAMS = ("streaming", "window")  # what is read as an endless stream


@functools.partial(jax.jit, static_argnums=0)
def losses(model: Decoder, params: Params, rows_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 nats and boolean first choices that are right, both [B, L - 1], of rows [B, L] of tokens."""
    tokens = rows_BL[:, :-1]
    drawn = model.draw(jax.random.key(0), jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape))
    hidden = model(params, tokens, positions=drawn, ordered=True, logits=False).hidden

    def row(x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = model.unembed(params, x[0])
        chosen = jnp.take_along_axis(logits, x[1][:, None], -1)[:, 0]
        return jax.nn.logsumexp(logits, -1) - chosen, jnp.argmax(logits, -1) == x[1]

    return jax.lax.map(row, (hidden, rows_BL[:, 1:]))


def batch_size(config: RunConfig, length: int) -> int:
    """Rows that are read at once; one number for all uses, so that each model compiles once for each length."""
    return max(1, min(config.windows, config.eval_tokens // 4 // length))


def in_batches(model: Decoder, params: Params, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`losses` of any number of rows, ``size`` at a time."""
    padded = np.pad(rows, ((0, -len(rows) % size), (0, 0)))
    parts = [losses(model, params, padded[i : i + size]) for i in range(0, len(padded), size)]
    found, right = (np.concatenate([np.asarray(part[i]) for part in parts])[: len(rows)] for i in range(2))
    return found, right


def read_losses(config: RunConfig, arm: Arm, text: Text, seed: int) -> Iterator[report.Row]:
    """The loss by position, at every length."""
    for multiple, length in zip(config.multiples, config.lengths, strict=True):
        count = max(1, min(config.windows, config.eval_tokens // length))
        windows = text.windows(length, count, max(config.lengths))
        model = Decoder(arm.model(multiple).spec)
        found, _ = in_batches(model, arm.params, windows, batch_size(config, length))
        yield report.Row(arm.label, seed, length, "all", float(found.mean()))
        yield report.Row(arm.label, seed, length, "tail", float(found[:, -TAIL:].mean()))
        for part, chunk in enumerate(np.array_split(found, PARTS, 1)):
            yield report.Row(arm.label, seed, length, f"{part + 1}/{PARTS}", float(chunk.mean()))


def read_passkeys(config: RunConfig, arm: Arm, text: Text, seed: int) -> Iterator[report.Passkey]:
    """The share of passkey symbols found, by depth, at every length."""
    for multiple, length in zip(config.multiples, config.lengths, strict=True):
        count = max(1, min(config.passkeys, config.eval_tokens // 4 // length))
        windows = text.windows(length, count, max(config.lengths))
        draws = np.random.default_rng(length)
        depths = np.repeat(np.arange(config.depths), count)
        at = lambda depth: (depth / max(1, config.depths - 1),)
        hidden = [text.needle.hide(windows[i % count], at(depth), draws) for i, depth in enumerate(depths)]
        model = Decoder(arm.model(multiple).spec)
        _, right = in_batches(model, arm.params, np.stack(hidden), batch_size(config, length))
        found = right[:, -text.needle.size :].mean(1)
        for depth in range(config.depths):
            yield report.Passkey(arm.label, seed, length, depth, count, float(found[depths == depth].mean()))


def read_streams(config: RunConfig, arm: Arm, text: Text, seed: int) -> list[report.Stream]:
    """What a method of constant memory does over a long stream."""
    if not config.stream or arm.method not in STREAMS:
        return []
    longest = config.stream * config.original
    rows = text.windows(longest, config.stream_rows, longest)
    cache = make("cache", extend.cache(arm.method, config.original))
    model = Decoder(arm.model(config.stream).spec)
    return streaming.rows_of(arm.label, seed, model, arm.params, rows, cache, config.original)


def read_decoding(config: RunConfig, arm: Arm) -> list[report.Decoding]:
    """What a step of one token costs at the shortest and the longest length.

    Parameters cost the same whatever their values, so any will do where the arm has none.
    """
    found = []
    for multiple in sorted({config.multiples[0], config.multiples[-1]}):
        length = config.original * multiple
        spec = arm.model(multiple).spec
        params = arm.params or map_specs(lambda _, one: jnp.full(one.full_shape, 0.01), decoder.param_specs(spec))
        cache = make("cache", extend.cache(arm.method, config.original))
        seconds, size = decoding_cost(Decoder(spec), params, length, config.decode_steps, cache)
        found.append(report.Decoding(arm.label, length, 1000 * seconds, size))
    return found


def decoding_cost(model: Decoder, params: Params, context: int, steps: int, cache: Any) -> tuple[float, int]:
    """Median seconds of a step of one token after ``context`` of them, and bytes of the layers' state."""
    length = context + steps + 1  # declared, as for a text of known length: keys are then turned once
    state = decoder.init_state(model.spec, 1, length, cache)
    params = decoder.unstack(params)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params: Params, state: Any, tokens: jax.Array) -> Any:
        out = model(params, tokens, state=state, length=length, logits=False)
        return out.state, out.hidden[0, -1, 0]

    for piece in np.array_split(np.zeros((1, context), np.int32), max(1, context // 512), 1):
        state, _ = step(params, state, piece)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(params, state, np.zeros((1, 1), np.int32)))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])), sum(x.nbytes for x in jax.tree.leaves(state["layers"]))
