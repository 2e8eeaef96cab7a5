"""Layers that share parameters by name: one array for all, everywhere that parameters are looked at."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import count, divide, flatten, initialize, unite
from jaxlm.dist import Mesh, make_mesh, param_shardings, use_mesh
from jaxlm.ffn.glu import Glu
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.describe import forward_flops, parameter_count
from jaxlm.model.layers import block_specs
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.train.checkpoint import Checkpointer
from tests.tiny import VOCABULARY, caller, close, params_of, stream, tokens_of

TOKENS = tokens_of(2, 9)
OWN = Block(mixer=Attention(heads=4, kv_heads=2), ffn=Mlp(hidden=24))
ONE = dataclasses.replace(OWN, share="one")
ADAPTED = Block(mixer=Attention(heads=4, kv_heads=2, adapter=3), ffn=Glu(hidden=24, adapter=2), share="two")


def model_of(*groups: Group) -> ModelSpec:
    return ModelSpec(vocab_size=VOCABULARY, width=16, layers=groups)


# Shared within a group and across groups, beside blocks of their own; a group that has nothing of its own; adapters.
SPECS = {
    "mixed": model_of(Group((ONE, OWN), 2), Group((ONE,))),
    "nothing_else": model_of(Group((ONE,), 3)),
    "adapters": model_of(Group((ADAPTED,), 2), Group((ONE, ADAPTED))),
}
every = pytest.mark.parametrize("name", SPECS)


def apart(spec: ModelSpec) -> ModelSpec:
    """The same model with nothing shared."""
    return dataclasses.replace(
        spec,
        layers=tuple(
            dataclasses.replace(g, pattern=tuple(dataclasses.replace(b, share="") for b in g.pattern))
            for g in spec.layers
        ),
    )


def copied(spec: ModelSpec, params):
    """Parameters of `apart(spec)`: each layer with a copy of what it shares."""
    dims, out = decoder.dims_of(spec), {name: tree for name, tree in params.items() if name != "shared"}
    for i, group in enumerate(spec.layers):
        stacked = jax.tree.map(lambda a, n=group.repeats: jnp.broadcast_to(a, (n, *a.shape)), params["shared"])
        own = params.get(f"group_{i}", {})
        out[f"group_{i}"] = {
            f"block_{j}": unite(block_specs(block, dims), own.get(f"block_{j}", {}), stacked)
            for j, block in enumerate(group.pattern)
        }
    return out


def loss(spec: ModelSpec, params) -> jax.Array:
    return jnp.sin(decoder.forward(spec, params, TOKENS).logits).sum()


@every
def test_gradients_are_the_sum_of_the_uses(name):
    """Value, and the gradient through the copies that a model of the same layers apart would have."""
    spec = SPECS[name]
    params = params_of(spec)
    assert "shared" in params and "shared" not in decoder.param_specs(apart(spec))
    ours = jax.jit(jax.value_and_grad(lambda p: loss(spec, p)))(params)
    theirs = jax.jit(jax.value_and_grad(lambda p: loss(apart(spec), copied(spec, p))))(params)
    close(ours, theirs, 2e-5)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(ours[1]["shared"]))
    uses = jax.jit(jax.grad(lambda p: loss(apart(spec), p)))(copied(spec, params))
    (path, one), *_ = flatten(ours[1]["shared"]["one"])
    found = [dict(flatten(uses[f"group_{i}"][f"block_{j}"]))[path].sum(0)
             for i, g in enumerate(spec.layers) for j, b in enumerate(g.pattern) if b.share == "one"]  # fmt: skip
    close(one, sum(found), 2e-5)


@every
def test_pieces_and_layers_taken_apart(name):
    spec = SPECS[name]
    params, call = params_of(spec), caller(spec)
    full = np.asarray(jax.jit(lambda p: decoder.forward(spec, p, TOKENS).logits)(params))
    close(stream(spec, call, decoder.unstack(params), TOKENS, (5, 1, 3)), full)
    close(stream(spec, call, params, TOKENS, (9,)), full)


@every
def test_counted_described_and_initialised_once(name):
    spec = SPECS[name]
    specs, model = decoder.param_specs(spec), jaxlm.LanguageModel(spec)
    params = initialize(specs, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert parameter_count(model) == size == count(specs) and f"parameters: {size:,}" in jaxlm.describe(model)
    whole, once = count(decoder.param_specs(apart(spec))), count(specs["shared"])
    repeated = sum(np.prod(leaf.shape) * leaf.uses for _, leaf in flatten(specs["shared"]))
    assert whole - size == repeated - once > 0
    assert forward_flops(spec, 9) == forward_flops(apart(spec), 9)  # each use is computed
    assert ModelSpec.from_json(spec.to_json()) == spec
    own, common = divide(block_specs(ADAPTED, decoder.dims_of(spec)))
    assert all("adapter" in path or path.endswith(("in_down", "in_up")) for path, _ in flatten(own))
    assert set(common) == {"two"} and set(own) == {"mixer", "ffn"}


def test_checkpoint_round_trip(tmp_path):
    for name, spec in SPECS.items():
        state = {"params": params_of(spec)}
        with Checkpointer(tmp_path / name) as checkpointer:
            checkpointer.save(1, state, {})
        with Checkpointer(tmp_path / name) as checkpointer:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            restored = checkpointer.restore(shapes)
        assert restored is not None and jax.tree.structure(restored.state) == jax.tree.structure(state)
        close(restored.state, state, 0)


def test_eight_devices_give_what_one_gives():
    """Placed by the axis rules, which read the same declaration."""
    spec, mesh = SPECS["adapters"], make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    params = params_of(spec)
    places = param_shardings(mesh, decoder.param_specs(spec))
    assert not places["shared"]["two"]["mixer"]["qkv"].is_fully_replicated
    with use_mesh(mesh):
        ours = jax.jit(jax.grad(lambda p: loss(spec, p)))(jax.device_put(params, places))
    close(ours, jax.jit(jax.grad(lambda p: loss(spec, p)))(params), 2e-5)


def test_what_cannot_be_shared():
    other = Block(mixer=Attention(heads=4), ffn=Mlp(hidden=24), share="one")
    with pytest.raises(ConfigError, match="layers that share 'one' differ in it: mixer/qkv") as caught:
        decoder.param_specs(model_of(Group((ONE, other))))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"Block\.share: expected a name without '/'"):
        Block(share="a/b")
