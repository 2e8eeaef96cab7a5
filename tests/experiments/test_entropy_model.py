"""The entropies of an entropy patcher from the command line, and a model that cuts by them."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from experiments import command, entropy_model
from experiments.entropy_model import FLAGS
from jaxlm.core.params import initialize
from jaxlm.model import decoder
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.entropy import EntropyPatcher
from jaxlm.model.spec import ModelSpec


def fit(*arguments: str) -> int:
    return command.run(entropy_model.main, FLAGS, entropy_model.__doc__, ["entropy_model", *arguments])


def test_from_text_to_patches(tmp_path, capsys) -> None:
    """The threshold that is printed gives patches of about the length that was asked for, in held-out text."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(3, 8))) for _ in range(40)]
    source = tmp_path / "text.jsonl"
    lines = (" ".join(rng.choice(words, 200)) for _ in range(120))
    source.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    out = tmp_path / "made" / "e.npy"
    assert fit(f"--source={source}", f"--out={out}", "--buckets=4096", "--mean_bytes=4") == 0
    printed = capsys.readouterr().out
    found = re.search(r"threshold ([\d.]+): ([\d.]+) bytes a patch", printed)
    assert found and abs(float(found[2]) - 4) < 0.5, printed
    spec = ModelSpec(vocab_size=256, width=32, patcher=EntropyPatcher(buckets=4096))
    params = initialize(decoder.param_specs(spec)["patcher"], jax.random.key(0))
    table = entropy_table.load(out)
    np.testing.assert_array_equal(entropy_table.install({"patcher": params}, table)["patcher"]["entropies"], table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean_bytes=20"], "--mean_bytes=20.0: expected a mean above 1 and below --max_bytes=16"),
        (["--max_bytes=1"], "--max_bytes=1: expected 2 or more"),
        (["--bytes=-1"], "--bytes=-1: expected 0 (all) or a positive number"),
    ],
)
def test_bad_flags(arguments, message, tmp_path, capsys) -> None:
    assert fit(f"--out={tmp_path / 'e.npy'}", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
