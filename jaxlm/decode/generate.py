"""Autoregressive generation: one prefill, then one jitted `lax.while_loop` of single steps.

Stacked layers are taken apart once, outside the loop, and each layer has its own cache: with a scan over stacked
weights and one stacked cache the same loop is 4.6 times slower on a CPU (batch 8). Prompts of different lengths are
padded on the right; padding has segment 0, so nothing attends to it, and a row's positions go on from its own length.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import config
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.decode.sample import gumbel, keep_top_k, keep_top_p
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec


def generate(
    model: LanguageModel,
    params: Params,
    prompt_BL: Any,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    prompt_lengths: Any = None,
    stop: Sequence[int] = (),
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Continues prompts.

    Args:
      model, params: the model; ``params`` stacked or unstacked.
      prompt_BL: integers [B, L], padded on the right where prompts are shorter than L (with any token).
      max_new_tokens: N.
      temperature: 0 takes the likeliest token; otherwise tokens are sampled at this temperature, which needs ``key``.
      key: of the sampling noise, which depends on (key, row, step) only, and of positions that a model draws at random
        (a fixed key if None).
      prompt_lengths: integers [B], how much of each row is prompt; None for all of it.
      stop: token ids that end a row. Generation ends early when every row has ended.
      top_k: sample among the k likeliest tokens only; 0 for all.
      top_p: sample among the fewest likeliest tokens whose probability, at this temperature, reaches p.

    Returns:
      int32 [B, N], the new tokens alone. After a stop token a row repeats it.

    Raises:
      ConfigError: an argument that does not fit, or rows longer than the model's position encoding can represent.
    """
    spec = model.spec
    prompt, lengths = _checked_prompt(spec, prompt_BL, prompt_lengths)
    require(max_new_tokens >= 1, f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    require(0 <= temperature < math.inf, f"temperature: expected 0 (greedy) or a positive number, got {temperature}")
    require(
        temperature == 0 or key is not None, f"temperature {temperature} samples, so it needs key=jax.random.key(n)"
    )
    require(0 <= top_k <= spec.vocab_size, f"top_k: expected 0 (off) to {spec.vocab_size} (all tokens), got {top_k}")
    require(0 < top_p <= 1, f"top_p: expected a number in (0, 1], got {top_p}")
    wrong = [token for token in stop if not 0 <= token < spec.vocab_size]
    require(not wrong, f"stop: token {wrong[:1]} is outside the vocabulary of {spec.vocab_size}")
    limit, longest = decoder.max_positions(spec), int(lengths.max())
    require(
        limit is None or longest + max_new_tokens - 1 <= limit,
        f"a prompt of {longest} tokens and {max_new_tokens} new ones need {longest + max_new_tokens - 1} positions; "
        f"the model's position encoding can represent {limit}",
    )
    if limit is not None and prompt.shape[1] + max_new_tokens - 1 > limit:
        prompt = prompt[:, :longest]  # columns of padding alone, for which there is no room
    return _generate(
        spec,
        max_new_tokens,
        temperature > 0,
        top_k if temperature > 0 and top_k < spec.vocab_size else 0,
        temperature > 0 and top_p < 1,
        params,
        prompt,
        lengths,
        jnp.float32(temperature),
        jnp.float32(top_p),
        jnp.asarray(stop, jnp.int32),
        jax.random.key(0) if key is None else key,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(
    spec: ModelSpec,
    new: int,
    sampled: bool,
    top_k: int,
    nucleus: bool,
    params: Params,
    prompt_BL: jax.Array,
    lengths_B: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    stop: jax.Array,
    key: jax.Array,
) -> jax.Array:
    batch, size = prompt_BL.shape
    noise_key, position_key = jax.random.split(key)
    params = decoder.unstack(params)
    forward = functools.partial(decoder.forward, spec, params, logits=False)
    rows, real = jnp.arange(batch), jnp.arange(size) < lengths_B[:, None]

    # The places of each row's real tokens, drawn for all of them at once; the last new token is never read.
    places = jnp.minimum(jnp.arange(size + new - 1), lengths_B[:, None] + new - 2)
    drawn = decoder.draw_positions(spec, position_key, places)

    def choose(hidden_BD: jax.Array, step: jax.Array | int) -> jax.Array:
        logits = decoder.unembed(spec, params, hidden_BD)
        if sampled:
            logits = logits / temperature
            logits = keep_top_k(logits, top_k) if top_k else logits
            logits = keep_top_p(logits, top_p) if nucleus else logits
            logits = logits + gumbel(noise_key, batch, step, spec.vocab_size)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def stops(token_B: jax.Array) -> jax.Array:
        return (token_B[:, None] == stop).any(1)

    def more(carry: Any) -> jax.Array:
        step, _, done, _, _ = carry
        return (step < new) & ~done.all()

    def advance(carry: Any) -> Any:
        step, token, done, out, state = carry
        positions = None if drawn is None else drawn[rows, lengths_B + step - 1][:, None]
        output = forward(token[:, None], positions=positions, state=state)
        token = jnp.where(done, token, choose(output.hidden[:, 0], step))
        return step + 1, token, done | stops(token), out.at[:, step].set(token), output.state

    state = decoder.init_state(spec, batch, size + new - 1, config.make("cache", "full"))
    positions = None if drawn is None else drawn[:, :size]
    output = forward(prompt_BL, positions=positions, segment_ids=real.astype(jnp.int32), state=state)
    first = choose(output.hidden[rows, lengths_B - 1], 0)
    out = jnp.zeros((batch, new), jnp.int32).at[:, 0].set(first)
    step, last, _, out, _ = jax.lax.while_loop(more, advance, (jnp.int32(1), first, stops(first), out, output.state))
    return jnp.where(jnp.arange(new) < step, out, last[:, None])


def _checked_prompt(spec: ModelSpec, prompt_BL: Any, prompt_lengths: Any) -> tuple[jax.Array, jax.Array]:
    """The prompt [B, L] and its lengths [B], int32. Raises `ConfigError` for what is not a prompt of this model."""
    prompt = np.asarray(prompt_BL)
    require(
        prompt.ndim == 2 and prompt.dtype.kind in "iu",
        f"prompt_BL: expected integers of shape [B, L], got {prompt.dtype} {list(prompt.shape)}",
    )
    batch, size = prompt.shape
    require(batch and size, f"prompt_BL: the prompt is empty, shape {[batch, size]}; give one token or more")
    lengths = np.full(batch, size) if prompt_lengths is None else np.asarray(prompt_lengths)
    require(
        lengths.shape == (batch,) and lengths.dtype.kind in "iu",
        f"prompt_lengths: expected {batch} integers, got {lengths.dtype} {list(lengths.shape)}",
    )
    wrong = lengths[(lengths < 1) | (lengths > size)]
    require(not wrong.size, f"prompt_lengths: {wrong[:1]} is outside 1..{size}")
    tokens = np.where(np.arange(size) < lengths[:, None], prompt, 0)
    odd = tokens[(tokens < 0) | (tokens >= spec.vocab_size)]
    require(not odd.size, f"prompt_BL: token {odd[:1]} is outside the vocabulary of {spec.vocab_size}")
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)
