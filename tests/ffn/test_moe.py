"""Mixture of experts: against a loop over tokens, in training with a capacity, in a whole model, and when it learns."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.config import from_dict, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import flatten
from jaxlm.core.types import Context, Dims
from jaxlm.ffn.base import AUXILIARY_LOSS, linear
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.model import decoder, layers
from jaxlm.model.decoder import Decoder
from jaxlm.model.describe import forward_flops, parameter_count
from jaxlm.model.spec import Block, Group
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.step import Trainer
from tests.ffn.moe_cases import CASES, WIDTH, glu, loop, route
from tests.tiny import caller, close, draw_params, params_of, stream, tiny, tokens_of

X = 2 * np.random.default_rng(0).standard_normal((3, 7, WIDTH)).astype(np.float32)
SEGMENTS = np.asarray([[1] * 7, [0] * 2 + [1] * 5, [1] * 3 + [0] + [2] * 3], np.int32)
REAL = SEGMENTS != 0
CONTEXT = Context(positions=jnp.arange(7)[None], segment_ids=jnp.asarray(SEGMENTS))
TRAINING = dataclasses.replace(CONTEXT, train=True)

every = pytest.mark.parametrize("name", CASES)


@functools.cache
def params(name: str):
    return draw_params(CASES[name].params(Dims(width=WIDTH)))


def run(moe: Moe, p, ctx: Context = CONTEXT):
    return jax.jit(lambda p, x: moe(p, x, ctx))(p, X)


def dense(moe: Moe, p, x):
    """Every expert on every token, weighted by what the router says, 0 for those not chosen."""
    routing = moe.router(p["router"], x)
    weights = (jax.nn.one_hot(routing.experts, moe.experts) * routing.weights[..., None]).sum(2)
    y = 0.0
    for e in range(moe.experts):
        own = {name: array[e] for name, array in p["experts"].items()}
        w = weights[..., e : e + 1]
        one = lambda x, own=own: moe.expert(own, x, CONTEXT)[0]
        y += one(w * x) * (w > 0) if moe.weigh_input else w * one(x)
    if moe.shared is not None:
        shared = moe.shared(p["shared"], x, CONTEXT)[0]
        y += shared * jax.nn.sigmoid(linear(p, "shared_gate", x)) if moe.shared_gate else shared
    return y


@every
def test_equals_a_loop_over_tokens(name):
    moe, p = CASES[name], params(name)
    y, aux = run(moe, p)
    expected, choices = loop(moe, p, X)
    assert len(np.unique(choices[REAL])) == moe.experts, "the draw leaves an expert idle, so it is not tested"
    close(y[REAL], expected[REAL], 2e-6)
    assert np.isfinite(y).all() and aux.keys() == {"moe_balance", "moe_load", AUXILIARY_LOSS}
    assert from_dict(Moe, to_dict(moe)) == moe


@every
def test_gradients_equal_the_dense_reference(name):
    """Of the input and every parameter; only a correction has none."""
    moe, p = CASES[name], params(name)
    loss = lambda f, p, x: (jnp.sin(f(p, x)) * REAL[..., None]).sum()
    gradient = lambda f: jax.jit(jax.grad(lambda p, x: loss(f, p, x), argnums=(0, 1)))(p, X)
    found = gradient(lambda p, x: moe(p, x, CONTEXT)[0])
    close(found, gradient(lambda p, x: dense(moe, p, x)), 5e-6)
    for path, leaf in flatten(found[0]):
        assert (np.abs(leaf).max() > 1e-3) == (path != "router/correction"), path


@every
def test_room_for_all_drops_nothing(name):
    """Buffers that hold every pair give what sorting gives, and its gradients."""
    moe, p = CASES[name], params(name)
    roomy = dataclasses.replace(moe, capacity=float(moe.experts))

    def both(moe: Moe):
        def loss(p, x):
            y, aux = moe(p, x, TRAINING)
            return (jnp.sin(y) * REAL[..., None]).sum() + aux[AUXILIARY_LOSS], (y, aux)

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(p, X)

    (gradient, (y, aux)), (want_gradient, (want, _)) = both(roomy), both(moe)
    close((y[REAL], gradient), (want[REAL], want_gradient), 5e-6)
    assert aux["moe_dropped"] == 0


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
def test_a_capacity_drops_the_late(name):
    """In training an expert takes C pairs of a row, the first that come; evaluation drops nothing."""
    moe, p = dataclasses.replace(CASES[name], capacity=0.75), params(name)
    places = int(np.ceil(0.75 * moe.router.top_k * 7 / moe.experts))
    whole = dataclasses.replace(TRAINING, segment_ids=None)
    y, aux = run(moe, p, whole)
    expected, choices = loop(moe, p, X, capacity=places)
    close(y, expected, 2e-6)
    counts = np.stack([np.bincount(row.ravel(), minlength=moe.experts) for row in choices])
    dropped = np.maximum(counts - places, 0).sum() / choices.size
    assert aux["moe_dropped"] == pytest.approx(dropped, abs=1e-6) and dropped > 0.05
    close(run(moe, p)[0], run(CASES[name], p)[0], 1e-7)
    # A later token takes nobody's place.
    changed = jax.jit(lambda p, x: moe(p, x, whole)[0])(p, np.where(np.arange(7)[:, None] < 5, X, -X))
    np.testing.assert_array_equal(changed[:, :5], y[:, :5])


@every
def test_the_balance_loss_is_that_of_switch(name):
    """Equations 4 to 6 of Fedus et al. 2022 over the real tokens; and the z-loss of ST-MoE, equation 5."""
    moe, p = dataclasses.replace(CASES[name], balance=0.3, z_loss=0.2), params(name)
    _, aux = run(moe, p)
    own = jax.tree.map(lambda a: np.asarray(a, np.float64), p["router"])
    load, share, squares = np.zeros(moe.experts), np.zeros(moe.experts), []
    for x in X[REAL].astype(np.float64):
        chosen, _, shares = route(moe.router, own, x)
        load[chosen] += 1 / moe.router.top_k
        share += shares
        squares.append(np.log(np.exp(x @ own["kernel"] + own.get("bias", 0.0)).sum()) ** 2)
    balance = moe.experts * (load / REAL.sum()) @ (share / REAL.sum())
    found = {name: float(value) for name, value in aux.items()}
    assert found == pytest.approx(
        {
            "moe_balance": balance,
            "moe_load": moe.experts * load.max() / REAL.sum(),
            "moe_z": np.mean(squares),
            AUXILIARY_LOSS: 0.3 * balance + 0.2 * np.mean(squares),
        },
        rel=1e-5,
    )


def test_an_even_load_has_balance_one_and_an_empty_batch_none():
    moe = Moe(experts=4, expert=glu(6), router=Router(top_k=1))
    p = draw_params(moe.params(Dims(width=WIDTH)))
    p["router"]["kernel"] = 20 * jnp.eye(WIDTH, 4)
    x = np.eye(4, WIDTH, dtype=np.float32)[None]
    ctx = Context(positions=jnp.arange(4)[None])
    run = jax.jit(lambda x, segments: moe(p, x, dataclasses.replace(ctx, segment_ids=segments)))
    ones = jnp.ones((1, 4), jnp.int32)
    aux = run(x, ones)[1]
    assert aux["moe_balance"] == pytest.approx(1, abs=1e-6) and aux["moe_load"] == 1
    lone = run(np.repeat(x[:, :1], 4, 1), ones)[1]
    assert lone["moe_balance"] == pytest.approx(4, rel=1e-5) and lone["moe_load"] == 4
    y, aux = run(x, 0 * ones)
    assert (y == 0).all() and aux["moe_balance"] == 0


def whole(name: str, **model):
    """A model of one dense block, then two with experts."""
    plain = tiny().layers[0].pattern[0]
    sparse = dataclasses.replace(plain, ffn=CASES[name])
    return tiny(layers=(Group((plain,)), Group((sparse,), 2)), **model)


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_in_a_model_full_pass_is_pieces_is_single_steps(name):
    spec, tokens = whole(name), tokens_of(3, 7)
    p, call = params_of(spec), caller(spec)
    full = np.asarray(call(p, tokens, SEGMENTS)[0])
    for pieces in [(4, 1, 2), (1,) * 7]:
        close(stream(spec, call, decoder.unstack(p), tokens, pieces, SEGMENTS)[REAL], full[REAL])


def test_reports_are_means_over_the_layers_that_report():
    """Scanned or not, under remat or not; a model without experts reports nothing."""
    spec, tokens = whole("mixtral"), tokens_of(3, 7)
    p = params_of(spec)
    aux = lambda spec, p: jax.jit(lambda p: decoder.forward(spec, p, tokens, segment_ids=SEGMENTS).aux)(p)
    scanned = aux(spec, p)
    close(aux(spec, decoder.unstack(p)), scanned, 1e-6)
    close(aux(dataclasses.replace(spec, remat="none"), p), scanned, 1e-6)
    blocks, found = [(b, q) for b, q in layers._walk(spec, p)], []
    x = p["embed"]["table"][tokens]
    for block, q in blocks:
        one = jax.jit(
            lambda q, x, block=block: decoder.apply_block(block, q, x, CONTEXT, None, rate=0.0, multiplier=1.0)
        )
        x, _, report = one(q, x)
        found += [report] if report else []
    close({key: (found[0][key] + found[1][key]) / 2 for key in found[0]}, scanned, 1e-5)
    assert len(found) == 2 and decoder.forward(tiny(), params_of(tiny()), tokens).aux == {}


def batch_of(rows: int, length: int = 7):
    tokens = tokens_of(rows, length + 1)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((rows, length), np.float32)}


def trainer(spec, **options) -> Trainer:
    optimizer = Optimizer(schedule=Schedule(peak=1e-2, warmup=0))
    return Trainer(Decoder(spec), NextToken(), optimizer, 50, **options)


def test_the_loss_contains_the_report_in_training_alone():
    """Accumulated over microbatches too: the mean is that of the parts."""
    spec, batch = whole("mixtral"), batch_of(4)
    train = trainer(spec, accumulate=2)
    state = train.init(params_of(spec))
    _, metrics = jax.jit(train.step)(state, batch)
    parts = [{key: value[i::2] for key, value in batch.items()} for i in range(2)]
    losses, reports = [], []
    evaluate = jax.jit(lambda batch: train.evaluate(state.params, batch))
    for part in parts:
        sums = evaluate(part)
        means = {key: float(total / weight) for key, (total, weight) in sums.items()}
        reports.append(means)
        losses.append(means["loss"] + means[AUXILIARY_LOSS])
    for key in ("moe_balance", "moe_load", AUXILIARY_LOSS):
        assert float(metrics[key]) == pytest.approx(np.mean([means[key] for means in reports]), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_balance_loss_evens_the_load():
    """50 steps from a router that sends nearly everything to two experts of eight."""
    loads = {}
    for balance in (0.0, 0.1):
        ffn = Moe(experts=8, expert=glu(8), balance=balance)
        spec = tiny(block={"ffn": ffn}, repeats=1)
        start = params_of(spec)
        kernel = start["group_0"]["block_0"]["ffn"]["router"]["kernel"]
        start["group_0"]["block_0"]["ffn"]["router"]["kernel"] = kernel * 0.3
        start["group_0"]["block_0"]["ffn_norm"]["scale"] = jnp.ones((1, WIDTH))
        train = trainer(spec)
        state, step = train.init(start), jax.jit(train.step)
        found = []
        for _ in range(50):
            state, metrics = step(state, batch_of(8))
            found.append(float(metrics["moe_balance"]))
        loads[balance] = found
    assert loads[0.1][0] == loads[0.0][0] > 1.0
    assert loads[0.1][-1] < 1.03 < loads[0.0][-1]


def test_counts_and_flops_of_what_is_active():
    moe = Moe(experts=8, expert=glu(24), router=Router(top_k=2), shared=glu(10), shared_gate=True)
    spec, plain = tiny(block={"ffn": moe}, repeats=3), tiny(block={"ffn": None}, repeats=3)
    one, rest = 3 * WIDTH * 24, WIDTH * 8 + 3 * WIDTH * 10 + WIDTH
    norm = WIDTH
    count = lambda spec: parameter_count(jaxlm.LanguageModel(spec))
    assert count(spec) - count(plain) == 3 * (8 * one + rest + norm)
    assert forward_flops(spec, 100) - forward_flops(plain, 100) == 3 * 2 * (2 * one + rest)
    active = count(plain) + 3 * (2 * one + rest + norm)
    assert f"parameters: {count(spec):,} ({active:,} active)" in jaxlm.describe(jaxlm.LanguageModel(spec))


def test_bfloat16_routes_in_float32():
    moe, p = CASES["qwen2_moe"], params("qwen2_moe")
    low = jnp.asarray(X, jnp.bfloat16)
    routing, wide = moe.router(p["router"], low), moe.router(p["router"], low.astype(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, routing, wide)
    run = jax.jit(lambda x: moe(p, x, CONTEXT))
    y, aux = run(low)
    assert y.dtype == jnp.bfloat16 and all(value.dtype == jnp.float32 for value in aux.values())
    close(y.astype(jnp.float32)[REAL], run(low.astype(jnp.float32))[0][REAL], 2e-2)


BAD = [
    (lambda: Moe(experts=0), ["Moe.experts", "0"]),
    (lambda: Moe(experts=2, router=Router(top_k=3)), ["Router.top_k", "1 to 2", "3"]),
    (lambda: Moe(router=Router(groups=3, top_groups=1)), ["Router.groups", "8 experts", "3"]),
    (lambda: Moe(router=Router(groups=8, top_groups=1)), ["Router.groups", "2 or more"]),
    (lambda: Moe(router=Router(top_k=3, groups=4, top_groups=1)), ["Router.top_k", "1 to 2", "3"]),
    (lambda: Router(groups=4, top_groups=5), ["Router.top_groups", "1 to 4", "5"]),
    (lambda: Router(top_k=0), ["Router.top_k", "0"]),
    (lambda: Router(score="softmaxx"), ["did you mean 'softmax'"]),
    (lambda: Moe(expert="moe"), ["Moe.expert", "Moe"]),
    (lambda: Moe(shared="moe"), ["Moe.shared", "Moe"]),
    (lambda: Moe(shared_gate=True), ["Moe.shared_gate", "shared"]),
    (lambda: Moe(capacity=-1.0), ["Moe.capacity", "-1.0"]),
    (lambda: Moe(balance=-1.0), ["Moe.balance", "-1.0"]),
    (lambda: Block(ffn={"name": "moe", "args": {"router": {"topk": 1}}}), ["did you mean 'top_k'"]),
]


@pytest.mark.parametrize("make, words", BAD)
def test_what_cannot_work_is_named(make, words):
    with pytest.raises(ConfigError) as caught:
        make()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
