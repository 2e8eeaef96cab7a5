"""The delete gate within an encoder-decoder: soft and hard deletion, what they agree on, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import dist
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import map_specs
from jaxlm.model.add_gate import add_gate
from jaxlm.model.delete_gate import DeleteGate, compact
from jaxlm.model.encode import encode, encoder_params, to_gate
from jaxlm.model.encoder_decoder import forward
from jaxlm.model.encoder_decoder_spec import param_specs
from jaxlm.model.layers import apply_layers
from jaxlm.objective.gated_deletion import GatedDeletion, RateController
from tests.model.test_encoder_decoder import SEGMENTS, SOURCES, TOKENS, params_of, stacks
from tests.tiny import VOCABULARY, close

# Behind the first of two groups, so that both sides are scanned; softmax1, so that nothing need be read.
SPEC = stacks(groups=2, softmax1=True, gate=DeleteGate(layer=1))
KEEP = np.asarray([[1, 0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0]], bool)


@functools.cache
def model():
    """Parameters whose gate takes the words of some ids and leaves others, far from the threshold; one jitted call."""
    return params_of(SPEC), jax.jit(run, static_argnames=("delete", "capacity"))


def run(params, source, tokens, segments, keep=None, *, delete, capacity=None):
    more = {} if delete != "hard" else {"capacity": capacity, "keep": keep}
    encoded = encode(SPEC, params, source, segments=segments, delete=delete, **more)
    return forward(SPEC, params, None, tokens, encoded=encoded).logits, encoded


def with_gate(params, weight: float | None = None, bias: float = 0.0, factor: float = 1.0) -> dict[str, Any]:
    """Other values of the gate: its weights times ``factor`` (or all equal), and its bias."""
    own = params["gate"]
    weights = own["weight"] * factor if weight is None else jnp.full_like(own["weight"], weight)
    return {**params, "gate": {**own, "weight": weights, "bias": jnp.float32(bias)}}


def test_a_gate_that_keeps_all_is_none():
    """G = 0 to the last bit: softly, and, with every token kept, for good. Without the gate too."""
    params, call = model()
    open_ = with_gate(params, 0.0, 200.0)
    plain, _ = call(open_, SOURCES, TOKENS, SEGMENTS, delete="none")
    soft, encoded = call(open_, SOURCES, TOKENS, SEGMENTS, delete="soft")
    hard, kept = call(open_, SOURCES, TOKENS, SEGMENTS, delete="hard")
    np.testing.assert_array_equal(np.asarray(encoded.gate), np.where(SEGMENTS, 0.0, -30.0))
    close(soft, plain)
    close(hard, plain)
    np.testing.assert_array_equal(kept.overflow, 0)
    bare = jax.jit(
        lambda p: forward(dataclasses.replace(SPEC, gate=None), p, SOURCES, TOKENS, source_segments=SEGMENTS)
    )
    close(bare(params).logits, plain)


def test_hard_deletion_is_the_text_without_what_is_gone():
    """The layers behind the gate give the kept tokens what they would if the others were padding where they stand."""
    params, call = model()
    _, encoded = call(params, SOURCES, TOKENS, SEGMENTS, KEEP, delete="hard", capacity=4)
    kept = KEEP & (SEGMENTS > 0)

    def blanked(params):
        x, ctx = to_gate(SPEC, params, SOURCES, jnp.asarray(SEGMENTS))
        ctx = dataclasses.replace(ctx, segment_ids=jnp.asarray(kept, jnp.int32))
        own = encoder_params(SPEC, params)
        return SPEC.encoder.norm(own["final_norm"], apply_layers(SPEC.encoder, own, x, ctx, layers=(1, 2))[0])

    wanted, places = np.asarray(jax.jit(blanked)(params)), np.cumsum(SEGMENTS, 1) - 1
    assert encoded.memory.hidden.shape[1] == 4
    for row, keep in enumerate(kept):
        count = int(keep.sum())
        close(encoded.memory.hidden[row, :count], wanted[row, keep])
        np.testing.assert_array_equal(np.asarray(encoded.positions)[row, :count], places[row, keep])
        np.testing.assert_array_equal(encoded.memory.segment_ids[row], np.arange(4) < count)


def test_what_is_deleted_softly_by_far_is_deleted():
    """Tokens whose gate is -30 weigh e^-30; queries at them are of no account. Hard deletion then says the same."""
    params, call = model()
    sharp = with_gate(params, bias=0.0, factor=4000.0)
    soft, encoded = call(sharp, SOURCES, TOKENS, SEGMENTS, delete="soft")
    gate, real = np.asarray(encoded.gate), SEGMENTS > 0
    assert np.minimum(np.abs(gate), np.abs(gate + 30))[real].max() < 1e-3, "the case should leave no doubt"
    keep = (gate > -15) & real
    assert keep.any(1).all() and (~keep & real).any()
    for capacity in (SOURCES.shape[1], int(keep.sum(1).max())):
        hard, short = call(sharp, SOURCES, TOKENS, SEGMENTS, delete="hard", capacity=capacity)
        assert short.memory.hidden.shape[1] == capacity
        np.testing.assert_array_equal(short.overflow, 0)
        close(hard, soft, 1e-5)


def test_hard_rows_are_read_as_after_a_hard_deletion():
    """Where the gate is in doubt, soft and hard deletion differ; rows that are read hard do not, the others stay."""
    params, _ = model()
    params = with_gate(params, bias=0.0, factor=4.0)
    rows = np.asarray([True, False, True])

    @functools.partial(jax.jit, static_argnames="delete")
    def read(source, delete, rows=None):
        encoded = encode(SPEC, params, source, segments=SEGMENTS, delete=delete, hard_rows=rows)
        return forward(SPEC, params, None, TOKENS, encoded=encoded).logits

    soft, hard, mixed = read(SOURCES, "soft"), read(SOURCES, "hard"), read(SOURCES, "soft", rows)
    assert np.abs(np.asarray(soft - hard))[rows].max() > 1e-2, "the case should leave doubt"
    close(mixed[rows], hard[rows], 1e-5)
    close(mixed[~rows], soft[~rows], 1e-6)


def test_a_share_of_hard_rows_in_training():
    """All rows: the loss of a hard deletion. None: that of a soft one, and so without a key, as in evaluation."""
    params, _ = model()
    params, batch = with_gate(params, bias=0.0, factor=4.0), {**batch_of(), "source": SOURCES}
    pure = jaxlm.EncoderDecoder(SPEC).pure
    objective = lambda share: lambda params, key: GatedDeletion(hard_share=share).loss(pure, params, batch, key)[0]
    loss = lambda share, key=None: float(jax.jit(objective(share))(params, key))

    @jax.jit
    def read(params):
        hard = encode(SPEC, params, batch["source"], segments=batch.get("source_segments"), delete="hard")
        return forward(SPEC, params, None, batch["tokens"], encoded=hard, segment_ids=batch["segment_ids"]).logits

    logits = read(params)
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["targets"][..., None], -1)[..., 0]
    key = jax.random.key(0)
    soft, every, half = loss(0.0, key), loss(1.0, key), loss(0.5, key)
    np.testing.assert_allclose(every, -(log_p * batch["weights"]).sum(), rtol=1e-5)
    assert soft == loss(1.0) and abs(every - soft) > 1e-3
    assert half not in (soft, every)


def test_noise_is_of_training_alone():
    """With it a token at the threshold is deleted half of the time, one far from it hardly ever."""
    gate, p = DeleteGate(noise=1.0), {"norm": {"scale": jnp.ones(1)}, "weight": jnp.ones(1), "bias": jnp.zeros(())}
    hidden, real = jnp.asarray([[[0.0]] * 2000, [[5.0]] * 2000]), jnp.ones((2, 2000), bool)  # its norm's logits: 0, 1
    deleted = lambda p, key=None: np.asarray(~gate.keeps(gate(p, hidden, real, key))).mean(1)
    np.testing.assert_array_equal(deleted({**p, "bias": jnp.float32(0.1)}), [0, 0])
    for bias in (0.0, 2.0):
        found = deleted({**p, "bias": jnp.float32(bias)}, jax.random.key(0))
        np.testing.assert_allclose(found, jax.nn.sigmoid(-(bias + np.asarray([0.0, 1.0]))), atol=0.03)
    spec = stacks(groups=2, softmax1=True, gate=DeleteGate(layer=1, noise=1.0))
    params = params_of(SPEC)

    @functools.partial(jax.jit, static_argnames="train")
    def read(key, train):
        return encode(spec, params, SOURCES, segments=SEGMENTS, train=train, rng=key).gate

    plain = encode(SPEC, params, SOURCES, segments=SEGMENTS).gate
    close(read(jax.random.key(0), False), plain, 1e-6)
    one, two = (np.asarray(read(jax.random.key(i), True)) for i in range(2))
    assert np.abs(one - plain).max() > 1 and np.abs(one - two).max() > 1


def test_overflow_is_counted():
    params, call = model()
    _, encoded = call(params, SOURCES, TOKENS, SEGMENTS, KEEP, delete="hard", capacity=3)
    np.testing.assert_array_equal(encoded.overflow, [1, 1, 0])
    kept = compact(jnp.asarray(KEEP), 3)
    np.testing.assert_array_equal(kept.index, [[0, 2, 3], [0, 1, 2], [3, 5, 0]])
    np.testing.assert_array_equal(kept.filled, [[1, 1, 1], [1, 1, 1], [1, 1, 0]])


def test_padding_is_deleted_and_unseen():
    params, call = model()
    other = np.where(SEGMENTS, SOURCES, (SOURCES + 1) % VOCABULARY)
    for delete in ("soft", "hard"):
        before, one = call(params, SOURCES, TOKENS, SEGMENTS, delete=delete)
        after, _ = call(params, other, TOKENS, SEGMENTS, delete=delete)
        np.testing.assert_array_equal(before, after)
        assert (np.asarray(one.gate)[SEGMENTS == 0] == -30).all()


def batch_of(**more):
    return {
        "source": SOURCES, "source_segments": SEGMENTS, "tokens": TOKENS, "targets": (TOKENS + 1) % VOCABULARY,
        "weights": np.ones(TOKENS.shape, np.float32), "segment_ids": np.ones(TOKENS.shape, np.int32), **more,
    }  # fmt: skip


def test_the_objective_and_its_gradients():
    """Cross-entropy plus alpha times the mean gate of real tokens; both reach the gate; alpha comes with the batch."""
    params, call = model()
    pure = jaxlm.EncoderDecoder(SPEC).pure

    def loss(params, batch, alpha):
        total, sums = GatedDeletion().loss(pure, params, {**batch, "alpha": alpha}, jax.random.key(0))
        return total, sums

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, sums), slope = grad(params, batch_of(), np.full(3, 2.0, np.float32))
    (bare, _), flat = grad(params, batch_of(), np.zeros(3, np.float32))
    logits, encoded = call(params, SOURCES, TOKENS, SEGMENTS, delete="soft")
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch_of()["targets"][..., None], -1)
    mean = np.asarray(encoded.gate)[SEGMENTS > 0].mean()
    assert float(bare) == pytest.approx(-log_p.sum(), rel=1e-5)
    assert float(total) == pytest.approx(-log_p.sum() + 2 * mean * TOKENS.size, rel=1e-5)
    assert float(sums["gate"][0] / sums["gate"][1]) == pytest.approx(mean, rel=1e-5)
    deleted = (np.asarray(encoded.gate) <= -15)[SEGMENTS > 0].mean()
    assert float(sums["deleted"][0] / sums["deleted"][1]) == pytest.approx(deleted, rel=1e-5)
    for one, other in zip(jax.tree.leaves(slope["gate"]), jax.tree.leaves(flat["gate"]), strict=True):
        assert np.abs(other).max() > 1e-4 and np.abs(one - other).max() > 1e-4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_eight_devices_give_what_one_gives():
    """Soft deletion, logits and gradients."""
    params, _ = model()
    mesh = dist.make_mesh(dist.Mesh(data=2, fsdp=2, tensor=2))
    source, tokens, segments = (np.tile(x, (2, 1))[:4] for x in (SOURCES, TOKENS, SEGMENTS))

    def both(mesh, params):
        def loss(params):
            with dist.use_mesh(mesh):
                out = forward(SPEC, params, source, tokens, source_segments=segments)
            return jnp.sin(out.logits).sum(), out.logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    placed = map_specs(lambda _, s: dist.sharding(mesh, s.full_axes, s.full_shape), param_specs(SPEC))
    close(both(mesh, jax.device_put(params, placed)), both(None, params), 2e-5)


def test_a_gate_for_a_model_that_has_none():
    """It deletes nothing at first, and softly it changes little; the layers are in groups on either side of it."""
    spec = stacks(encoder=3)
    params, plain = params_of(spec), jaxlm.EncoderDecoder(spec)
    gated, own = add_gate(plain, params, jax.random.key(0), DeleteGate(layer=2))
    assert [group.repeats for group in gated.spec.encoder.layers] == [2, 1]
    assert jax.tree.map(jnp.shape, own) == map_specs(lambda _, one: one.full_shape, param_specs(gated.spec))
    before = jax.jit(lambda p: forward(spec, p, SOURCES, TOKENS, source_segments=SEGMENTS).logits)(params)
    soft, hard = (
        jax.jit(lambda p, d=delete: forward(gated.spec, p, SOURCES, TOKENS, source_segments=SEGMENTS, delete=d))(own)
        for delete in ("soft", "hard")
    )
    assert float(soft.aux["deleted"]) == 0
    close(hard.logits, before)
    difference = np.abs(np.asarray(soft.logits - before)).max()
    assert 0 < difference < 0.05 * np.asarray(before).std()


def test_generation_shortens_the_source():
    """Greedy answers are those of the hard deletion at full capacity; a gate that takes everything is refused."""
    params, call = model()
    sharp, lengths = with_gate(params, factor=4000.0), SEGMENTS.sum(1)[:2]
    new = jaxlm.generate(jaxlm.EncoderDecoder(SPEC), sharp, SOURCES[:2], 2, prompt_lengths=lengths)
    rows = np.zeros((2, 1), np.int32)
    for _ in range(2):
        filled = np.pad(rows, ((0, 1), (0, TOKENS.shape[1] - rows.shape[1])))
        logits, _ = call(sharp, SOURCES, filled, SEGMENTS, delete="hard", capacity=SOURCES.shape[1])
        rows = np.concatenate([rows, np.asarray(logits)[:2, rows.shape[1] - 1 : rows.shape[1]].argmax(-1)], 1)
    np.testing.assert_array_equal(new, rows[:, 1:])
    with pytest.raises(ConfigError, match="keeps no token of the whole batch") as caught:
        jaxlm.generate(jaxlm.EncoderDecoder(SPEC), with_gate(params, 0.0, -9.0), SOURCES[:2], 2, prompt_lengths=lengths)
    assert "\n" not in str(caught.value)


BAD = {
    "DeleteGate.layer: expected fewer than the encoder's 2": lambda: stacks(gate=DeleteGate(layer=2)),
    "DeleteGate.layer: expected a positive": lambda: DeleteGate(layer=0),
    "DeleteGate.noise: expected a number >= 0": lambda: DeleteGate(noise=-1.0),
    "DeleteGate.scale: expected a number below 0": lambda: DeleteGate(scale=30.0),
    "target: expected a share of tokens in (0, 1), got 1.0": lambda: RateController(target=1.0),
    "target: expected a share of tokens in (0, 1), got 0.0": lambda: RateController(target=0.0),
    "gains >= 0": lambda: RateController(kp=-1.0),
    "alpha: expected a number >= 0": lambda: GatedDeletion(alpha=-1.0),
    "hard_share: expected a share of rows": lambda: GatedDeletion(hard_share=1.5),
    "delete 'hard' takes no hard_rows": lambda: encode(
        SPEC, model()[0], SOURCES, delete="hard", hard_rows=np.ones(3, bool)
    ),
    "capacity: expected 1 to 7 places": lambda: compact(jnp.asarray(KEEP), 8),
    "delete 'soft' takes no capacity": lambda: encode(SPEC, model()[0], SOURCES, delete="soft", capacity=3),
    "has a delete gate already": lambda: add_gate(jaxlm.EncoderDecoder(SPEC), model()[0], jax.random.key(0)),
    "a bias of keys beside one of positions": lambda: jax.eval_shape(
        lambda p: forward(dataclasses.replace(SPEC, encoder=capped(SPEC.encoder)), p, SOURCES, TOKENS), model()[0]
    ),
    "keeps no token of the whole batch": lambda: encode(SPEC, model()[0], SOURCES, delete="hard", keep=KEEP & False),
    "the model has no DeleteGate": lambda: jax.eval_shape(
        lambda p: GatedDeletion().loss(jaxlm.EncoderDecoder(stacks()).pure, p, batch_of(), None), params_of(stacks())
    ),
}


def capped(spec):
    (first, *rest) = spec.layers
    block = first.pattern[0]
    mixer = dataclasses.replace(block.mixer, soft_cap=3.0)
    return dataclasses.replace(
        spec,
        layers=tuple(
            dataclasses.replace(g, pattern=(dataclasses.replace(block, mixer=mixer),)) for g in (first, *rest)
        ),
    )


@pytest.mark.parametrize("message", BAD)
def test_what_is_refused(message):
    with pytest.raises(ConfigError) as caught:
        BAD[message]()
    assert message in str(caught.value) and "\n" not in str(caught.value)
