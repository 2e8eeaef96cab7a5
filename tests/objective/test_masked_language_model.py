"""Masked language modelling: shares by counting, what is never hidden, the loss by hand, one loss however it is cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.dist.mesh import Mesh, make_mesh
from jaxlm.model.decoder import Decoder
from jaxlm.objective.masked_language_model import BERT, MODERNBERT, MaskedLanguageModel
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from tests.tiny import VOCABULARY, close, params_of, tiny, tokens_of

MASK = VOCABULARY - 1
SMALL = MaskedLanguageModel(rate=0.4, mask=MASK, vocabulary=VOCABULARY, special=(0, MASK))
MODEL = Decoder(tiny({"mask": "bidirectional", "position": "rotary"}, repeats=1))
PARAMS = params_of(MODEL.spec)


def prepared(objective, tokens, seed=0, **more):
    made = jax.jit(objective.prepare)({"tokens": jnp.asarray(tokens, jnp.int32), **more}, jax.random.key(seed))
    return {name: np.asarray(x) for name, x in made.items()}


def batch_of(rows=8, length=12, seed=0):
    tokens = tokens_of(rows, length, seed)
    segments = np.ones_like(tokens)
    segments[0, 5:] = 2
    segments[1, 7:] = 0
    return {"tokens": tokens, "segment_ids": segments}


def test_published_settings():
    assert (BERT.rate, BERT.masked, BERT.random, BERT.mask, BERT.vocabulary) == (0.15, 0.8, 0.1, 103, 30522)
    assert (MODERNBERT.rate, MODERNBERT.masked, MODERNBERT.random, MODERNBERT.mask) == (0.3, 0.8, 0.1, 50284)
    made = make("objective", {"name": "masked_language_model", "args": {"rate": 0.2}})
    assert from_dict(MaskedLanguageModel, to_dict(made)) == made == MaskedLanguageModel(rate=0.2)


@pytest.mark.parametrize(("rate", "masked", "random"), [(0.15, 0.8, 0.1), (0.3, 1.0, 0.0), (0.5, 0.2, 0.6)])
def test_shares(rate, masked, random):
    """Of 200 000 tokens: the chosen, and the three ways, each within five deviations; drawn tokens are uniform."""
    size, mask = 1000, 1000
    objective = MaskedLanguageModel(rate, masked, random, mask=mask, vocabulary=size, special=())
    tokens = np.random.default_rng(1).integers(0, size, (200, 1000))
    made = prepared(objective, tokens)
    chosen, out = made["weights"] > 0, made["tokens"]
    np.testing.assert_array_equal(made["targets"], tokens)
    np.testing.assert_array_equal(out[~chosen], tokens[~chosen])
    count, n = chosen.sum(), chosen.size
    assert abs(count - rate * n) < 5 * np.sqrt(n * rate * (1 - rate))
    other = (out != tokens) & (out != mask)
    for found, share in (((out == mask).sum(), masked), (other.sum(), random * (1 - 1 / size))):
        assert abs(found - share * count) <= 5 * np.sqrt(count * share * (1 - share))
    if random:
        drawn = np.bincount(out[other] // 100, minlength=10)
        assert np.abs(drawn - other.sum() / 10).max() < 5 * np.sqrt(other.sum() / 10)


def test_what_is_never_hidden():
    batch = batch_of(64, 40)
    weights = np.ones((64, 40), np.float32)
    weights[5] = 0  # a row that fills up a batch
    weights[6, :-1] = 0  # its other weights say nothing: they are of the tokens that come next
    made = prepared(SMALL, batch["tokens"], segment_ids=batch["segment_ids"], weights=weights)
    chosen = made["weights"] > 0
    assert not chosen[batch["segment_ids"] == 0].any() and not chosen[5].any() and chosen[6].any()
    assert not chosen[np.isin(batch["tokens"], SMALL.special)].any() and chosen.any()
    np.testing.assert_array_equal(made["segment_ids"], batch["segment_ids"])


def test_noise_by_seed_and_row():
    """Rows differ, keys differ, the same key gives the same; and a row's noise does not know how many follow it."""
    tokens = np.full((6, 50), 3, np.int32)
    made = prepared(SMALL, tokens)["tokens"]
    assert len({row.tobytes() for row in made}) == 6
    np.testing.assert_array_equal(made, prepared(SMALL, tokens)["tokens"])
    assert (made != prepared(SMALL, tokens, seed=1)["tokens"]).any()
    np.testing.assert_array_equal(made[:4], prepared(SMALL, tokens[:4])["tokens"])


def test_the_loss_by_hand_and_packed():
    batch = prepared(SMALL, **batch_of())
    total, metrics = jax.jit(lambda p, b: SMALL.loss(MODEL, p, b, None))(PARAMS, batch)
    logits = jax.jit(lambda p, b: MODEL(p, b["tokens"], segment_ids=b["segment_ids"]).logits)(PARAMS, batch)
    logp = np.asarray(jax.nn.log_softmax(logits))
    at = batch["weights"] > 0
    by_hand = -np.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0][at].sum()
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)
    assert float(metrics["loss"][1]) == at.sum() == float(metrics["accuracy"][1])
    # the two documents of row 0, each alone
    whole = jax.jit(lambda p, b: SMALL.loss(MODEL, p, b, None)[0])
    row = {name: x[:1] for name, x in batch.items()}
    alone = 0.0
    for segment in (1, 2):
        keep = row["segment_ids"] == segment
        alone += float(whole(PARAMS, {**row, "weights": row["weights"] * keep, "segment_ids": keep.astype(np.int32)}))
    np.testing.assert_allclose(float(whole(PARAMS, row)), alone, rtol=1e-5)


def test_accumulated_and_sharded_steps_are_the_step():
    batch, out = batch_of(), []
    for options in ({}, {"accumulate": 4}, {"mesh": make_mesh(Mesh(data=4, fsdp=2))}):
        trainer = Trainer(MODEL, SMALL, Optimizer(), total_steps=10, seed=3, **options)
        state, metrics = jax.jit(trainer.step)(trainer.init(PARAMS), batch)
        out.append((jax.device_get(state.params), {name: float(metrics[name]) for name in ("loss", "tokens")}))
    for params, metrics in out[1:]:
        assert metrics["tokens"] == out[0][1]["tokens"] > 10
        np.testing.assert_allclose(metrics["loss"], out[0][1]["loss"], rtol=1e-5)
        close(params, out[0][0], 1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedLanguageModel(rate=0.0), r"rate: expected a probability in \(0, 1\], got 0.0"),
        (lambda: MaskedLanguageModel(masked=-0.1), r"masked: expected a share in \[0, 1\], got -0.1"),
        (lambda: MaskedLanguageModel(masked=0.9, random=0.2), r"masked \+ random <= 1, got 0.9 \+ 0.2"),
        (lambda: MaskedLanguageModel(vocabulary=0), "vocabulary: expected a positive integer, got 0"),
        (lambda: MaskedLanguageModel(mask=-1), "mask: expected a token id, got -1"),
        (
            lambda: BERT.loss(MODEL, PARAMS, {**batch_of(), "targets": 0, "weights": 0}, None),
            "writes ids up to 30521; the model knows 13 tokens",
        ),
        (
            lambda: SMALL.loss(Decoder(tiny(repeats=1)), {}, batch_of(), None),
            "no mixer of the model looks ahead",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
