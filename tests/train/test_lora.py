"""LoRA: shapes from the specs, nothing changed at the start, and only the adapters learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.params import ParamSpec, flatten, initialize, map_specs, ones
from jaxlm.train.lora import Lora
from jaxlm.train.optimizer import Optimizer

LAYERS, D, G, R, K = 3, 8, 2, 2, 4
SPECS = {
    "embed": ParamSpec((11, D), ("vocab", "embed"), fan_in=(1,)),
    "group_0": {
        "mixer": {
            "qkv": ParamSpec((D, G, R + 2, K), ("embed", "kv_groups", None, None), stack=LAYERS),
            "out": ParamSpec((G, R, K, D), ("kv_groups", None, None, "embed"), fan_in=(0, 1, 2), stack=LAYERS),
            "odd": ParamSpec((D, 3, 5), ("odd", "embed", None), fan_in=(1, 2)),  # fan-in not in front
            "norm": ParamSpec((D,), (None,), ones, decay=False, stack=LAYERS),
        },
    },
}


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: initialize(SPECS, key))(jax.random.key(0))


def test_factor_shapes_and_axes_come_from_the_specs():
    lora = Lora(rank=2, patterns=("*/mixer/*",))
    specs = lora.specs(SPECS)
    found = {path: (spec.full_shape, spec.full_axes) for path, spec in flatten(specs)}
    assert found == {
        "group_0/mixer/qkv/a": ((LAYERS, D, 2), ("layers", "embed", None)),
        "group_0/mixer/qkv/b": ((LAYERS, 2, G * (R + 2) * K), ("layers", None, "kv_groups")),
        "group_0/mixer/out/a": ((LAYERS, G * R * K, 2), ("layers", "kv_groups", None)),
        "group_0/mixer/out/b": ((LAYERS, 2, D), ("layers", None, "embed")),
        "group_0/mixer/odd/a": ((3 * 5, 2), ("embed", None)),
        "group_0/mixer/odd/b": ((2, D), (None, "odd")),
    }


def test_fresh_adapters_change_nothing(params):
    lora = Lora(patterns=("*",))
    adapters = jax.jit(lambda key: lora.init(key, SPECS))(jax.random.key(1))
    assert all(bool(jnp.all(leaf == 0)) == path.endswith("/b") for path, leaf in flatten(adapters))
    merged = jax.jit(lambda p, a: lora.merge(p, a, SPECS))(params, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_merged_matrices_do_what_base_and_adapter_do_together(params):
    """x through the merged matrix = x through the base + (alpha / rank) (x A) B, in numpy, with W in its own shape."""
    lora = Lora(rank=2, alpha=3.0, patterns=("*/qkv", "*/out", "*/odd", "embed"))
    draw = np.random.default_rng(0).normal
    adapters = map_specs(lambda _, spec: draw(size=spec.full_shape).astype(np.float32), lora.specs(SPECS))
    merged = jax.device_get(jax.jit(lambda p, a: lora.merge(p, a, SPECS))(params, adapters))
    base = jax.device_get(params)

    def check(whole, base, factors, equation, x_shape, columns):
        x = draw(size=x_shape)
        low_rank = x.reshape(columns) @ factors["a"] @ factors["b"]
        apart = np.einsum(equation, x, base) + 1.5 * low_rank.reshape(np.einsum(equation, x, base).shape)
        np.testing.assert_allclose(np.einsum(equation, x, whole), apart, rtol=1e-4, atol=1e-4)

    after, before, factors = (tree["group_0"]["mixer"] for tree in (merged, base, adapters))
    for name, equation, x_shape, columns in (
        ("qkv", "lbd,ldgrk->lbgrk", (LAYERS, 5, D), (LAYERS, 5, D)),
        ("out", "lbgrk,lgrkd->lbd", (LAYERS, 5, G, R, K), (LAYERS, 5, G * R * K)),
        ("odd", "bef,oef->bo", (4, 3, 5), (4, 3 * 5)),
    ):
        check(after[name], before[name], factors[name], equation, x_shape, columns)
    check(merged["embed"], base["embed"], adapters["embed"], "bd,vd->bv", (5, D), (5, D))
    np.testing.assert_array_equal(after["norm"], before["norm"])


def test_training_the_adapters_fits_a_target_and_leaves_the_base(params):
    lora = Lora(rank=2, patterns=("*/qkv",))
    goal = jax.random.normal(jax.random.key(2), (LAYERS, D, 2)) @ jax.random.normal(
        jax.random.key(3), (2, G * (R + 2) * K)
    )
    target = params["group_0"]["mixer"]["qkv"] + goal.reshape(LAYERS, D, G, R + 2, K)
    adapter_specs = lora.specs(SPECS)
    optimizer = Optimizer(schedule={"kind": "constant", "peak": 0.05, "warmup": 0}, weight_decay=0.0, clip_norm=0.0)
    transformation = optimizer.build(adapter_specs, 300)

    def loss(adapters):
        return jnp.mean((lora.merge(params, adapters, SPECS)["group_0"]["mixer"]["qkv"] - target) ** 2)

    @jax.jit
    def train(adapters):
        def step(_, carry):
            adapters, state = carry
            updates, state = transformation.update(jax.grad(loss)(adapters), state, adapters)
            return jax.tree.map(jnp.add, adapters, updates), state

        return jax.lax.fori_loop(0, 300, step, (adapters, transformation.init(adapters)))[0]

    fresh = jax.jit(lambda key: lora.init(key, SPECS))(jax.random.key(1))
    assert float(loss(train(fresh))) < 1e-3 * float(loss(fresh))


def test_patterns_that_match_no_matrix_are_refused_in_one_line():
    with pytest.raises(
        ConfigError, match="Lora.patterns: no parameter matches '.*norm'; candidates: embed, group_0/mixer/qkv"
    ) as error:
        Lora(patterns=("*/norm",)).specs(SPECS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, message", [({"rank": 0}, "Lora.rank"), ({"patterns": ()}, "Lora.patterns")])
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Lora(**change)
