"""Tiny models for tests. Parameters come from numpy and calls may stay eager, so a law costs no compilation."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.config import make
from jaxlm.core.params import Constant, FanIn, ParamSpec, map_specs
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.spec import Block, Group, ModelSpec

VOCABULARY = 13


def tiny(mixer: dict[str, Any] | None = None, block: dict[str, Any] | None = None, repeats: int = 2, **model: Any):
    """A `ModelSpec` of ``repeats`` equal blocks; the arguments are fields of the attention, the block and the model."""
    attention = Attention(**{"heads": 4, "kv_heads": 2, "position": "none", **(mixer or {})})
    pattern = (Block(**{"mixer": attention, "ffn": Mlp(hidden=24), **(block or {})}),)
    return ModelSpec(**{"vocab_size": VOCABULARY, "width": 16, "layers": (Group(pattern, repeats),), **model})


def draw_params(specs: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Values for ``specs`` in which nothing is at rest: gains are not 1, biases and tables far from 0."""

    def one(path: str, spec: ParamSpec) -> jax.Array:
        noise = np.random.default_rng([seed, zlib.crc32(path.encode())]).standard_normal(spec.full_shape)
        if isinstance(spec.init, Constant):
            value = spec.init.value + 0.3 * noise
        else:
            value = noise * (spec.fan_in_size**-0.5 if isinstance(spec.init, FanIn) else 0.5)
        return jnp.asarray(value.astype(np.float32))  # cast here: jax would compile a cast for each shape

    return map_specs(one, specs)


def params_of(spec: ModelSpec, seed: int = 0) -> dict[str, Any]:
    return draw_params(decoder.param_specs(spec), seed)


def layers_of(spec: ModelSpec, seed: int = 0) -> dict[str, Any]:
    """The same, unstacked, in numpy: jax would compile a slice for each shape."""
    return decoder.unstack(jax.device_get(params_of(spec, seed)))


def tokens_of(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length)).astype(np.int32)


def count_positions(segment_ids: np.ndarray) -> np.ndarray:
    """Plain positions by counting: of each row's real tokens, from 0 again in each segment; 0 for padding."""
    positions = np.zeros_like(segment_ids)
    for row, ids in enumerate(segment_ids):
        seen: dict[int, int] = {}
        for slot, segment in enumerate(ids):
            if segment:
                positions[row, slot] = seen.get(segment, 0)
                seen[segment] = positions[row, slot] + 1
    return positions


def slow(*cases: Any) -> list[Any]:
    """Cases of `pytest.mark.parametrize`, each its tuple of arguments, that only `make test-all` runs."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def mostly_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """Names for a costly law: it holds for all of them, the default suite runs it for the ``quick`` ones."""
    known = list(names)
    assert set(quick) <= set(known), set(quick) - set(known)
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in known]


def caller(spec: ModelSpec, length: int | None = None) -> Any:
    """A jitted ``(params, tokens, segment_ids, positions, state) -> (logits, state)``; the last three may be None.

    ``length`` is what encodings that depend on the context's length are told.
    """

    def call(params, tokens, segment_ids=None, positions=None, state=None):
        out = decoder.forward(
            spec, params, tokens, segment_ids=segment_ids, positions=positions, state=state, length=length
        )
        return out.logits, out.state

    return jax.jit(call)


def stream(spec, call, params, tokens, pieces, segment_ids=None, positions=None, cache: Any = "full") -> np.ndarray:
    """Logits [B, L, V] of ``tokens`` fed to a `caller` in ``pieces`` (lengths that add up to L) through a cache."""
    state = decoder.init_state(spec, tokens.shape[0], tokens.shape[1], make("cache", cache))
    cut = lambda x, at: None if x is None else x[:, at]
    logits, start = [], 0
    for size in pieces:
        at = slice(start, start + size)
        out, state = call(params, tokens[:, at], cut(segment_ids, at), cut(positions, at), state)
        logits.append(np.asarray(out))
        start += size
    assert start == tokens.shape[1]
    return np.concatenate(logits, 1)


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Asserts that two trees are finite and agree leaf by leaf, relative to each leaf's largest entry."""
    one = jax.tree_util.tree_flatten_with_path(a)[0]
    two = jax.tree_util.tree_flatten_with_path(b)[0]
    assert [path for path, _ in one] == [path for path, _ in two]
    for (path, x), (_, y) in zip(one, two, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.isfinite(x).all() and np.isfinite(y).all(), jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance * max(np.abs(y).max(), 1e-3), err_msg=jax.tree_util.keystr(path)
        )
