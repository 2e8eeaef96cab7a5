"""Rotary scalings: their order, what they refuse, CLEX's equation and its positions in training."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import registry
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import initialize
from jaxlm.core.types import Dims
from jaxlm.interop import rope
from jaxlm.interop.config import Config
from jaxlm.model import decoder
from jaxlm.model.spec import Group
from jaxlm.objective.next_token import NextToken
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling import METHODS
from jaxlm.position.scaling.clex import Clex
from jaxlm.position.scaling.dynamic import Dynamic
from jaxlm.position.scaling.linear import Linear
from jaxlm.position.scaling.ntk import Ntk
from jaxlm.position.scaling.power import Power
from jaxlm.position.scaling.truncated import Truncated
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from tests.tiny import close, draw_params, params_of, tiny, tokens_of

BASE, WIDTH = 700.0, 12
PLAIN = BASE ** (-np.arange(0, WIDTH, 2) / WIDTH)


def frequencies(scaling: Any, length: int | None = None) -> np.ndarray:
    return np.asarray(scaling.frequencies({}, BASE, WIDTH, length))


def test_giraffe_in_its_order():
    """Linear, then power, then truncation; in another order they would give something else."""
    cut = 2 * math.pi / 30
    made = frequencies(Truncated(Power(Linear(4.0), exponent=0.5), original=30))
    f = PLAIN / 4 * (1 - np.arange(6) / 6) ** 0.5
    expected = np.where(f >= cut, f, np.where(f >= cut / 8, cut / 16, 0))
    assert len(set(np.sign(expected))) == 2 and (expected == cut / 16).any() and (expected > cut / 16).any()
    np.testing.assert_allclose(made, expected, rtol=3e-6)
    other = frequencies(Linear(4.0)) / 4
    assert np.abs(frequencies(Power(Truncated(original=30), exponent=0.5)) - other).max() > 1e-2


def test_a_changed_scaling_keeps_what_its_inner_one_has():
    inner = make("rotary_scaling", {"name": "yarn", "args": {"factor": 4.0, "original": 64}})
    assert Power(inner).amplitude() == inner.amplitude() > 1
    assert Power(Dynamic(2.0, 8)).by_length and not Power(inner).by_length
    assert np.abs(frequencies(Power(Dynamic(2.0, 8)), 20) - frequencies(Power(Dynamic(2.0, 8)), 8)).max() > 1e-2
    clex = Truncated(Clex(original=8), original=9)
    assert clex.scope == "model" and set(clex.params(WIDTH)) == {"up", "down"}
    assert from_dict(Rotary, to_dict(Rotary(scaling=clex))) == Rotary(scaling=clex)


def test_ntk_in_both_forms():
    """A base of its own; and with alpha = 2 s - 1 what dynamic scaling by 2 makes of s times the length."""
    grown = BASE * 3.0 ** (WIDTH / (WIDTH - 2))
    np.testing.assert_allclose(frequencies(Ntk(3.0)), grown ** (-np.arange(0, WIDTH, 2) / WIDTH), rtol=3e-6)
    np.testing.assert_allclose(frequencies(Ntk(alpha=3.0)), frequencies(Ntk(3.0)))
    np.testing.assert_allclose(frequencies(Ntk(alpha=2 * 5.0 - 1)), frequencies(Dynamic(2.0, 10), 50), rtol=3e-6)


BAD = [
    ("linear", {"factor": 0.0}, "Linear.factor"),
    ("linear", {"factor": 0.5}, "from 1 on, got 0.5"),
    ("dynamic", {"original": 0}, "Dynamic.original"),
    ("dynamic", {"factor": 0.0, "original": 8}, "Dynamic.factor"),
    ("yarn", {"factor": 4.0, "original": 1}, "Yarn.original"),
    ("yarn", {"factor": 0.5, "original": 8}, "Yarn.factor"),
    ("yarn", {"factor": 4.0, "original": 0}, "got 0"),
    ("llama3", {"original": 0}, "Llama3.original"),
    ("llama3", {"factor": 0.0}, "Llama3.factor"),
    ("longrope", {"original": 0}, "LongRope.original"),
    ("longrope", {"long": (0.0,)}, "positive divisors"),
    ("longrope", {"long": (2.0,), "original": 8, "factor": 0.9}, "LongRope.factor"),
    ("proportional", {"factor": 0.9}, "Proportional.factor"),
    ("proportional", {"proportion": 0.0}, "Proportional.proportion"),
    ("ntk", {"factor": 0.5}, "Ntk.factor"),
    ("ntk", {"alpha": 0.9}, "Ntk.alpha"),
    ("ntk", {"alpha": 2.0, "factor": 2.0}, "factor or alpha"),
    ("power", {"exponent": -1.0}, "Power.exponent"),
    ("truncated", {"original": 0}, "Truncated.original"),
    ("clex", {"original": 0}, "Clex.original"),
    ("clex", {"original": 8, "max_factor": 0}, "Clex.max_factor"),
    ("clex", {"original": 8, "activation": "relu"}, "allowed: silu, tanh"),
    ("clex", {"original": 8, "step": 0.0}, "Clex.step"),
]


@pytest.mark.parametrize("name, args, words", BAD, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(BAD)])
def test_what_a_scaling_refuses(name, args, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make("rotary_scaling", {"name": name, "args": args})
    assert "\n" not in str(caught.value)


def test_every_scaling_is_in_the_list_of_refusals():
    assert {name for name, _, _ in BAD} == set(METHODS)


FILES = [
    ({"rope_type": "dynamic"}, "needs factor"),
    ({"rope_type": "linear", "factor": 0.5}, "got 0.5"),
    ({"rope_type": "yarn", "factor": 0.0, "original_max_position_embeddings": 16}, "got 0.0"),
    ({"rope_type": "yarn"}, "'yarn' needs factor"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "got 0"),
    ({"rope_type": "yarn", "original_max_position_embeddings": 0}, "got 0"),
    ({"rope_type": "longrope", "factor": 2.0, "long_factor": [1.0] * 4}, "needs short_factor"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "needs original_max"),
    ({"rope_type": "llama3", "original_max_position_embeddings": 16}, "needs factor"),
]


@pytest.mark.parametrize("settings, words", FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_configuration_file_may_not_say(settings, words):
    data = {"rope_parameters": {"rope_theta": 1e4, **settings}, "max_position_embeddings": 64}
    with pytest.raises(ConfigError, match=words) as caught:
        rope.read(Config(data), head_dim=8)
    assert str(caught.value).startswith("config.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("scaling", [Ntk(2.0), Power(Linear(2.0)), Clex(original=8)], ids=lambda s: type(s).__name__)
def test_what_a_configuration_file_cannot_say(scaling):
    with pytest.raises(ConfigError, match=registry.name_of("rotary_scaling", scaling)):
        rope.write(Rotary(scaling=scaling))


BY_LENGTH = {
    "dynamic": {"original": 8},
    "longrope": {"original": 8, "long": (2.0, 3.0)},
    "clex": {"original": 8},
    "power": {"inner": {"name": "dynamic", "args": {"original": 8}}},
}


@pytest.mark.parametrize("name", BY_LENGTH)
def test_frequencies_that_follow_the_length_keep_plain_keys(name):
    """A cache that is asked to store rotated keys stores plain ones: they would be wrong as soon as the text grows."""
    rotary = Rotary(scaling={"name": name, "args": BY_LENGTH[name]})
    assert rotary.by_length and not rotary.pre_rotate
    spec = tiny({"position": rotary}, repeats=1)
    full = make("cache", {"name": "full", "args": {"rotated": True}})
    assert not decoder.init_state(spec, 1, 8, full)["layers"][0].rotated
    plain = tiny({"position": "rotary"}, repeats=1)
    assert decoder.init_state(plain, 1, 8, full)["layers"][0].rotated


def test_attention_that_sees_a_set_is_refused():
    for position in ("none", {"name": "temp_scale", "args": {"inner": "none", "tau": 0.5}}):
        with pytest.raises(ConfigError, match="the order of tokens has no effect"):
            tiny({"mask": "bidirectional", "position": position})
        tiny({"mask": {"name": "window", "args": {"size": 4, "ahead": 3}}, "position": position})
        tiny({"position": position})
    for position in ("learned", "sinusoidal", "rotary", "t5_bias"):
        blind = tiny({"mask": "bidirectional", "position": position}).layers[0]
        # A layer without positions beside one that has them reads them in its input.
        silent = from_dict(Group, to_dict(blind) | {"repeats": 1}).pattern[0]
        silent = from_dict(type(silent), to_dict(silent))
        mixer = dict(to_dict(silent)["mixer"]["args"], position="none")
        both = (
            *blind.pattern,
            from_dict(type(silent), {**to_dict(silent), "mixer": {"name": "attention", "args": mixer}}),
        )
        tiny(layers=(Group(both),))


class TestClex:
    """The equation in float64, by a solver that is not ours; the training positions; one table for all layers."""

    scaling = Clex(original=10, max_factor=4, param_factor=2, activation="tanh", step=0.07)

    def p(self) -> dict[str, jax.Array]:
        return draw_params(self.scaling.params(WIDTH))

    @staticmethod
    def solution(p: Any, activation: Any, base: float, inner: float, times: list[float]) -> np.ndarray:
        """Frequencies at ``times`` by the classical Runge-Kutta method in tiny steps, as the paper words them."""
        up, down = (np.asarray(p[name], np.float64) for name in ("up", "down"))
        m = np.arange(0, WIDTH, 2)
        curve = lambda t: -m / WIDTH * np.log(inner) - m / (WIDTH - 2) * np.log(2 * t - 1)
        slope = lambda t, x: activation((x + curve(t)) @ up) @ down - 2 * m / ((WIDTH - 2) * (2 * t - 1))
        x, out, t = -m / WIDTH * np.log(base), [], 1.0
        for until in times:
            steps = max(1, round((until - t) * 2000))
            h = (until - t) / steps
            for _ in range(steps):
                a = slope(t, x)
                b = slope(t + h / 2, x + h / 2 * a)
                c = slope(t + h / 2, x + h / 2 * b)
                d = slope(t + h, x + h * c)
                x, t = x + h / 6 * (a + 2 * b + 2 * c + d), t + h
            out.append(np.exp(x))
        return np.stack(out)

    @pytest.mark.parametrize("reference_base", [False, True])
    def test_a_step_that_does_not_divide_one(self, reference_base):
        scaling = Clex(original=10, max_factor=4, param_factor=2, step=0.07, reference_base=reference_base)
        p, inner = self.p(), 10_000.0 if reference_base else BASE
        expected = self.solution(p, np.tanh, BASE, inner, [1.0, 1.3, 2.0, 3.0, 3.71, 4.0])
        np.testing.assert_allclose(scaling.table(p, BASE, WIDTH), expected[[0, 2, 3, 5]], rtol=5e-5)
        for t, row in ((1.3, 1), (3.71, 4)):
            np.testing.assert_allclose(scaling.at(p, BASE, WIDTH, t), expected[row], rtol=5e-5)

    def test_what_training_starts_from(self):
        """Zeros below and torch's uniform values above: NTK scaling with alpha = 2 t - 1; and t is capped."""
        p = initialize(self.scaling.params(WIDTH), jax.random.key(0))
        assert (np.asarray(p["down"]) == 0).all() and p["up"].shape == (6, 24)
        largest = np.abs(np.asarray(p["up"])).max()
        assert 0.9 * 24**-0.5 < largest <= 24**-0.5
        for length, t in ((1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (40, 4), (4000, 4)):
            made = self.scaling.frequencies(p, BASE, WIDTH, length)
            np.testing.assert_allclose(made, frequencies(Ntk(alpha=2.0 * t - 1)), rtol=3e-6, err_msg=str(length))
        np.testing.assert_array_equal(
            self.scaling.frequencies(self.p(), BASE, WIDTH, 10), frequencies(Power(exponent=0.0))
        )

    def test_gradients_by_finite_differences(self):
        p, weights = self.p(), np.random.default_rng(5).standard_normal((4, WIDTH // 2))
        ours = jax.jit(jax.grad(lambda p: jnp.sum(jnp.log(self.scaling.table(p, BASE, WIDTH)) * weights)))(p)
        value = lambda p: np.sum(np.log(self.solution(p, np.tanh, BASE, BASE, [1.0, 2.0, 3.0, 4.0])) * weights)
        for name in p:
            for at in ((0, 0), (3, 2), (5, 1)):
                sides = []
                for h in (1e-4, -1e-4):
                    moved = {key: np.asarray(x, np.float64) for key, x in p.items()}
                    moved[name][at] += h
                    sides.append(value(moved))
                expected = (sides[0] - sides[1]) / 2e-4
                assert abs(ours[name][at] - expected) < 1e-4 * max(1.0, abs(expected)), (name, at)

    def test_one_table_serves_all_layers(self):
        """The model solves the equation once, and the attention that is handed bare parameters gives the same."""
        rotary = Rotary(base=BASE, scaling=Clex(original=8, max_factor=3))
        spec = tiny({"position": rotary, "head_dim": WIDTH}, repeats=3)
        params = params_of(spec)
        assert set(params["position"]) == {"rotary"} and "position" not in params["group_0"]["block_0"]["mixer"]
        run = lambda params: decoder.forward(spec, params, tokens_of(2, 20)).logits
        text = str(jax.make_jaxpr(run)(params))
        assert text.count("tanh") == 4  # a step's four slopes, in one scan
        p = params["position"]["rotary"]
        x = np.random.default_rng(0).standard_normal((1, 20, 2, WIDTH)).astype(np.float32)
        dims = Dims(width=16, heads=4, head_dim=WIDTH)
        turn = lambda p: rotary.rotate(p, x, jnp.arange(20)[None], None)
        close(turn(rotary.prepare(p, dims)), turn(p), 1e-6)

    def test_two_layers_may_not_differ_in_base(self):
        group = tiny({"position": Rotary(scaling=Clex(original=8))}).layers[0]
        with pytest.raises(ConfigError, match="may not differ between repeats"):
            Group(group.pattern, 2, (("0.mixer.position.base", (1e4, 1e5)),))

    def test_positions_of_training(self):
        """First and last are fixed, between them lies a uniform subset in order, and t is uniform and found again."""
        spec = tiny({"position": Rotary(scaling=self.scaling)})
        plain = jnp.tile(jnp.arange(10, dtype=jnp.int32), (50, 1))
        draw = jax.jit(lambda key: decoder.draw_positions(spec, key, plain, train=True))
        assert decoder.draw_positions(spec, jax.random.key(0), plain) is None  # in use, positions are plain
        drawn = np.stack([draw(jax.random.key(seed)) for seed in range(400)])
        assert (drawn[..., 0] == 0).all() and (np.diff(drawn, axis=-1) > 0).all()
        t = (drawn[..., -1] + 1) // 10
        assert (drawn[..., -1] + 1 == 10 * t).all() and (t == t[:, :1]).all()  # one for the batch
        counts = np.bincount(t[:, 0], minlength=5)[1:]
        assert len(counts) == 4 and (np.abs(counts - 100) < 5 * math.sqrt(400 * 0.25 * 0.75)).all()
        np.testing.assert_array_equal(drawn[t[:, 0] == 1][0, 0], np.arange(10))
        inner = drawn[t[:, 0] == 4][..., 1:-1].reshape(-1)
        seen = np.bincount(inner, minlength=40)[1:39]
        expected = inner.size / 38
        assert seen.sum() == inner.size and np.abs(seen - expected).max() < 6 * math.sqrt(expected)

    def test_training_draws_them_and_evaluation_does_not(self):
        spec = tiny({"position": Rotary(scaling=self.scaling), "head_dim": 4})
        seen = []

        @dataclasses.dataclass(frozen=True)
        class Watched(NextToken):
            def loss(self, model, params, batch, key):
                seen.append(batch.get("positions"))
                return super().loss(model, params, batch, key)

        trainer = Trainer(decoder.Decoder(spec), Watched(), Optimizer(), total_steps=2)
        tokens, ones = tokens_of(2, 10), np.ones((2, 10), np.int32)
        batch = {"tokens": tokens, "targets": tokens, "weights": ones.astype(np.float32), "segment_ids": ones}
        jax.eval_shape(trainer.evaluate, params_of(spec), batch)
        assert seen.pop() is None
        jax.eval_shape(trainer.step, trainer.template(), batch)
        assert seen.pop().shape == (2, 10)

    def test_positions_of_long_rows_and_ragged_ones(self):
        """Beyond the training length t stays where its equation reaches; padding and segments read their row's draw."""
        plain = np.concatenate((np.tile(np.arange(25), (2, 1)), np.tile([0, 1, 2, 0, 1] + [0] * 20, (2, 1))))
        draw = jax.jit(lambda key: self.scaling.draw_training(key, jnp.asarray(plain, jnp.int32)))
        for seed in range(30):
            drawn = np.asarray(draw(jax.random.key(seed)))
            assert (drawn[:2] == np.arange(25)).all()  # 4 * 10 // 25 = 1
            assert set((drawn[2:, 2] + 1) // 3) <= {1, 2, 3, 4} and (drawn[2:, [0, 3, 5]] == 0).all()
            np.testing.assert_array_equal(drawn[:, 1], np.where(np.arange(4) < 2, 1, drawn[:, 4]))
        one = np.zeros((1, 1), np.int32)
        np.testing.assert_array_equal(self.scaling.draw_training(jax.random.key(0), jnp.asarray(one)), one)
        rows = jnp.asarray([7, 3])
        pair = jnp.tile(jnp.arange(10), (2, 1))
        swapped = self.scaling.draw_training(jax.random.key(2), pair, rows[::-1])
        np.testing.assert_array_equal(self.scaling.draw_training(jax.random.key(2), pair, rows), swapped[::-1])
