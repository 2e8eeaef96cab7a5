"""Laws of every registered patcher, in a whole model of two layers, none of them named below the list."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import dist
from jaxlm.core.config import make
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import flatten, map_specs
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder, patch_state, patcher
from jaxlm.model.decoder import Decoder
from jaxlm.model.describe import forward_flops, parameter_count
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from tests.tiny import caller, close, layers_of, mostly_slow, params_of, stream

WIDTH, LOCAL, VOCABULARY = 24, 16, 257


def layers(mask: Any) -> tuple[Group, ...]:
    return (Group((Block(mixer=Attention(heads=2, mask=mask), ffn=None),)),)


WINDOW = layers({"name": "window", "args": {"size": 4}})
INSIDE, WITHIN = layers("causal"), layers("bidirectional")
CASES: dict[str, dict[str, Any]] = {
    "fixed_stride": {"stride": 3, "decoder": INSIDE},
    "space_byte": {"encoder": WINDOW, "decoder": WINDOW},
    "entropy": {
        "encoder": WINDOW,
        "decoder": WINDOW,
        "max_bytes": 3,
        "ngrams": (2, 3),
        "ngram_buckets": 16,
        "order": 2,
        "buckets": 16,
        "heads": 2,
        "threshold": 0.05,
    },
    "entropy of a model": {
        "encoder": WINDOW,
        "decoder": WINDOW,
        "max_bytes": 3,
        "ngrams": (2,),
        "ngram_buckets": 16,
        "heads": 2,
        "threshold": 5.073,
        "model": ModelSpec(vocab_size=VOCABULARY, width=8, layers=layers("causal")),
    },
    "routing": {"encoder": WINDOW, "decoder": WINDOW, "ratio": 2.0, "ratio_weight": 0.5},
    "word_pooled": {"encoder": WITHIN, "decoder": INSIDE, "max_bytes": 4, "pooled": 2, "heads": 2},
    "hierarchical": {"encoder": WITHIN, "decoder": INSIDE, "max_bytes": 4},
}
NEVER_TRAINED = "patcher/entropies"

every = pytest.mark.parametrize("name", CASES)
costly = pytest.mark.parametrize("name", mostly_slow(CASES, "hierarchical"))

# A whole row, padding on the left, padding in mid-stream, packed.
LENGTH = 12
SEGMENTS = np.asarray([[1] * 12, [0] * 3 + [1] * 9, [1] * 4 + [0] * 2 + [1] * 6, [1] * 4 + [2] * 7 + [0]], np.int32)
REAL = SEGMENTS != 0
LETTERS = np.asarray([*b"abc7 . \n\xc3\xa9", 256], np.int32)
TOKENS = np.random.default_rng(1).choice(
    LETTERS, SEGMENTS.shape, p=[0.14, 0.14, 0.14, 0.1, 0.12, 0.06, 0.12, 0.04] + [0.06, 0.04, 0.04]
)
OTHERS = np.random.default_rng(2).choice(LETTERS, SEGMENTS.shape)


def spec_of(name: str, **more: Any) -> ModelSpec:
    args = {"width": LOCAL, "patches_per_byte": 1.0, **CASES[name], **more}
    return ModelSpec(
        vocab_size=VOCABULARY, width=WIDTH, layers=INSIDE, patcher={"name": method(name), "args": args}, head_bias=True
    )


def method(name: str) -> str:
    return name.partition(" of ")[0]


@functools.cache
def model(name: str) -> tuple[ModelSpec, Any, Any]:
    spec = spec_of(name)
    return spec, layers_of(spec), caller(spec)


def logits(name: str, tokens: Any = TOKENS, segments: Any = SEGMENTS) -> np.ndarray:
    _, params, call = model(name)
    out = np.asarray(call(params, tokens, segments)[0])
    assert np.isfinite(out[segments != 0]).all()
    return out


def test_the_list_has_every_registered_patcher() -> None:
    assert {method(name) for name in CASES} == set(patcher.METHODS)


@every
def test_survives_json_describes_and_counts(name: str) -> None:
    spec, params, _ = model(name)
    assert ModelSpec.from_json(spec.to_json()) == spec
    lm = jaxlm.LanguageModel(spec)
    size = sum(array.size for array in jax.tree.leaves(params))
    assert size == parameter_count(lm)
    assert f"parameters: {size:,}" in jaxlm.describe(lm, 64)
    room = 0.5 if name != "fixed_stride" else 1.0
    assert 0 < forward_flops(spec_of(name, patches_per_byte=room), 64) <= forward_flops(spec, 64)


@every
def test_full_pass_is_pieces_is_single_steps(name: str) -> None:
    """On rows that are whole, padded left and in mid-stream, and packed; and patches differ in length there."""
    spec, params, call = model(name)
    full = logits(name)
    for pieces in [(5, 1, 1, 5), (1,) * LENGTH]:
        close(stream(spec, call, params, TOKENS, pieces, SEGMENTS)[REAL], full[REAL])


@every
def test_the_future_is_unseen(name: str) -> None:
    before = logits(name)
    for cut in (3, 7):
        after = logits(name, np.where(np.arange(LENGTH) < cut, TOKENS, OTHERS))
        np.testing.assert_array_equal(after[:, :cut][REAL[:, :cut]], before[:, :cut][REAL[:, :cut]])
    assert np.abs(after - before)[REAL].max() > 1e-2


@every
def test_padding_and_other_documents_are_unseen(name: str) -> None:
    before, second = logits(name), SEGMENTS == 2
    after = logits(name, np.where(SEGMENTS == 1, OTHERS, TOKENS))
    close(after[second], before[second])  # not bit for bit: patches before it take more slots, or fewer
    after = logits(name, np.where(REAL, TOKENS, OTHERS))
    np.testing.assert_array_equal(after[REAL], before[REAL])
    # The row with padding in mid-stream is the row without it; the second text is a text of its own.
    for row, ids in ((2, 1), (3, 2)):
        real = SEGMENTS[row] == ids
        tokens, segments = np.zeros_like(TOKENS), np.zeros_like(SEGMENTS)
        tokens[0, : real.sum()], segments[0, : real.sum()] = TOKENS[row, real], 1
        close(logits(name, tokens, segments)[0, : real.sum()], before[row, real])


@costly
def test_gradients_reach_every_parameter(name: str) -> None:
    """Of the training loss, which has what the patcher adds; through `NextToken`, which knows nothing of it."""
    spec = model(name)[0]
    batch = {"tokens": TOKENS, "targets": OTHERS, "weights": REAL.astype(np.float32), "segment_ids": SEGMENTS}

    def loss(params: Any) -> Any:
        return NextToken().loss(Decoder(spec), params, batch, jax.random.key(0))

    (total, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params_of(spec))
    assert np.isfinite(total) and metrics["patch_overflow"][0] == 0
    assert 1.2 < metrics["bytes_per_patch"][0] / metrics["bytes_per_patch"][1] < 6  # so there is something to test
    for path, leaf in flatten(gradient):
        assert np.isfinite(leaf).all(), path
        assert (np.abs(leaf).max() > 1e-5) != path.startswith(NEVER_TRAINED), path


@costly
def test_greedy_text_is_the_argmax_of_full_passes(name: str) -> None:
    """Prompts of several lengths, and the caches of the model's layers are as long as there may be patches."""
    spec, params, _ = model(name)
    prompt, lengths, new = TOKENS[:, :6], np.asarray([6, 2, 5, 1]), 7
    text = np.asarray(jaxlm.generate(jaxlm.LanguageModel(spec), params, prompt, new, prompt_lengths=lengths))
    rows, ids = np.zeros_like(TOKENS), np.zeros_like(SEGMENTS)
    for i, n in enumerate(lengths):
        rows[i, : n + new - 1], ids[i, : n + new - 1] = [*prompt[i, :n], *text[i, :-1]], 1
    out = logits(name, rows, ids)
    for i, n in enumerate(lengths):
        np.testing.assert_array_equal(out[i, n - 1 : n - 1 + new].argmax(-1), text[i])


def test_layers_of_several_kinds_of_state() -> None:
    """Of a hybrid, some rows begin a patch where others do not: a recurrence and a cache go on as in a full pass."""
    second = {"name": "mamba2", "args": {"state": 4, "head_dim": 8, "chunk": 4}}
    mixer = {"name": "parallel", "args": {"first": {"name": "attention", "args": {"heads": 2}}, "second": second}}
    spec = dataclasses.replace(spec_of("space_byte"), layers=(Group((Block(mixer=mixer, ffn=None),)),))
    params, call = layers_of(spec), caller(spec)
    full = np.asarray(call(params, TOKENS, SEGMENTS)[0])
    close(stream(spec, call, params, TOKENS, (5, 1, 1, 5), SEGMENTS)[REAL], full[REAL])


@costly
def test_eight_devices_give_what_one_gives(name: str) -> None:
    spec = model(name)[0]
    params = params_of(spec)
    mesh = dist.make_mesh(dist.Mesh(data=2, fsdp=2, tensor=2))

    def run(mesh: Any, params: Any, tokens: Any) -> Any:
        def loss(params: Any) -> Any:
            with dist.use_mesh(mesh):
                out = decoder.forward(spec, params, tokens, segment_ids=jnp.asarray(SEGMENTS))
            assert out.logits is not None
            return (jnp.sin(out.logits) * REAL[..., None]).sum(), out.logits * REAL[..., None]

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    placed = map_specs(lambda _, s: dist.sharding(mesh, s.full_axes, s.full_shape), decoder.param_specs(spec))
    tokens = jax.device_put(TOKENS, dist.sharding(mesh, ("batch", None), TOKENS.shape))
    close(run(mesh, jax.device_put(params, placed), tokens), run(None, params, TOKENS), 2e-5)


@every
def test_the_models_layers_rest_where_no_patch_is_complete(name: str) -> None:
    """A single step without an event in any row leaves no trace of weights that are not numbers, one with an event
    does; and their caches have a slot a patch."""
    spec, params, call = model(name)
    broken = {**params, "group_0": jax.tree.map(lambda x: x * jnp.nan, params["group_0"])}
    state = decoder.init_state(spec, len(TOKENS), LENGTH, make("cache", "full"))
    (cache,) = state["patches"].stacks["model"]["layers"]
    assert cache.k.shape[2] == spec.patcher.capacity(LENGTH) + 1
    seen = set()
    for at in range(LENGTH):
        token, real = np.tile(TOKENS[:1, at : at + 1], (4, 1)), np.ones((4, 1), np.int32)
        _, tried = call(broken, token, real, None, state)
        used = state["patches"].used
        _, state = call(params, token, real, None, state)
        event = bool((state["patches"].used > used).any())
        assert np.isfinite(tried["patches"].stacks["model"]["layers"][0].k).all() != event
        seen.add(event)
    assert seen == {True, False}


@pytest.mark.parametrize("name", mostly_slow((x for x in CASES if x != "fixed_stride"), "hierarchical"))
def test_patches_without_room_are_counted(name: str) -> None:
    """Eagerly an error with the count; within a jit, the bytes before stand, those after go on, and steps do alike.

    Of all but ``fixed_stride``, which has room for all.
    """
    spec, params, _ = model(name)
    longest = CASES[name].get("max_bytes", 5)
    tight = spec_of(name, patches_per_byte=1 / longest, **({"ratio": 5.0} if name == "routing" else {}))
    tokens = np.broadcast_to(np.asarray([*b"a b. c d.\nef"], np.int32), TOKENS.shape)  # many patches by any rule
    free = jax.jit(lambda p, t: decoder.forward(spec, p, t))(params, tokens)
    out = jax.jit(lambda p, t: decoder.forward(tight, p, t))(params, tokens)
    rooms = tight.patcher.capacity(LENGTH)
    assert free.aux["patch_overflow"] == 0
    patches = int(round(len(tokens) * LENGTH / float(free.aux["bytes_per_patch"])))
    assert int(out.aux["patch_overflow"]) == patches - rooms * len(tokens) > 0
    assert np.isfinite(out.logits).all()
    np.testing.assert_allclose(out.logits[:, :2], free.logits[:, :2], atol=1e-5)
    close(stream(tight, caller(tight), params, tokens, (1,) * LENGTH), out.logits)
    with pytest.raises(ConfigError, match=f"{int(out.aux['patch_overflow'])} patches found no room") as caught:
        decoder.forward(tight, params, jnp.asarray(tokens))
    assert "\n" not in str(caught.value)
    state = decoder.init_state(tight, len(tokens), LENGTH, make("cache", "full"))
    _, state = caller(tight)(params, tokens, None, None, state)
    with pytest.raises(ConfigError, match="patches found no room"):
        patch_state.check_overflow(state)


@pytest.mark.parametrize("name", ["word_pooled", "hierarchical"])
def test_probabilities_of_all_continuations_sum_to_one(name: str) -> None:
    """Of all strings of 3 bytes over a small alphabet after a prompt: words end within them in every way."""
    spec = spec_of(name)
    spec = dataclasses.replace(spec, vocab_size=13)  # of which 9..12 are white space, the rest marks
    call, params = caller(spec), params_of(spec)
    tails = np.asarray(list(itertools.product(range(13), repeat=2)), np.int32)
    rows = np.concatenate([np.tile([[3, 10, 4]], (len(tails), 1)), tails], 1)
    given = np.asarray(jax.nn.log_softmax(call(params, rows)[0]), np.float64)
    chosen = np.take_along_axis(given[:, 2:4], tails[..., None], -1)[..., 0].sum(1)
    last = np.exp(given[:, 4]).sum(-1)
    np.testing.assert_allclose((np.exp(chosen) * last).sum(), 1, atol=1e-5)
    assert np.ptp(given[:, 2], axis=0).max() < 1e-5  # what is before the choice does not know of it


def test_bad_input() -> None:
    make_one = functools.partial(make, "patcher")
    for spec, match in [
        (lambda: dataclasses.replace(spec_of("routing"), vocab_size=32000), "a vocabulary of 32000 tokens"),
        (lambda: dataclasses.replace(spec_of("routing"), pooler=True), "ModelSpec.pooler: a model with a patcher"),
        (lambda: dataclasses.replace(spec_of("entropy"), edit="landmark"), "ModelSpec.edit: a model with a patcher"),
        (lambda: spec_of("hierarchical", max_bytes=0), "max_bytes: expected a positive integer, got 0"),
        (lambda: spec_of("hierarchical", max_bytes=4, patches_per_byte=0.1), "room for at least 0.25 a byte, got 0.1"),
        (lambda: spec_of("entropy", max_bytes=4, patches_per_byte=0.1), "room for at least 0.25 a byte, got 0.1"),
        (lambda: spec_of("entropy", rule="globl"), "did you mean 'global'"),
        (lambda: spec_of("entropy", ngrams=(0,)), "ngrams: expected positive sizes"),
        (lambda: spec_of("entropy", model=ModelSpec(vocab_size=5)), "expected that of the whole model, 257, got 5"),
        (lambda: spec_of("entropy", model=spec_of("routing")), "model.patcher: expected none"),
        (lambda: spec_of("entropy", heads=0), "heads: expected a positive integer, got 0"),
        (lambda: spec_of("space_byte", patches_per_byte=0.0), "above 0 and up to 1, got 0.0"),
        (lambda: spec_of("space_byte", width=0), "width: expected a positive integer, got 0"),
        (lambda: spec_of("space_byte", decoder=()), "decoder: expected at least one Group"),
        (lambda: spec_of("word_pooled", pooled=0), "pooled: expected a positive integer, got 0"),
        (lambda: spec_of("routing", ratio=1.0), "ratio: expected a mean length above 1 byte"),
        (lambda: spec_of("routing", ratio=4.0, patches_per_byte=0.2), "room for 0.25 a byte and more, got 0.2"),
        (lambda: spec_of("fixed_stride", stride=0), "stride: expected a positive integer, got 0"),
        (lambda: decoder.param_specs(spec_of("fixed_stride", stride=5)), "divisor of the model's width 24, got 5"),
        (lambda: decoder.param_specs(spec_of("entropy", heads=3)), "not divisible by 3 heads"),
        (lambda: make_one("space_bite"), "did you mean 'space_byte'"),
        (lambda: make_one({"name": "routing", "args": {"ratoi": 3.0}}), "ratoi"),
        (lambda: patcher_presets("nosuch"), "nosuch"),
    ]:
        with pytest.raises(ConfigError, match=match) as caught:
            spec()
        assert "\n" not in str(caught.value)


def patcher_presets(name: str) -> Any:
    from jaxlm.model.patcher.space_byte import SpaceByte

    return SpaceByte.preset(name)


def test_published_sizes_build() -> None:
    from jaxlm.core import registry

    for name in patcher.METHODS:
        cls: Any = registry.get("patcher", name)
        assert cls() == make("patcher", name)
        for preset in cls.presets:
            assert decoder.param_specs(ModelSpec(width=1536, patcher=cls.preset(preset), layers=INSIDE))


def test_what_a_call_does_not_take() -> None:
    spec, params, _ = model("space_byte")
    lm = jaxlm.LanguageModel(spec)
    state = jaxlm.init_state(lm, 2, LENGTH)
    calls = {
        "positions: a model with a patcher": {"positions": jnp.arange(LENGTH)},
        "length: a model with a patcher": {"length": 7},
        "state: a state of another model or batch": {"state": state},
    }
    for match, options in calls.items():
        with pytest.raises(ConfigError, match=match):
            decoder.forward(spec, params, jnp.asarray(TOKENS), **options)
    with pytest.raises(ConfigError, match="takes tokens"):
        decoder.forward(spec, params)
    with pytest.raises(ConfigError, match="keeps its own layers in cache 'full'"):
        jaxlm.init_state(jaxlm.LanguageModel(dataclasses.replace(spec, layers=WINDOW)), 2, LENGTH, "window_sink")
