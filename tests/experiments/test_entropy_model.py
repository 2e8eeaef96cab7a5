"""The entropies of an entropy patcher from the command line, and a model that cuts by them."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from experiments import command, entropy_model
from experiments.entropy_model import FLAGS
from jaxlm.core.params import initialize
from jaxlm.data import text
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.entropy import EntropyPatcher, install
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.train.load import save_checkpoint


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
    np.testing.assert_array_equal(install({"patcher": params}, table)["patcher"]["entropies"], table)


def test_a_model_in_place_of_counts(tmp_path, capsys) -> None:
    """What is printed is the mean entropy of the model itself; nothing is written."""
    spec = ModelSpec(vocab_size=259, width=8, layers=(Group((Block(mixer=Attention(heads=2)),)),))
    params = initialize(decoder.param_specs(spec), jax.random.key(0))
    save_checkpoint(jaxlm.LanguageModel(spec), params, tmp_path / "lm")
    documents = [bytes(np.random.default_rng(i).choice(list(b"abcde \n"), 700)) for i in range(60)]
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": one.decode()}) + "\n" for one in documents))
    assert fit(f"--source={source}", f"--model={tmp_path / 'lm'}", "--mean_bytes=2") == 0
    found = re.search(r"mean entropy ([\d.]+) nats; threshold ([\d.]+): ([\d.]+) bytes", capsys.readouterr().out)
    held = b"\n".join(document.text for document in text.read(str(source)).part("validation").documents)
    rows = np.frombuffer(held, np.uint8)[: len(held) // 512 * 512].reshape(-1, 512)
    logits = decoder.Decoder(spec)(params, jnp.asarray(rows, jnp.int32)).logits
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    assert found and float(found[1]) == pytest.approx((-p * np.log(p)).sum(-1).mean(), abs=1e-3)
    assert abs(float(found[3]) - 2) < 0.2
    assert {path.name for path in tmp_path.iterdir()} == {"lm", "text.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean_bytes=20"], "--mean_bytes=20.0: expected a mean above 1 and below --max_bytes=16"),
        (["--max_bytes=1"], "--max_bytes=1: expected 2 or more"),
        (["--model=runs/lm", "--order=2"], "--order is of counts; --model needs none"),
        (["--model=nosuch"], "nosuch: no such folder; expected the --workdir of a training run"),
        (["--bytes=-1"], "--bytes=-1: expected 0 (all) or a positive number"),
    ],
)
def test_bad_flags(arguments, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
