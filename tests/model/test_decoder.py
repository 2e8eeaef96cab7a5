"""Laws of the whole decoder: groups, scans, remat, ranges of layers, caches, dtypes, heads."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context
from jaxlm.model import decoder
from jaxlm.model.layers import apply_layers
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import REMAT, Block, Group
from jaxlm.model.state import advance
from tests.tiny import caller, close, count_positions, params_of, stream, tiny, tokens_of

TOKENS = tokens_of(3, 10)
SEGMENTS = np.asarray([[1] * 10, [0] * 3 + [1] * 7, [1] * 4 + [0] + [2] * 5], np.int32)
REAL = SEGMENTS != 0
ROTARY = {"position": {"name": "rotary", "args": {"base": 50.0}}}
# Everything that a layer may have at once.
RICH = {**ROTARY, "qk_norm": "rms", "qkv_bias": True, "out_bias": True, "soft_cap": 3.0}


@functools.cache
def rich():
    spec = tiny(RICH, {"norm": "layer"}, embed_multiplier=3.0, logit_multiplier=0.5)
    return spec, params_of(spec), caller(spec)


def logits(spec, params, tokens=TOKENS, **options):
    return jax.jit(lambda params: decoder.forward(spec, params, tokens, **options).logits)(params)


def layers_apart(params: dict, repeats: int) -> dict:
    """The parameters of one group of ``repeats`` as those of ``repeats`` groups of one."""
    apart = {f"group_{i}": jax.tree.map(lambda a, i=i: a[i : i + 1], params["group_0"]) for i in range(repeats)}
    return {**{name: value for name, value in params.items() if name != "group_0"}, **apart}


def test_scanned_is_unrolled_is_apart():
    """Numbers that differ per layer, too: one scanned group equals separate groups with each its own number."""
    numbers = {"0.mixer.position.base": (50.0, 3.0), "0.mixer.mask.size": (2, 7), "0.norm.offset": (0.0, 1.0)}
    mixer = {**ROTARY, "mask": "window"}
    spec = tiny(mixer)
    group = Group(spec.layers[0].pattern, 2, tuple(numbers.items()))
    spec = dataclasses.replace(spec, layers=(group,))
    params = params_of(spec)
    scanned = logits(spec, params)
    close(logits(spec, decoder.unstack(params)), scanned)
    apart = tuple(Group(group.blocks({path: values[i] for path, values in numbers.items()}), 1) for i in range(2))
    close(logits(dataclasses.replace(spec, layers=apart), layers_apart(params, 2)), scanned)
    swapped = Group(group.pattern, 2, tuple((path, values[::-1]) for path, values in numbers.items()))
    assert np.abs(logits(dataclasses.replace(spec, layers=(swapped,)), params) - scanned).max() > 1e-2


def test_patterns_run_in_order():
    """Groups of several blocks, of different kinds: the layers are the pattern, repeated, group after group."""
    wide, plain = tiny(ROTARY).layers[0].pattern[0], tiny(block={"ffn": None}).layers[0].pattern[0]
    spec = tiny(layers=(Group((wide, plain), 2), Group((plain,), 1)))
    params = params_of(spec)
    assert spec.depth == 5
    names = [(f"group_{i}", f"block_{j}", r) for i, j, r in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)]]
    single = {
        f"group_{n}": {"block_0": jax.tree.map(lambda a, r=r: a[r : r + 1], params[group][block])}
        for n, (group, block, r) in enumerate(names)
    }
    rest = {name: value for name, value in params.items() if not name.startswith("group")}
    flat = tuple(Group((block,), 1) for block in (wide, plain, wide, plain, plain))
    close(logits(dataclasses.replace(spec, layers=flat), rest | single), logits(spec, params))


def test_every_remat_policy_gives_the_same_gradient():
    params = params_of(tiny(ROTARY, {"ffn": None}))

    def gradient(remat: str):
        spec = tiny(ROTARY, {"ffn": None}, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sin(decoder.forward(spec, p, TOKENS).logits).sum()))(params)

    expected = gradient("none")
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    for remat in REMAT[1:]:
        close(gradient(remat), expected, 2e-6)


def test_full_pass_is_pieces_is_single_steps():
    """In several layers, with all their options, the model counting positions itself, with and without segments."""
    spec, params, call = rich()
    unstacked = decoder.unstack(params)
    full = np.asarray(call(params, TOKENS)[0])
    close(stream(spec, call, unstacked, TOKENS, (7, 1, 1, 1)), full)
    packed = np.asarray(call(params, TOKENS, SEGMENTS)[0])
    close(stream(spec, call, unstacked, TOKENS, (1,) * 10, SEGMENTS)[REAL], packed[REAL])
    # Stacked parameters serve a state as well, and the state keeps its structure.
    state = jaxlm.init_state(jaxlm.LanguageModel(spec), 3, 10)
    out, after = call(params, TOKENS[:, :7], None, None, state)
    close(out, full[:, :7])
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(after) == shapes(state)
    np.testing.assert_array_equal(after["position"], [7, 7, 7])


def test_plain_positions_count_across_padding_packing_and_pieces():
    rng = np.random.default_rng(0)
    documents = np.sort(rng.integers(1, 5, (20, 12)), axis=1)
    segments = np.where(rng.random((20, 12)) < 0.3, 0, documents).astype(np.int32)
    expected = count_positions(segments)
    np.testing.assert_array_equal(plain_positions(20, 12, jnp.asarray(segments)), expected)
    state = {"position": jnp.zeros(20, jnp.int32), "segment": jnp.zeros(20, jnp.int32)}

    @jax.jit
    def feed(piece, state):
        positions = plain_positions(*piece.shape, piece, state)
        return positions, advance(state, positions, piece, *piece.shape)

    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 12)]:
        positions, state = feed(segments[:, start:stop], state)
        np.testing.assert_array_equal(positions, expected[:, start:stop])
    np.testing.assert_array_equal(plain_positions(20, 3, None), [[0, 1, 2]])


def test_a_cache_that_overflows_reads_nan():
    """Rather than something plausible."""
    spec, params, call = rich()
    unstacked = decoder.unstack(params)
    state = decoder.init_state(spec, 3, 9, jaxlm.cache.full.Full())
    out, state = call(unstacked, TOKENS[:, :7], None, None, state)
    for n in (8, 9):
        out, state = call(unstacked, TOKENS[:, n - 1 : n], None, None, state)
        assert np.isfinite(out).all()
    assert np.isnan(call(unstacked, TOKENS[:, 9:], None, None, state)[0]).all()


def test_ranges_of_layers():
    spec, params, _ = rich()
    context = Context(positions=jnp.arange(10)[None])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 10, 16)), jnp.float32)
    run = lambda x, layers=None: apply_layers(spec, params, x, context, layers=layers)[0]
    whole, halves, none = jax.jit(lambda x: (run(x), run(run(x, (0, 1)), (1, 2)), run(x, (1, 1))))(x)
    close(halves, whole)
    np.testing.assert_array_equal(none, x)
    for layers in [(0, 3), (-1, 1), (2, 1)]:
        with pytest.raises(ConfigError, match=r"0\.\.2"):
            run(x, layers)


def test_embeddings_in_place_of_tokens_and_logits_in_pieces():
    spec, params, call = rich()
    model = jaxlm.LanguageModel(spec)
    expected = np.asarray(call(params, TOKENS)[0])
    x = params["embed"]["table"][TOKENS] * spec.embed_multiplier
    out = model.apply({"params": params}, inputs_embeds=x, logits=False)
    assert out.logits is None and out.state is None and out.hidden.shape == x.shape
    close(jaxlm.unembed(model, params, out.hidden), expected)
    pieces = [jaxlm.unembed(model, params, out.hidden[:, at : at + 1]) for at in range(10)]
    close(jnp.concatenate(pieces, 1), expected)
    for inputs in [{}, {"tokens": TOKENS, "inputs_embeds": x}]:
        with pytest.raises(ConfigError, match="either"):
            model.apply({"params": params}, **inputs)


def test_tokens_outside_the_vocabulary_read_nan():
    """And so does every later token of the row, but no other row."""
    spec, params, call = rich()
    for bad in (spec.vocab_size, -1):
        tokens = TOKENS.copy()
        tokens[1, 4] = bad
        out = np.asarray(call(params, tokens)[0])
        assert np.isfinite(out[[0, 2]]).all() and np.isnan(out[1, 4:]).all()


def test_head_multipliers_and_caps():
    spec = tiny(repeats=1)
    params = params_of(spec)
    hidden = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    close(decoder.unembed(spec, params, hidden), hidden @ kernel, 1e-6)
    capped = dataclasses.replace(spec, logit_multiplier=2.0, logit_soft_cap=1.5)
    close(decoder.unembed(capped, params, hidden), 1.5 * np.tanh(2.0 * (hidden @ kernel) / 1.5), 1e-6)
    tied = dataclasses.replace(spec, tied_head=True)
    assert "head" not in decoder.param_specs(tied) and "head" in decoder.param_specs(spec)
    close(decoder.unembed(tied, params, hidden), hidden @ np.asarray(params["embed"]["table"]).T, 1e-6)
    for one in (tied, capped):
        biased = dataclasses.replace(one, head_bias=True)
        bias = np.linspace(-1, 1, 13, dtype=np.float32)
        offset = {**params, "head": {**(params["head"] if one is capped else {}), "bias": bias}}
        assert params_of(biased).get("head", {}).keys() == offset["head"].keys()
        weight = kernel if one is capped else np.asarray(params["embed"]["table"], np.float64).T
        expected = hidden @ weight + bias
        close(
            decoder.unembed(biased, offset, hidden), 1.5 * np.tanh(expected / 0.75) if one is capped else expected, 1e-6
        )
    bare = dataclasses.replace(spec, norm=None)
    assert "final_norm" not in decoder.param_specs(bare)


@pytest.mark.parametrize("tied_head", [False, True])
def test_narrow_embeddings(tied_head):
    """A factorised table is the product of its factors, at both ends; every parameter is counted once."""
    narrow = tiny(ROTARY, embed_width=6, tied_head=tied_head)
    params = params_of(narrow)
    assert params["embed"]["table"].shape == (narrow.vocab_size, 6)
    kernel = params["embed"]["table"].T if tied_head else params["head"]["kernel"]
    wide = {
        **params,
        "embed": {"table": params["embed"]["table"] @ params["embed"]["up"]},
        "head": {"kernel": params["head"]["down"] @ kernel},
    }
    close(logits(narrow, params), logits(tiny(ROTARY), wide), 3e-6)
    size = sum(array.size for array in jax.tree.leaves(params))
    assert f"parameters: {size:,}" in jaxlm.describe(jaxlm.LanguageModel(narrow))
    with pytest.raises(ConfigError, match="embed_width"):
        tiny(ROTARY, embed_width=-1)


def test_a_norm_of_the_embeddings():
    """After their multiplier and the added positions: what comes in at the first layer is the norm's result."""
    position = {"name": "learned", "args": {"size": 10}}
    spec = tiny({"position": position}, embed_norm="layer", embed_multiplier=3.0, norm=None, repeats=1)
    params = params_of(spec)
    bare = dataclasses.replace(
        spec,
        layers=(
            Group(
                (Block(mixer=spec.layers[0].pattern[0].mixer, ffn=None),),
            ),
        ),
    )
    silent = params_of(bare)
    silent["group_0"]["block_0"]["mixer"]["out"] *= 0.0
    x = 3.0 * params["embed"]["table"][TOKENS] + params["position"]["learned"]["table"][:10]
    expected = spec.embed_norm(params["embed_norm"], x)
    close(decoder.forward(bare, silent, TOKENS).hidden, expected, 1e-6)


@pytest.mark.parametrize("dtype, least, most", [("bfloat16", 1e-4, 3e-2), ("float16", 1e-5, 4e-3)])
def test_low_precision_is_close_and_its_logits_are_float32(dtype, least, most):
    spec, params, call = rich()
    low = caller(dataclasses.replace(spec, dtype=dtype))
    expected, (out, _) = np.asarray(call(params, TOKENS)[0]), low(params, TOKENS)
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert least < error < most
    state = decoder.init_state(dataclasses.replace(spec, dtype=dtype), 3, 10, jaxlm.cache.full.Full())
    assert state["layers"][0].k.dtype == dtype
    stepped = low(decoder.unstack(params), TOKENS, None, None, state)[0]
    assert np.linalg.norm(stepped - expected) / np.linalg.norm(expected) < most


def test_initial_values_do_not_depend_on_shell_or_mesh():
    spec = tiny(ROTARY, {"ffn": None}, width=32, vocab_size=16)
    model = jaxlm.LanguageModel(spec)
    params = jaxlm.init(model, jax.random.key(0))
    linen = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS))["params"]
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(linen) == shapes(params)
    mesh = jaxlm.dist.make_mesh(jaxlm.dist.Mesh(data=2, fsdp=2, tensor=2))
    placed = jaxlm.init(model, jax.random.key(0), mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    assert not placed["head"]["kernel"].sharding.is_fully_replicated
    # The model is about as wide at the end as at the start, at its initial values.
    out = model.apply({"params": params}, TOKENS)
    assert 0.5 < float(jnp.std(out.logits)) < 2.0


def test_blocks_may_be_mixed_with_none():
    block = Block(mixer={"name": "attention", "args": {"heads": 2}}, ffn=None)
    specs = decoder.param_specs(tiny(layers=(Group((block,), 2),)))
    assert specs["group_0"]["block_0"].keys() == {"mixer", "mixer_norm"}
