"""Training the hypernetwork: the loss by hand, what moves and what does not, and that it learns."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.data.tokenizer_transfer import transfer_batch
from jaxlm.model import decoder
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork, TransferModel
from jaxlm.objective.tokenizer_transfer import TokenizerTransfer
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.sampled_unigram import sample_unigram
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.tokenizer_transfer import TransferTrainer
from tests.tiny import draw_params, params_of, tiny

TEXTS = ["the quick brown fox jumps over the lazy dog", "a lazy fox jumps over the quick dog", "naïve"] * 2
SOURCE = BpeTokenizer.train(TEXTS, 280)
SPEC = tiny(vocab_size=SOURCE.vocab_size, repeats=1)
NETWORK = EmbeddingHypernetwork(width=16, heads=2)
MODEL = TransferModel(SPEC, NETWORK)
BASE = params_of(SPEC)


def batch_of(seed, size=300):
    target = sample_unigram(TEXTS, size, np.random.default_rng(seed))
    return transfer_batch(SOURCE, target, TEXTS, 24, rows=304)


def loss_of(objective, params, batch, base=BASE):
    return jax.jit(lambda p, b: objective.loss(MODEL, {"base": b, "hypernetwork": p}, batch, None))(params, base)


def test_the_loss_by_hand():
    batch, objective = batch_of(0), TokenizerTransfer(lexical_weight=0.3)
    params = draw_params(NETWORK.params(SPEC), seed=1)
    total, metrics = loss_of(objective, params, batch)
    tables = jax.jit(lambda p: MODEL.predict({"base": BASE, "hypernetwork": p}, batch))(params)
    own = MODEL.with_tables({"base": BASE}, tables)
    spec = dataclasses.replace(SPEC, vocab_size=304, head_bias=True)
    logits = jax.jit(lambda p: decoder.forward(spec, p, batch["tokens"], segment_ids=batch["segment_ids"]).logits)(own)
    losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["targets"][..., None], -1)[..., 0]
    nats, weight = (losses * batch["weights"]).sum(), batch["weights"].sum()
    shared = np.flatnonzero(batch["shared"] >= 0)
    ids = batch["shared"][shared]
    one = np.linalg.norm(np.asarray(tables["table"])[shared] - np.asarray(BASE["embed"]["table"])[ids], axis=1)
    two = np.linalg.norm((np.asarray(tables["kernel"])[:, shared] - np.asarray(BASE["head"]["kernel"])[:, ids]), axis=0)
    lexical = (one + two).mean()
    np.testing.assert_allclose(total, nats + 0.3 * weight * lexical, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (nats, weight), rtol=1e-5)
    np.testing.assert_allclose(metrics["lexical"], (weight * lexical, weight), rtol=1e-5)
    size = (batch["bytes"] * batch["weights"]).sum()
    np.testing.assert_allclose(metrics["bits_per_byte"], (nats / np.log(2), size), rtol=1e-5)


def test_no_gradient_reaches_the_model_and_none_is_lost_at_the_start():
    """An untrained network is exactly on the shared rows, where a distance has no derivative."""
    trainer = TransferTrainer(MODEL, TokenizerTransfer(), Optimizer(), 10)
    state, batch = jax.jit(trainer.init)(jax.random.key(0)), batch_of(1)
    objective = TokenizerTransfer()
    gradient = jax.jit(
        jax.grad(lambda b, p: objective.loss(MODEL, {"base": b, "hypernetwork": p}, batch, None)[0], (0, 1))
    )
    of_base, of_network = gradient(BASE, state.params)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(of_base))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_network))
    assert all(np.asarray(of_network[f"project_{name}"]["out"]).any() for name in ("table", "kernel"))


def test_it_learns():
    """A few steps, each under another tokenizer: the loss under one not seen falls, the model stays."""
    optimizer = Optimizer(schedule=Schedule(kind="constant", peak=3e-3, warmup=0.0), weight_decay=0.0)
    trainer = TransferTrainer(MODEL, TokenizerTransfer(lexical_weight=0.1), optimizer, 30)
    before = jax.tree.map(lambda a: np.asarray(a).copy(), BASE)
    state, held = jax.jit(trainer.init)(jax.random.key(0)), batch_of(99)
    step, evaluate = jax.jit(trainer.step), jax.jit(trainer.evaluate)
    first = evaluate(state.params, BASE, held)["loss"]
    start = state.params
    for seed in range(12):
        state, metrics = step(state, BASE, batch_of(seed % 4))
        assert all(np.isfinite(value) for value in metrics.values())
    last = evaluate(state.params, BASE, held)["loss"]
    assert last[1] == first[1] and last[0] < 0.9 * first[0]
    assert int(state.step) == 12
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(state.params), strict=True):
        assert np.any(np.asarray(old) != np.asarray(new))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(BASE), strict=True):
        assert old.tobytes() == np.asarray(new).tobytes()


def test_bad_input():
    with pytest.raises(ConfigError, match="lexical_weight: expected a number >= 0, got -1"):
        TokenizerTransfer(lexical_weight=-1.0)
    with pytest.raises(ConfigError, match="Optimizer.trainable: no parameter matches 'base/"):
        TransferTrainer(MODEL, TokenizerTransfer(), Optimizer(trainable=("base/*",)), 3).init(jax.random.key(0))
