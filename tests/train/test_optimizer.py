"""The optimizer: decay where the spec says, skipped steps change nothing, frozen parameters are not there at all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core.config import from_dict, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import ParamSpec, initialize, ones
from jaxlm.train.optimizer import Optimizer, Rate
from jaxlm.train.schedule import Schedule
from jaxlm.train.select import join, split

SPECS = {
    "embed": {"tokens": ParamSpec((11, 4), (None, None))},
    "group_0": {
        "mixer": {"qkv": ParamSpec((4, 3, 2), (None, None, None), stack=2)},
        "norm": {"scale": ParamSpec((4,), (None,), ones, decay=False, stack=2)},
    },
}
CONSTANT = Schedule("constant", peak=0.01, warmup=0)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: initialize(SPECS, key))(jax.random.key(0))


def gradient(params, step, poison=None):
    """A gradient per step; ``poison`` is put into one of its entries."""
    draw = np.random.default_rng(step).normal
    grads = jax.tree.map(lambda p: draw(size=p.shape).astype(np.float32), params)
    if poison is not None:
        grads["group_0"]["norm"]["scale"][1, 2] = poison
    return grads


def with_minus_zeros(params):
    """A copy whose first entries are -0.0, the one number that adding 0.0 changes."""
    out = jax.tree.map(np.array, params)
    for leaf in jax.tree.leaves(out):
        leaf.flat[0] = -0.0
    return out


def stepper(transformation):
    @jax.jit
    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return transformation.init, step


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def test_equals_optax_adamw_with_decay_on_matrices_only(params):
    optimizer = Optimizer(schedule=CONSTANT, weight_decay=0.3, clip_norm=0.5)
    init, step = stepper(optimizer.build(SPECS, 100))
    mask = {"embed": {"tokens": True}, "group_0": {"mixer": {"qkv": True}, "norm": {"scale": False}}}
    reference = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(0.01, 0.9, 0.95, 1e-8, weight_decay=0.3, mask=mask)
    )
    their_init, their_step = stepper(reference)
    ours, state, theirs, their_state = params, init(params), params, their_init(params)
    for i in range(4):
        ours, state = step(ours, state, gradient(params, i))
        theirs, their_state = their_step(theirs, their_state, gradient(params, i))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rates_are_of_their_parameters_alone(params):
    """The first pattern that matches holds: half the step, none at all, and all of it; weight decay goes with it."""
    plain = Optimizer(schedule=CONSTANT, weight_decay=0.3)
    rates = (Rate("embed/*", 0.5), Rate("*/norm/*", 0.0), Rate("embed/*", 9.0))
    moved = []
    for optimizer in (plain, dataclasses.replace(plain, rates=rates)):
        init, step = stepper(optimizer.build(SPECS, 100))
        after, _ = step(params, init(params), gradient(params, 0))
        moved.append(jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after, params))
    whole, ours = moved
    np.testing.assert_allclose(ours["embed"]["tokens"], 0.5 * whole["embed"]["tokens"], rtol=1e-4, atol=1e-7)
    assert not ours["group_0"]["norm"]["scale"].any() and whole["group_0"]["norm"]["scale"].all()
    np.testing.assert_array_equal(ours["group_0"]["mixer"]["qkv"], whole["group_0"]["mixer"]["qkv"])


def test_average_follows_its_recurrence(params):
    init, step = stepper(Optimizer(schedule=CONSTANT, ema_decay=0.8).build(SPECS, 100))
    state = init(params)
    average, current = params, params
    for i in range(3):
        current, state = step(current, state, gradient(params, i))
        average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, current)
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_changes_no_bit_and_is_counted(params, poison):
    init, step = stepper(Optimizer(schedule=Schedule(peak=0.01, warmup=5), ema_decay=0.9).build(SPECS, 100))
    before, state = step(params, init(params), gradient(params, 0))
    before = with_minus_zeros(before)
    after, skipped = step(before, state, gradient(params, 1, poison))
    assert_same_bits(after, before)
    assert_same_bits((skipped.inner, skipped.ema), (state.inner, state.ema))
    assert (int(skipped.skipped), int(skipped.in_a_row)) == (1, 1)

    _, again = step(after, skipped, gradient(params, 2, poison))
    assert (int(again.skipped), int(again.in_a_row)) == (2, 2)
    moved, recovered = step(after, again, gradient(params, 3))
    assert (int(recovered.skipped), int(recovered.in_a_row)) == (2, 0)
    straight, _ = step(before, state, gradient(params, 3))
    assert_same_bits(moved, straight)


def test_too_many_skips_in_a_row_stop_the_run():
    optimizer = Optimizer(skip_limit=3)
    optimizer.stop_if_stuck(2, step=9)
    with pytest.raises(FloatingPointError, match="step 10: the gradients of the last 3 steps were NaN or Inf"):
        optimizer.stop_if_stuck(3, step=10)


def test_frozen_parameters_have_no_gradient_and_no_state(params):
    optimizer = Optimizer(schedule=CONSTANT, ema_decay=0.9, frozen=("embed/*", "*/norm/*"))
    paths = optimizer.trainable_paths(SPECS)
    assert paths == {"group_0/mixer/qkv"}
    trainable, frozen = split(params, paths.__contains__)
    init, step = stepper(optimizer.build(SPECS, 100))
    state = init(trainable)
    size = trainable["group_0"]["mixer"]["qkv"].size
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 3 * size  # two moments and the average

    loss = lambda trainable: sum(jnp.sum(p**2) for p in jax.tree.leaves(join(trainable, frozen)))
    grads = jax.grad(loss)(trainable)
    trained, _ = step(trainable, state, grads)
    whole = join(trained, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert_same_bits([whole["embed"], whole["group_0"]["norm"]], [params["embed"], params["group_0"]["norm"]])
    assert not np.array_equal(whole["group_0"]["mixer"]["qkv"], params["group_0"]["mixer"]["qkv"])


def test_state_and_parameters_may_both_be_donated(params):
    optimizer = Optimizer(schedule=CONSTANT, ema_decay=0.9)
    transformation = optimizer.build(SPECS, 10)
    mine = jax.tree.map(jnp.copy, params)

    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    after, state = jax.jit(step, donate_argnums=(0, 1))(mine, transformation.init(mine), gradient(params, 0))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((after, state)))


def test_the_whole_tree_is_refused_where_the_trainable_part_is_meant(params):
    init, _ = stepper(Optimizer(frozen=("embed/*",)).build(SPECS, 100))
    with pytest.raises(ConfigError, match="trainable parameters only.*embed/tokens"):
        init(params)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"frozen": ("embd/*",)},
            r"Optimizer.frozen: no parameter matches 'embd/\*'; candidates: embed/tokens, group_0",
        ),
        ({"trainable": ("head",)}, "Optimizer.trainable: no parameter matches 'head'"),
        ({"frozen": ("*",)}, "leaves nothing to train"),
        ({"rates": (Rate("head", 2.0),)}, "Optimizer.rates: no parameter matches 'head'"),
    ],
)
def test_patterns_without_a_match_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        Optimizer(**change).build(SPECS, 100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "adam"}, "unknown optimizer|adamw"),
        ({"b1": 1.0}, "Optimizer.b1"),
        ({"ema_decay": 1.0}, "Optimizer.ema_decay"),
        ({"clip_norm": -1.0}, "Optimizer.clip_norm"),
        ({"eps": 0.0}, "Optimizer.eps"),
        ({"skip_limit": 0}, "Optimizer.skip_limit"),
        ({"trainable": ()}, "Optimizer.trainable"),
        ({"schedule": {"peek": 1.0}}, "did you mean 'peak'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        Optimizer(**change)
    assert "\n" not in str(error.value)


def test_json_both_ways():
    optimizer = Optimizer(schedule=Schedule("wsd", decay=50), frozen=("embed/*",))
    assert from_dict(Optimizer, to_dict(optimizer)) == optimizer


def test_join_refuses_two_leaves_at_one_path():
    with pytest.raises(ValueError, match="'b'"):
        join({"a": {"b": 1}}, {"a": {"b": 2}})
