"""Lexinvariant models: exact invariance, one table a row, one loss however it is cut, generation under given tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.dist.mesh import Mesh, make_mesh
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.objective.lexinvariant import Lexinvariant
from jaxlm.objective.next_token import NextToken
from jaxlm.ops.drawn_table import draw_tables, row_keys, with_tables
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from tests.tiny import VOCABULARY, caller, close, params_of, stream, tiny, tokens_of

SPEC = tiny({"position": "rotary"}, repeats=1, tied_head=True, embed_width=8, embed_multiplier=1.5)
MODEL, PARAMS = Decoder(SPEC), params_of(SPEC)
TOKENS = tokens_of(8, 12)
KEYS = row_keys(jax.random.key(5), jnp.arange(8))
TABLES = with_tables(PARAMS, KEYS)
call = caller(SPEC)


def test_tables_are_normal_and_by_key_alone():
    draw = jax.jit(lambda keys: draw_tables(keys, 300, 64))
    tables = np.asarray(draw(KEYS))
    assert tables.shape == (8, 300, 64) and abs(tables.mean()) < 5 * (64 * tables.size) ** -0.5
    np.testing.assert_allclose(tables.var((1, 2)) * 64, 1, atol=5 * (2 / (300 * 64)) ** 0.5)
    np.testing.assert_allclose((tables**2).sum(-1).mean(), 1, atol=0.02)
    np.testing.assert_array_equal(draw(KEYS[2:4]), tables[2:4])
    assert len({table.tobytes() for table in tables}) == 8


def test_permuted_symbols_and_tables_permute_the_logits():
    """Exactly: the same key, permuted ids, a permuted table."""
    cipher = np.stack([np.random.default_rng(row).permutation(VOCABULARY) for row in range(8)])
    back = np.argsort(cipher, 1)
    table = np.asarray(TABLES["embed"]["table"])
    permuted = {**PARAMS, "embed": {**PARAMS["embed"], "table": np.take_along_axis(table, back[..., None], 1)}}
    plain = np.asarray(call(TABLES, TOKENS)[0])
    ciphered = np.asarray(call(permuted, np.take_along_axis(cipher, TOKENS, 1).astype(np.int32))[0])
    assert np.abs(np.diff(plain, axis=0)).max() > 0.1
    np.testing.assert_array_equal(np.take_along_axis(ciphered, cipher[:, None], 2), plain)
    # and the usual model is not: with its own table, other symbols are other symbols
    assert np.abs(np.asarray(call(PARAMS, TOKENS)[0]) - plain).max() > 0.1


def test_a_row_reads_with_its_own_table():
    """As the model of that table alone; in pieces and single steps through a cache, too."""
    whole = np.asarray(call(TABLES, TOKENS)[0])
    for row in (0, 5):
        own = {**PARAMS, "embed": {**PARAMS["embed"], "table": TABLES["embed"]["table"][row]}}
        close(call(own, TOKENS[row : row + 1])[0], whole[row : row + 1], 1e-5)
    close(stream(SPEC, call, TABLES, TOKENS, (5, 1, 4, 1, 1)), whole, 1e-5)


def test_generation_under_given_tables():
    """Rows continue as their full pass says, each by its table; ids and table permuted, so is the continuation."""
    model = jaxlm.LanguageModel(SPEC)
    new = np.asarray(jaxlm.generate(model, TABLES, TOKENS, max_new_tokens=6))
    logits = np.asarray(call(TABLES, np.concatenate([TOKENS, new[:, :-1]], 1))[0])
    np.testing.assert_array_equal(logits[:, 11:].argmax(-1), new)
    cipher = np.random.default_rng(0).permutation(VOCABULARY).astype(np.int32)
    table = TABLES["embed"]["table"][:, np.argsort(cipher)]
    permuted = {**PARAMS, "embed": {**PARAMS["embed"], "table": table}}
    np.testing.assert_array_equal(jaxlm.generate(model, permuted, cipher[TOKENS], max_new_tokens=6), cipher[new])


def batch_of(seed=0):
    rows = tokens_of(8, 13, seed)
    weights = (np.random.default_rng(seed).random((8, 12)) < 0.7).astype(np.float32)
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": weights}


def test_the_loss_is_that_of_the_tables():
    objective = Lexinvariant()
    batch = jax.jit(objective.prepare)(batch_of(), jax.random.key(2))
    keys = jax.random.wrap_key_data(batch["table_keys"])
    found = jax.jit(lambda p, b: objective.loss(MODEL, p, b, None)[0])(PARAMS, batch)
    wanted = jax.jit(lambda p, b: NextToken().loss(MODEL, p, b, None)[0])(with_tables(PARAMS, keys), batch_of())
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(np.unique(np.asarray(batch["table_keys"]), axis=0)) == 8 and np.asarray(batch["drawn"]).all()
    again = jax.jit(objective.prepare)(batch_of(1), jax.random.key(2))
    np.testing.assert_array_equal(batch["table_keys"], again["table_keys"])  # by (seed, step, row), not by text
    gradient = jax.jit(jax.grad(lambda p: objective.loss(MODEL, p, batch, None)[0]))(PARAMS)
    assert not np.asarray(gradient["embed"]["table"]).any() and np.asarray(gradient["embed"]["up"]).any()


def test_a_share_of_rows_and_tokens_that_stay():
    objective = Lexinvariant(share=0.3, kept=(2, 7))
    many = {"tokens": np.zeros((2000, 1), np.int32)}
    drawn = np.asarray(jax.jit(objective.prepare)(many, jax.random.key(0))["drawn"])
    assert abs(drawn.mean() - 0.3) < 5 * (0.21 / 2000) ** 0.5
    own, table = np.asarray(PARAMS["embed"]["table"]), np.asarray(TABLES["embed"]["table"])
    mixed = np.asarray(with_tables(PARAMS, KEYS, np.arange(8) % 2 == 0, (2, 7))["embed"]["table"])
    for row in range(8):
        wanted = own.copy()
        if row % 2 == 0:
            wanted = table[row].copy()
            wanted[[2, 7]] = own[[2, 7]]
        np.testing.assert_array_equal(mixed[row], wanted)
    batch = jax.jit(objective.prepare)(batch_of(), jax.random.key(1))
    gradient = jax.jit(jax.grad(lambda p: objective.loss(MODEL, p, batch, None)[0]))(PARAMS)["embed"]["table"]
    assert np.asarray(gradient).any()


def test_accumulated_and_sharded_steps_are_the_step():
    batch, out = batch_of(), []
    for options in ({}, {"accumulate": 4}, {"mesh": make_mesh(Mesh(data=4, fsdp=2))}):
        trainer = Trainer(MODEL, Lexinvariant(share=0.6), Optimizer(), total_steps=10, seed=3, **options)
        state, metrics = jax.jit(trainer.step)(trainer.init(PARAMS), batch)
        out.append((jax.device_get(state.params), float(metrics["loss"])))
    for params, loss in out[1:]:
        np.testing.assert_allclose(loss, out[0][1], rtol=1e-5)
        close(params, out[0][0], 1e-4)


def test_around_another_objective():
    """The masked language model's hidden tokens, under drawn tables."""
    inner = {"name": "masked_language_model", "args": {"mask": VOCABULARY - 1, "vocabulary": VOCABULARY, "special": ()}}
    objective = make("objective", {"name": "lexinvariant", "args": {"inner": inner, "share": 0.5}})
    assert from_dict(Lexinvariant, to_dict(objective)) == objective
    batch = jax.jit(objective.prepare)(batch_of(), jax.random.key(0))
    both_ways = jaxlm.replace(jaxlm.LanguageModel(SPEC), {"mixer.mask": "bidirectional"}).pure
    total, metrics = objective.loss(both_ways, PARAMS, batch, None)
    assert np.isfinite(total) and float(metrics["loss"][1]) == np.asarray(batch["weights"]).sum() > 0


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda: Lexinvariant(share=0.0), r"share: expected a probability in \(0, 1\], got 0.0"),
        (lambda: Lexinvariant(kept=(-1,)), "kept: expected token ids"),
        (lambda: with_tables(PARAMS, KEYS, kept=(99,)), r"kept: token \[99\] is not one of 0..12"),
        (lambda: with_tables(TABLES, KEYS), "a table for each of 8 rows already"),
        (lambda: decoder.forward(SPEC, TABLES, TOKENS[:3]), "8 tables for 3 rows of tokens"),
        (lambda: decoder.forward(tiny(), with_tables(params_of(tiny()), KEYS), TOKENS), "head is not tied"),
    ],
)
def test_bad_input_is_one_line(do, message):
    with pytest.raises(ConfigError, match=message) as error:
        do()
    assert "\n" not in str(error.value)
