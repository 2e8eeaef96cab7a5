"""The studies of lexinvariant models and of bit ciphers: what they read, in pieces that need no training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from configs.tokenization import get_config
from experiments.tokenization import lexinvariance
from experiments.tokenization.frame import Results, Row
from experiments.tokenization.lexinvariance import ANEW, LOSS, USUAL, Lexinvariance, Usual
from jaxlm.core.errors import ConfigError
from jaxlm.model.decoder import Decoder
from jaxlm.objective.lexinvariant import Lexinvariant
from jaxlm.objective.next_token import NextToken
from jaxlm.ops.drawn_table import row_keys, with_tables
from tests.tiny import params_of

SMOKE: Lexinvariance = get_config("lexinvariance_smoke")  # pyright: ignore[reportAssignmentType]


def test_rows_of_characters():
    rows, text = SMOKE.read("test"), b"\n".join(SMOKE.texts.test_texts)
    assert rows.shape == (8, 65) and 0 <= rows.min() and rows.max() < 64
    train = np.bincount(np.frombuffer(b"\n".join(SMOKE.texts.train_texts), np.uint8), minlength=256)
    for symbol in range(3):
        byte = int(np.argsort(-train, kind="stable")[symbol])
        assert [i for i in range(65) if text[i] == byte] == np.flatnonzero(rows[0] == symbol).tolist()


def test_objectives_of_the_arms():
    assert SMOKE.objective(USUAL) == NextToken() and SMOKE.objective(ANEW) == Lexinvariant()
    assert [SMOKE.objective(arm.label) for arm in SMOKE.arms()][2:] == [Lexinvariant(share=0.5)]


def test_losses_and_states_under_tables():
    """By position, of more rows than are read at once, as the model says under the tables of their keys."""
    model = Decoder(SMOKE.model.spec(SMOKE.symbols))
    params, rows = params_of(model.spec), np.random.default_rng(0).integers(0, 64, (20, 9)).astype(np.int32)
    keys = row_keys(jax.random.fold_in(jax.random.key(7), 1), np.arange(20))
    out = model(with_tables(params, keys), rows[:, :-1])
    wanted = -np.take_along_axis(np.asarray(jax.nn.log_softmax(out.logits)), rows[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(lexinvariance._by_position(model, params, rows, 7), wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(lexinvariance._by_position(model, params, rows, None) - wanted).max() > 0.1
    states = lexinvariance._states(model, params, rows[:, :-1], SMOKE.model.layers, (7, 1))
    normed = np.asarray(model.spec.norm(params["final_norm"], states))
    np.testing.assert_allclose(normed, out.hidden, rtol=1e-3, atol=1e-4)


def test_the_usual_model_is_trained_once():
    calls: list[int] = []

    def training(seed: int):
        calls.append(seed)
        return {"of": seed}, None

    usual = Usual(dataclasses.replace(SMOKE, seeds=(0, 1)))
    assert [usual(seed, training)["of"] for seed in (0, 1, 0, 1)] == [0, 1, 0, 1]  # pyright: ignore[reportArgumentType]
    assert calls == [0, 1]


def test_lines():
    values = {
        (USUAL, LOSS, "plain"): 2.0, (USUAL, LOSS, "cipher"): 5.0, (ANEW, LOSS, "plain"): 2.5,
        (ANEW, LOSS, "cipher"): 2.51, (ANEW, "early", "plain"): 4.0, (ANEW, "late", "plain"): 2.0,
    }  # fmt: skip
    rows = [Row("", arm, 0, measure, 0, setting, value) for (arm, measure, setting), value in values.items()]
    rows += [Row("", ANEW, 0, "deciphered", depth, "late", share) for depth, share in ((1, 0.9), (2, 0.7))]
    found = {line.claim: line for line in SMOKE.lines(Results(rows))}
    assert [round(line.median, 3) for line in found.values()] == [0.5, 0.01, 2.5, 0.9]
    assert all(line.verdict == "pass" for line in found.values())


def test_tables_of_the_bit_cipher_study():
    study = get_config("bit_cipher_smoke")
    for label in ("sum", "concat", "sum, patterns shuffled"):
        assert study.cipher(label).width == study.model.width  # pyright: ignore[reportAttributeAccessIssue]
    assert study.vectors("concat").shape == (300, 32)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("lexinvariance", {"symbols": 1}, "symbols: expected 2 to 257, got 1"),
        ("lexinvariance", {"shares": (1.0,)}, r"shares: expected shares in \(0, 1\), got \[1.0\]"),
        ("lexinvariance", {"late": (40, 90)}, r"late: expected positions within 64, got \(40, 90\)"),
        ("lexinvariance", {"rows": 0}, "rows: expected a positive number"),
        ("bit_cipher", {"window": 3}, "3 offsets on two sides do not share a width of 32"),
        ("bit_cipher", {"window": 2}, "leaves 8 bits of a width of 32, too few patterns for 300 tokens"),
        ("bit_cipher", {"readings": 0}, "readings: expected a positive number"),
    ],
)
def test_bad_input_is_one_line(preset, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        dataclasses.replace(get_config(f"{preset}_smoke"), **changes)
    assert "\n" not in str(error.value)
