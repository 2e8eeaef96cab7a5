"""Laws of every registered mixer, in a whole model, none of them named below the list."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import dist, mixer
from jaxlm.core import registry
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import map_specs
from jaxlm.core.types import Context
from jaxlm.mixer.recurrent import Recurrent
from jaxlm.model import decoder
from jaxlm.model.describe import parameter_count
from jaxlm.model.spec import Block, Group, ModelSpec
from tests.tiny import VOCABULARY, caller, close, draw_params, layers_of, stream, tokens_of


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the list: a registered name, and arguments that are small and not the defaults."""

    name: str
    args: dict[str, Any]


ROTARY = {"name": "rotary", "args": {"base": 50.0, "pairing": "interleaved"}}
LATENT = {"heads": 4, "kv_rank": 6, "nope_dim": 5, "rope_dim": 4, "value_dim": 3, "position": ROTARY}
PAIR = {
    "name": "parallel",
    "args": {
        "first": {"name": "linear_attention", "args": {"heads": 4}},
        "second": {"name": "attention", "args": {"heads": 2, "position": {"name": "t5_bias", "args": {"buckets": 6}}}},
    },
}
WIDE = {"name": "attention", "args": {"heads": 4, "kv_heads": 2, "head_dim": 6, "position": ROTARY}}
ADAPTED = {"name": "glu", "args": {"hidden": 12, "adapter": 2}}

CASES = [
    Case("additive_attention", {"heads": 2, "head_dim": 5, "block": 4, "position": "alibi"}),
    Case("additive_attention", {"heads": 4, "kv_heads": 2, "mask": {"name": "window", "args": {"size": 4}}}),
    Case("attention", {"heads": 4, "kv_heads": 2, "sinks": True, "qk_norm": "rms", "qk_norm_span": "heads"}),
    Case("attention", {"heads": 4, "kv_heads": 2, "qk_norm": "rms", "qk_norm_rotated": True, "qkv_clip": 1.5}),
    Case("attention", {"heads": 4, "softmax1": True, "soft_cap": 3.0}),
    Case("attention", {"heads": 4, "mask": {"name": "chunked", "args": {"size": 3}}, "qkv_bias": True}),
    Case("attention", {"heads": 4, "kv_heads": 2, "out_gate": True, "qkv_bias": True, "position": "alibi"}),
    # Without a bias of the keys: it would add the same to all logits, and so have no gradient.
    Case(
        "attention",
        {"heads": 4, "kv_heads": 1, "qk_norm": {"name": "layer", "args": {"bias": False}}, "qk_norm_span": "all"},
    ),
    Case("based", {"heads": 4, "features": 3, "eps": 1e-3, "chunk": 4}),
    Case("big_bird", {"heads": 4, "kv_heads": 2, "block": 1, "random": 1, "position": ROTARY}),
    Case("big_bird", {"heads": 4, "block": 1, "random": 1, "choice": "first", "soft_cap": 3.0, "qkv_bias": True}),
    Case("delta_net", {"heads": 4, "conv": 2, "chunk": 4}),
    Case("delta_net", {"heads": 4, "key_width": 3, "conv": 1, "allow_negative": True}),
    Case("gated_delta_net", {"heads": 4, "key_heads": 2, "key_width": 3, "chunk": 4}),
    Case("gated_delta_net", {"heads": 4, "conv": 1, "allow_negative": True, "eps": 1e-4}),
    Case("gla", {"heads": 4, "rank": 3, "temperature": 2.0, "chunk": 4}),
    Case("gla", {"heads": 4, "key_heads": 2, "conv": 3, "value_width": 3}),
    Case("kda", {"heads": 4, "key_width": 3, "rank": 2, "chunk": 4}),
    Case("kda", {"heads": 4, "conv": 1, "allow_negative": True, "value_width": 3}),
    Case("hyena", {"max_length": 12, "hidden": 6, "features": 5, "layers": 2}),
    Case("hyena", {"max_length": 4, "hidden": 8, "conv": 2}),
    Case("landmark", {"heads": 4, "kv_heads": 2, "period": 3, "position": ROTARY}),
    Case("landmark", {"heads": 4, "period": 2, "qk_norm": "rms", "qk_norm_rotated": True, "soft_cap": 3.0}),
    Case("linear_attention", {"heads": 4, "chunk": 4}),
    Case("linear_attention", {"heads": 2, "chunk": 64, "features": "identity", "normalise": False}),
    Case(
        "longformer",
        {
            "heads": 4,
            "kv_heads": 2,
            "mask": {"name": "window", "args": {"size": 2, "ahead": 1}},
            "global_tokens": (0, 2),
        },
    ),
    Case("lstm", {"expand": 0.75, "forget_bias": 0.5}),
    Case("mamba", {"state": 3, "expand": 1.5, "dt_rank": 2, "chunk": 4}),
    Case("mamba", {"state": 4, "inner_norm": "rms", "norm_eps": 1e-3, "bias": True, "conv": 2, "conv_bias": False}),
    Case("mamba", {"state": 4, "inner_norm": "plain", "chunk": 1}),
    Case("mamba2", {"state": 6, "head_dim": 8, "step_range": (0.1, 1.0), "decay_range": (0.1, 1.0), "chunk": 4}),
    Case("mamba2", {"state": 4, "head_dim": 8, "groups": 2, "conv": 2, "conv_bias": False, "step_limit": (0.2, 0.9)}),
    Case("mamba2", {"state": 4, "head_dim": 4, "expand": 1, "conv": 1, "norm_eps": 1e-3}),
    Case("mamba2", {"state": 4, "head_dim": 4, "expand": 0.5, "norm": "before_gate", "bias": True, "groups": 2}),
    Case("mamba2", {"state": 4, "head_dim": 8, "norm": "none", "scales": (0.5, 2.0, 1.5, 0.7, 1.2)}),
    Case("mamba3", {"state": 6, "head_dim": 4, "expand": 1.0, "turned": 2 / 3, "chunk": 4}),
    Case("mamba3", {"state": 4, "head_dim": 8, "groups": 2, "turned": 0.0, "chunk": 64}),
    Case("mla", LATENT),
    Case("mla", {**LATENT, "q_rank": 7, "bias": True, "scale": 0.7, "mask": {"name": "window", "args": {"size": 4}}}),
    Case("mla", {**LATENT, "position": {"name": "t5_bias", "args": {"buckets": 6}}}),
    Case("mlstm", {"heads": 4, "key_expand": 1.0, "input_bias": 1.0, "gate_cap": 5.0, "norm_eps": 0.3, "chunk": 4}),
    Case("mlstm", {"heads": 4, "input_bias": 2.0, "forget_range": (0.0, 1.0), "norm_eps": 0.1}),
    Case("ntk_attention", {"heads": 4, "kv_heads": 2, "position": ROTARY, "qk_norm": "rms"}),
    Case("ntk_attention", {"heads": 4, "scale": 0.7, "mask": {"name": "window", "args": {"size": 4}}}),
    Case(
        "parallel",
        {
            "first": {"name": "mamba2", "args": {"state": 4, "head_dim": 8, "chunk": 4}},
            "second": {"name": "attention", "args": {"heads": 4, "kv_heads": 2, "position": ROTARY}},
            "in_scales": (0.5, 2.0),
            "out_scales": (1.5, 0.7),
        },
    ),
    Case("parallel", {"first": {"name": "attention", "args": {"heads": 4, "position": "alibi"}}, "second": PAIR}),
    Case("path", {"heads": 4, "kv_heads": 2, "rank": 3, "block": 2, "gate": "logits", "soft_cap": 3.0}),
    Case("path", {"heads": 4, "rank": 0, "block": 4, "conv": 4, "gate": "products", "qk_norm": "rms"}),
    Case("path", {"heads": 4, "conv": 1, "position": {"name": "learned", "args": {"size": 20}}}),
    Case("retnet", {"heads": 4, "value_expand": 1, "base": 50.0, "pairing": "half", "chunk": 4}),
    Case("retnet", {"heads": 4, "base": 0.0}),
    Case("rg_lru", {"width": 24, "heads": 4, "conv": 2, "chunk": 4}),
    Case("rg_lru", {"heads": 2, "decay_range": (0.5, 0.6)}),
    Case("rwkv4", {"width": 24, "chunk": 4}),
    Case("rwkv_channel", {"hidden": 24}),
    Case("s4", {"state": 6, "copies": 4, "chunk": 4}),
    Case("s4", {"state": 4, "bidirectional": True}),
    Case("s4d", {"state": 6, "copies": 4, "chunk": 4}),
    Case("s4d", {"state": 4, "init": "real", "rule": "bilinear"}),
    Case("s4d", {"state": 4, "init": "inv", "bidirectional": True}),
    Case("s5", {"state": 8, "blocks": 2, "chunk": 4}),
    Case("s5", {"state": 6, "rule": "bilinear", "step_range": (0.1, 1.0)}),
    Case("s5", {"state": 4, "bidirectional": True, "chunk": 4}),
    Case("simple_gla", {"heads": 4, "key_expand": 0.75, "tau": 2.0, "chunk": 4}),
    Case("rwkv6", {"heads": 4, "shift_rank": 3, "decay_rank": 2, "chunk": 4}),
    # Its default eps is for heads of 64: a norm over 4 numbers that happen to be near each other magnifies rounding.
    # One device and eight then are 1e-5 and 2.5e-5 from float64 in the gradient of `rate`, but 2e-7 apart in float64.
    Case("rwkv7", {"heads": 4, "eps": 0.01, "decay_rank": 2, "rate_rank": 3, "gate_rank": 5, "chunk": 4}),
    Case("ponet", {"heads": 4, "segment": 2, "window": 2}),
    Case("ponet", {"heads": 2, "segment": 3, "window": 3, "form": "bidirectional"}),
    Case("lssa", {"heads": 4, "kv_heads": 2, "position": ROTARY, "block": 4, "soft_cap": 3.0}),
    Case(
        "zamba",
        {"attention": {**WIDE, "args": {**WIDE["args"], "adapter": 3}}, "mixer": PAIR, "ffn": ADAPTED, "share": "a"},
    ),
    Case("zamba", {"attention": WIDE, "mixer": {"name": "mamba2", "args": {"state": 4, "head_dim": 8}}, "ffn": "mlp"}),
    Case("lssar", {"heads": 4, "position": "alibi", "mask": {"name": "window", "args": {"size": 4}}, "power": 3.0}),
]


def over(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.name}-{len(case.args)}")


def costly_over(cases: list[Case], *quick: str) -> Any:
    """The same, but in the default suite is only the first case of each name, or of the ``quick`` ones: laws that
    compile gradients, or for eight devices."""
    first = {case.name: case for case in reversed(cases)}
    assert set(quick) <= set(first)
    first = {name: case for name, case in first.items() if not quick or name in quick}
    marked: list[Any] = [x if x is first.get(x.name) else pytest.param(x, marks=pytest.mark.slow) for x in cases]
    return over(marked)


def flows(case: Case) -> bool:
    """Whether the mixer takes tokens as they come, which its class and mask say."""
    method = make("mixer", {"name": case.name, "args": case.args})
    return method.streaming and method.causal


def has_a_reference(case: Case) -> bool:
    return "implementation" in {field.name for field in dataclasses.fields(registry.get("mixer", case.name))}


def is_recurrent(case: Case) -> bool:
    return issubclass(registry.get("mixer", case.name), Recurrent)


every, streaming = over(CASES), over([case for case in CASES if flows(case)])
RECURRENT = [case for case in CASES if is_recurrent(case) and flows(case)]
caching = over([case for case in CASES if flows(case) and not is_recurrent(case)])

LENGTH, WIDTH = 9, 16
# A whole row, padding on the left, padding in mid-stream, packed.
SEGMENTS = np.asarray([[1] * 9, [0] * 3 + [1] * 6, [1] * 4 + [0] * 2 + [1] * 3, [1] * 3 + [2] * 4 + [0, 3]], np.int32)
REAL = SEGMENTS != 0
TOKENS = tokens_of(*SEGMENTS.shape)
OTHERS = (TOKENS + 1) % VOCABULARY


def make_spec(case: Case, **more: Any) -> ModelSpec:
    """One layer of the mixer and nothing else, so that a law compiles fast."""
    method = make("mixer", {"name": case.name, "args": {**case.args, **more}})
    return ModelSpec(vocab_size=VOCABULARY, width=WIDTH, layers=(Group((Block(mixer=method, ffn=None),)),))


@functools.cache
def _model(index: int):
    spec = make_spec(CASES[index])
    return spec, layers_of(spec), caller(spec)


def model(case: Case):
    return _model(CASES.index(case))


def logits(case: Case, tokens=TOKENS, segment_ids=SEGMENTS) -> np.ndarray:
    _, params, call = model(case)
    out = np.asarray(call(params, tokens, segment_ids)[0])
    assert np.isfinite(out).all()
    return out


def test_the_list_has_every_registered_mixer():
    """But for those that read an encoder, whose laws are in tests/model/test_encoder_decoder.py."""
    alone = {name for name in mixer.METHODS if not getattr(registry.get("mixer", name), "reads_memory", False)}
    assert {case.name for case in CASES} >= alone


@every
def test_builds_describes_and_counts(case):
    spec, params, _ = model(case)
    method = spec.layers[0].pattern[0].mixer
    assert from_dict(type(method), to_dict(method)) == method
    size = sum(array.size for array in jax.tree.leaves(params))
    assert size == parameter_count(jaxlm.LanguageModel(spec))
    assert f"parameters: {size:,}" in jaxlm.describe(jaxlm.LanguageModel(spec))
    with pytest.raises(ConfigError, match="no_such_field") as caught:
        make("mixer", {"name": case.name, "args": {"no_such_field": 1}})
    assert "\n" not in str(caught.value)


def runs_as_pieces(case: Case, cache: Any) -> None:
    """On rows that are whole, padded left and in mid-stream, and packed. Each size of a piece is compiled, so there are
    two; that of 5 begins, or goes on from a state over a document's end and a chunk's."""
    spec, params, call = model(case)
    full = logits(case)
    for pieces in [(5, 1, 1, 1, 1), (1, 1, 5, 1, 1), (1,) * LENGTH]:
        close(stream(spec, call, params, TOKENS, pieces, SEGMENTS, cache=cache)[REAL], full[REAL])


@costly_over([case for case in CASES if flows(case)])
def test_full_pass_is_pieces_is_single_steps(case):
    runs_as_pieces(case, "full")


@costly_over([case for case in CASES if flows(case) and not is_recurrent(case)])
def test_so_it_is_with_the_other_form_of_the_cache(case):
    """A recurrent mixer's state has one form."""
    runs_as_pieces(case, {"name": "full", "args": {"rotated": False}})


@streaming
def test_the_future_is_unseen(case):
    after = logits(case, np.where(np.arange(LENGTH) < 5, TOKENS, OTHERS))
    np.testing.assert_array_equal(after[:, :5], logits(case)[:, :5])


@every
def test_padding_and_other_documents_are_unseen(case):
    before = logits(case)
    second = SEGMENTS == 2
    after = logits(case, np.where(second, OTHERS, TOKENS))
    np.testing.assert_array_equal(after[~second], before[~second])
    assert np.abs(after[second] - before[second]).max() > 1e-2
    after = logits(case, np.where(REAL, TOKENS, OTHERS))
    np.testing.assert_array_equal(after[REAL], before[REAL])


@costly_over([case for case in CASES if has_a_reference(case)])
def test_gradients_equal_the_reference(case):
    """Of every parameter, through rows that hold padding (whose queries see no key)."""

    def gradients(implementation: str):
        spec = make_spec(case, implementation=implementation)

        def loss(params):
            out = decoder.forward(spec, params, TOKENS, segment_ids=SEGMENTS)
            return jnp.sum(jnp.sin(out.logits) * REAL[..., None])

        return jax.jit(jax.grad(loss))(model(case)[1])

    fast, slow = gradients("xla"), gradients("reference")
    close(fast, slow, 2e-5)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(slow))


@costly_over(
    CASES, "attention", "gla", "delta_net", "lstm", "s4d", "mla", "landmark", "longformer", "rg_lru", "parallel"
)
def test_eight_devices_give_what_one_gives(case):
    """Output and gradients of the layer on data x tensor."""
    spec, params, _ = model(case)
    method = spec.layers[0].pattern[0].mixer
    mesh = dist.make_mesh(dist.Mesh(data=2, fsdp=1, tensor=4))
    specs = method.params(decoder.dims_of(spec))
    p, x = draw_params(specs), np.random.default_rng(0).standard_normal((*SEGMENTS.shape, WIDTH)).astype(np.float32)
    shared = params.get("position", {})

    def run(mesh, p, x):
        ctx = Context(
            positions=jnp.arange(LENGTH)[None], segment_ids=jnp.asarray(SEGMENTS), shared=shared, embedded=x[..., ::-1]
        )

        def loss(p, x):
            with dist.use_mesh(mesh):
                y = method(p, dist.constrain(x, ("batch", None, None)), ctx)[0]
            return (jnp.sin(y) * REAL[..., None]).sum(), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(p, x)

    placed = map_specs(lambda _, s: dist.sharding(mesh, s.axes, s.shape), specs)
    close(run(mesh, jax.device_put(p, placed), x), run(None, p, x))


@over([case for case in CASES if not flows(case)])
def test_what_looks_ahead_says_so(case):
    spec = model(case)[0]
    with pytest.raises(ConfigError, match=f"mixer '{case.name}' looks ahead: it has no state"):
        jaxlm.init_state(jaxlm.LanguageModel(spec), 1, LENGTH)
    after = logits(case, np.where(np.arange(LENGTH) < 5, TOKENS, OTHERS))
    assert np.abs(after - logits(case))[:, :5].max() > 1e-2


@costly_over(RECURRENT, "linear_attention", "gla", "delta_net", "lstm", "s4d", "mamba", "rg_lru", "rwkv6")
def test_gradients_go_through_states(case):
    """In two pieces, the second from the state after the first: as in one; and the initial state has gradients too."""
    spec, params, _ = model(case)

    def loss(params, memory, pieces):
        state = decoder.init_state(spec, len(TOKENS), LENGTH, make("cache", "full"))
        state["layers"] = tuple(dataclasses.replace(entry, memory=memory) for entry in state["layers"])
        total = 0.0
        for at in pieces:
            tokens, segments = jnp.asarray(TOKENS[:, at]), jnp.asarray(SEGMENTS[:, at])
            out = decoder.forward(spec, params, tokens, segment_ids=segments, state=state)
            total, state = total + jnp.sum(jnp.sin(out.logits) * REAL[:, at, None]), out.state
        return total

    shapes = spec.layers[0].pattern[0].mixer.memory(decoder.dims_of(spec))
    draw = np.random.default_rng(1).uniform
    memory = {name: jnp.asarray(draw(0.1, 0.5, (len(TOKENS), *s)), jnp.float32) for name, s in shapes.items()}
    one = jax.jit(jax.grad(functools.partial(loss, pieces=[slice(0, LENGTH)]), (0, 1)))(params, memory)
    two = jax.jit(jax.grad(functools.partial(loss, pieces=[slice(0, 5), slice(5, LENGTH)]), (0, 1)))(params, memory)
    close(one, two, 2e-5)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(one[1]))


@over(RECURRENT)
def test_a_state_of_another_batch_or_model_is_refused(case):
    spec, params, _ = model(case)
    own = decoder.init_state(spec, len(TOKENS), LENGTH, make("cache", "full"))
    for width, batch in ((WIDTH, len(TOKENS) + 1), (2 * WIDTH, len(TOKENS))):
        state = decoder.init_state(dataclasses.replace(spec, width=width), batch, LENGTH, make("cache", "full"))
        if jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, own):
            continue  # a mixer whose sizes are its own: the state would do for either
        with pytest.raises(ConfigError, match="a state of another model or batch") as caught:
            decoder.forward(spec, params, TOKENS, state=state)
        assert "\n" not in str(caught.value)


@caching
def test_a_cache_that_overflows_reads_nan(case):
    spec, params, call = model(case)
    state = jaxlm.init_state(jaxlm.LanguageModel(spec), len(TOKENS), LENGTH - 1)
    out, state = call(params, TOKENS[:, :-1], None, None, state)
    assert np.isfinite(out).all()
    assert np.isnan(call(params, TOKENS[:, -1:], None, None, state)[0]).all()
