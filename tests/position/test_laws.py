"""Laws of every registered position encoding, in a whole model, none of them named below the list."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import position
from jaxlm.attention.mask import Window
from jaxlm.core import registry
from jaxlm.core.config import Spec, from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import PositionEncoding
from jaxlm.model import decoder
from jaxlm.position.rotary import Rotary
from tests.tiny import VOCABULARY, caller, close, count_positions, params_of, stream, tiny, tokens_of


@dataclasses.dataclass(frozen=True)
class Beyond(Spec):
    """The keys that a `Window` of this size hides."""

    paper: ClassVar[str] = "none: a toy of the tests"
    causal: ClassVar[bool] = True
    size: int = 4

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return pos_q - pos_k >= self.size


@dataclasses.dataclass(frozen=True)
class TwoViews(PositionEncoding):
    """A toy outside the library, after SelfExtend (Jin et al. 2024): exact positions near, grouped ones far."""

    paper: ClassVar[str] = "none: a toy of the tests"
    pre_rotate: ClassVar[bool] = False
    near: int = 4
    group: int = 3

    def views(self, p, q, k, pos_q, pos_k, length):
        exact, far = Rotary(base=50.0), Rotary(base=7.0)
        turn = lambda encoding, pos_q, pos_k: (encoding.rotate(p, q, pos_q, None), encoding.rotate(p, k, pos_k, None))
        return [
            (*turn(exact, pos_q, pos_k), Window(self.near)),
            (*turn(far, pos_q // self.group, pos_k // self.group), Beyond(self.near)),
        ]


registry.register("mask", "beyond", Beyond)
registry.register("position", "two_views", TwoViews)


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the list: a registered name, arguments that are small and not the defaults, and whether logits depend
    on differences of positions alone."""

    name: str
    args: dict[str, Any]
    relative: bool
    length: int | None = None  # declared to encodings that depend on it
    counts: bool = False  # along the row, so that slots must be in the order of positions


LINEAR = {"name": "linear", "args": {"factor": 3.0}}
CLEX = {"name": "rotary", "args": {"base": 9.0, "scaling": {"name": "clex", "args": {"original": 8, "max_factor": 3}}}}

CASES = [
    Case("none", {}, relative=True),
    Case("learned", {"size": 40, "std": 0.5}, relative=False),
    Case("learned", {"size": 40, "std": 0.5, "offset": 2}, relative=False),
    Case("sinusoidal", {"base": 100.0, "layout": "interleaved"}, relative=False),
    Case("rotary", {"base": 50.0}, relative=True),
    Case("rotary", {"fraction": 0.5, "pairing": "interleaved"}, relative=True),
    Case("rotary", {"base": 50.0, "scaling": {"name": "linear", "args": {"factor": 3.0}}}, relative=True),
    Case("rotary", {"base": 50.0, "scaling": {"name": "dynamic", "args": {"original": 8}}}, True, length=20),
    Case("rotary", {"base": 50.0, "scaling": {"name": "yarn", "args": {"factor": 3.0, "original": 64}}}, True),
    Case("rotary", {"scaling": {"name": "longrope", "args": {"long": (2.0, 3.0), "original": 8}}}, True, length=20),
    Case("rotary", {"base": 50.0, "scaling": {"name": "llama3", "args": {"factor": 8.0, "original": 16}}}, True),
    Case("rotary", {"base": 50.0, "scaling": {"name": "proportional", "args": {"proportion": 0.5}}}, relative=True),
    Case("alibi", {}, relative=True),
    Case("alibi", {"max": 5.0, "multiplier": 0.5}, relative=True),
    Case("alibi", {"max": 5.0, "multiplier": 3.0, "rounding": "bfloat16"}, relative=False),
    Case("t5_bias", {"buckets": 6, "max_distance": 9}, relative=True),
    Case("randomized", {"inner": {"name": "rotary", "args": {"base": 50.0}}, "max_position": 40}, relative=True),
    Case("randomized", {"inner": {"name": "learned", "args": {"size": 40}}, "max_position": 40}, relative=False),
    Case("temperature", {"inner": "rotary", "rate": 0.5, "step": 3}, relative=False),
    Case("relative_skew", {"distances": 7}, relative=True),
    Case("cope", {"positions": 5}, relative=True, counts=True),
    Case("forgetting", {}, relative=True, counts=True),
    Case("forgetting", {"inner": {"name": "rotary", "args": {"base": 50.0}}}, relative=True, counts=True),
    Case("self_extend", {"inner": {"name": "rotary", "args": {"base": 50.0}}, "window": 4, "group": 3}, relative=False),
    Case("lm_infinite", {"local": 4, "sinks": 2, "limit": 5}, relative=True),
    Case("lm_infinite", {"inner": "alibi", "local": 4, "sinks": 2, "limit": 5}, relative=True),
    Case("streaming", {"inner": {"name": "rotary", "args": {"base": 50.0}}, "sinks": 2, "window": 4}, relative=False),
    Case("streaming", {"sinks": 0}, relative=True),
    Case("abacus", {"digit_ids": (2, 3, 5, 7, 8, 11), "size": 30, "max_offset": 9}, relative=True, counts=True),
    Case("abacus", {"inner": {"name": "rotary", "args": {"base": 50.0}}, "max_offset": 5}, relative=True, counts=True),
    Case("two_views", {}, relative=False),
    Case("rotary", {"base": 50.0, "scaling": {"name": "ntk", "args": {"factor": 3.0}}}, relative=True),
    Case("rotary", {"base": 50.0, "scaling": {"name": "power", "args": {"exponent": 0.3, "inner": LINEAR}}}, True),
    Case("rotary", {"base": 50.0, "scaling": {"name": "truncated", "args": {"original": 9}}}, relative=True),
    Case("rotary", {"base": 9.0, "scaling": {"name": "clex", "args": {"original": 8, "step": 0.3}}}, True, length=20),
    Case("kerple", {}, relative=True),
    Case("kerple", {"kernel": "power"}, relative=True),
    Case("fire", {"hidden": 6, "length": 8.0}, relative=False),
    Case("sandwich", {"width": 6, "base": 50.0}, relative=True),
    Case("xpos", {"base": 50.0, "scale_base": 16.0}, relative=True),
    Case("log_n", {"inner": {"name": "learned", "args": {"size": 40, "std": 0.5}}, "original": 4}, relative=False),
    Case("log_n", {"inner": "alibi", "original": 4, "least": 0.0, "count": "length"}, relative=True, length=20),
    Case("ssmax", {"inner": "kerple"}, relative=False),
    Case("temp_scale", {"inner": {"name": "fire", "args": {"length": 4.0}}, "tau": 0.6}, relative=False),
    Case("temp_scale", {"inner": CLEX, "factor": 4.0}, relative=True, length=20),
]


def over(cases: Any) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.name}-{len(case.args)}")


every = over(CASES)
FIRST = {case.name: case for case in reversed(CASES)}

LENGTH, HIGHEST = 12, 40  # of the rows below; of the positions that the cases can represent
# A whole row, padding on the left, padding in mid-stream (a short prompt that decoding then continues), packed rows:
# first with plain positions, then with random rising ones.
RAGGED = [[1] * 12, [0] * 4 + [1] * 8, [1] * 5 + [0] * 3 + [1] * 4, [1] * 3 + [2] * 5 + [0] + [3] * 3]
SEGMENTS = np.asarray(RAGGED * 2, np.int32)
REAL, PLAIN = SEGMENTS != 0, count_positions(SEGMENTS)
DRAWS = np.random.default_rng(3)
RISING = np.asarray([np.sort(DRAWS.choice(HIGHEST, LENGTH, replace=False)) for _ in SEGMENTS], np.int32)
POSITIONS = np.concatenate((PLAIN[:4], RISING[4:]))
TOKENS = tokens_of(*SEGMENTS.shape)
OTHERS = (TOKENS + 1) % VOCABULARY


def make_spec(case: Case, **mixer: Any):
    """One attention layer with grouped queries and nothing else, so that a law compiles fast."""
    encoding = make("position", {"name": case.name, "args": case.args})
    return tiny({"position": encoding, **mixer}, {"ffn": None}, repeats=1)


@functools.cache
def _model(index: int):
    spec = make_spec(CASES[index])
    return spec, decoder.unstack(params_of(spec)), caller(spec, CASES[index].length)


def model(case: Case):
    """The spec, its parameters and the jitted call that all laws share."""
    return _model(CASES.index(case))


def logits(case: Case, tokens=TOKENS, segment_ids=SEGMENTS, positions=POSITIONS) -> np.ndarray:
    _, params, call = model(case)
    out = np.asarray(call(params, tokens, segment_ids, positions)[0])
    assert np.isfinite(out).all()
    return out


def test_the_list_has_every_registered_encoding():
    assert {case.name for case in CASES} >= set(position.METHODS)


@every
def test_builds_describes_and_counts(case):
    spec, params, _ = model(case)
    encoding = spec.layers[0].pattern[0].mixer.position
    assert from_dict(type(encoding), to_dict(encoding)) == encoding
    size = sum(array.size for array in jax.tree.leaves(params))
    assert f"parameters: {size:,}" in jaxlm.describe(jaxlm.LanguageModel(spec))
    with pytest.raises(ConfigError, match="no_such_field") as caught:
        make("position", {"name": case.name, "args": {"no_such_field": 1}})
    assert "\n" not in str(caught.value)


def runs_as_pieces(case: Case, cache: Any) -> None:
    """On rows that are whole, padded left, padded in mid-stream and packed."""
    spec, params, call = model(case)
    full = logits(case)
    for pieces in [(4, 1, 1, 1, 1, 4), (1,) * LENGTH]:
        parts = stream(spec, call, params, TOKENS, pieces, SEGMENTS, POSITIONS, cache)
        assert np.isfinite(parts).all()
        close(parts[REAL], full[REAL])


@every
def test_full_pass_is_pieces_is_single_steps(case):
    runs_as_pieces(case, "full")


def keeps(case: Case) -> bool:
    """Whether the default cache keeps rotated keys, which makes plain ones another form."""
    return make("position", {"name": case.name, "args": case.args}).pre_rotate


@over(
    [case if case is FIRST[case.name] else pytest.param(case, marks=pytest.mark.slow) for case in CASES if keeps(case)]
)
def test_so_it_is_with_the_other_form_of_the_cache(case):
    runs_as_pieces(case, {"name": "full", "args": {"rotated": False}})


@every
def test_a_document_reads_alike_in_any_row(case):
    """Alone at the start of a row, with the same positions, it gives the logits it has in the padded or packed row."""
    inside = [(row, SEGMENTS[row] == i) for row in range(len(RAGGED)) for i in np.unique(SEGMENTS[row]) if i]
    alone = [np.zeros_like(SEGMENTS) for _ in range(3)]
    for n, (row, where) in enumerate(inside):
        for out, source in zip(alone, (TOKENS, np.ones_like(TOKENS), POSITIONS), strict=True):
            out[n, : where.sum()] = source[row][where]
    packed, single = logits(case), logits(case, *alone)
    for n, (row, where) in enumerate(inside):
        close(packed[row][where], single[n, : where.sum()])


@every
def test_the_future_and_other_documents_are_unseen(case):
    before = logits(case)
    after = logits(case, np.where(np.arange(LENGTH) < 7, TOKENS, OTHERS))
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    second = SEGMENTS == 2
    after = logits(case, np.where(second, OTHERS, TOKENS))
    np.testing.assert_array_equal(after[~second], before[~second])
    assert np.abs(after[second] - before[second]).max() > 1e-2
    after = logits(case, np.where(REAL, TOKENS, OTHERS))
    np.testing.assert_array_equal(after[REAL], before[REAL])


@every
def test_shifted_positions(case):
    here, there = logits(case, positions=PLAIN)[REAL], logits(case, positions=PLAIN + 17)[REAL]
    if case.relative:
        close(there, here, 3e-5)
    else:
        assert np.abs(there - here).max() > 1e-2


@pytest.mark.parametrize("case", [case for case in CASES if not case.counts], ids=lambda case: case.name)
def test_the_order_of_slots_means_nothing(case):
    """Tokens carry their positions: shuffled together, over the row or within pieces, they give the shuffled logits."""
    spec, params, call = model(case)
    ones, shuffle = np.ones_like(SEGMENTS), np.random.default_rng(4).permutation
    ordered = logits(case, TOKENS, ones, RISING)
    order = shuffle(LENGTH)
    close(logits(case, TOKENS[:, order], ones, RISING[:, order]), ordered[:, order])
    order = np.concatenate([start + shuffle(4) for start in (0, 4, 8)])
    close(stream(spec, call, params, TOKENS[:, order], (4, 4, 4), ones, RISING[:, order]), ordered[:, order])


def learns(case: Case) -> bool:
    return bool(decoder.param_specs(make_spec(case)).get("position"))


@over(
    [case if case is FIRST[case.name] or learns(case) else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_gradients_equal_the_reference(case):
    """Of every parameter, through rows that hold padding (whose queries see no key)."""

    def gradients(implementation: str):
        spec = make_spec(case, implementation=implementation)

        def loss(params):
            out = decoder.forward(spec, params, TOKENS, segment_ids=SEGMENTS, positions=POSITIONS)
            return jnp.sum(jnp.sin(out.logits) * REAL[..., None])

        # The suite's hurried programs round more: through CLEX's equation by 3e-5.
        return jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 1})(model(case)[1])

    fast, slow = gradients("xla"), gradients("reference")
    close(fast, slow, 2e-5)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(slow.get("position", {})))


@every
def test_beyond_what_it_can_represent(case):
    """A bounded encoding refuses a longer row before anything runs; any other takes large positions."""
    spec, params, _ = model(case)
    limit = decoder.max_positions(spec)
    if limit is None:
        logits(case, positions=PLAIN + 100_000)
        return
    long, far = np.zeros((1, limit + 1), np.int32), jnp.full((1, 1), limit)
    calls = [
        lambda: decoder.forward(spec, params, long),
        lambda: decoder.forward(spec, params, long[:, :1], positions=far[0]),
        lambda: jax.jit(lambda p: decoder.forward(spec, p, long[:, :1], positions=far).logits)(params),
        lambda: jaxlm.init_state(jaxlm.LanguageModel(spec), 1, limit + 1),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=str(limit)) as caught:
            call()
        assert "\n" not in str(caught.value)
