"""Training on text from the command line's point of view: what is written, what is refused, what can be sampled."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from absl import flags

import jaxlm
from experiments import generate as sampler
from experiments import train_lm
from experiments.overrides import override
from experiments.train_lm import Data, RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.data.fill_in_middle import FillInMiddle
from jaxlm.data.text import read
from jaxlm.mixer.attention import Attention
from jaxlm.model.patcher.entropy import EntropyPatcher
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.rotary import Rotary
from jaxlm.tokenize.base import BOS, EOS, FIM, PAD
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.config import TrainConfig
from jaxlm.train.load import load_checkpoint
from jaxlm.train.lora import Lora
from jaxlm.train.metrics import read_jsonl

BLOCK = Block(mixer=Attention(heads=2, position="rotary"))
SMALL = ModelSpec(vocab_size=259, width=8, layers=(Group((BLOCK,), repeats=1),), remat="none")


@pytest.fixture(autouse=True)
def parsed():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixty documents of a few lines."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": f"def f{i}(x):\n    return x + {i}\n" * (i % 3 + 1)}) for i in range(60)]
    (folder / "code.jsonl").write_text("\n".join(lines))
    return folder


def config_of(corpus, **fields) -> RunConfig:
    train = {"steps": 6, "batch_size": 8, "log_every": 2, "eval_every": 3, **fields.pop("train", {})}
    data = {"source": str(corpus), "length": 32, **fields.pop("data", {})}
    return RunConfig(**{"model": SMALL, "train": TrainConfig(**train), "data": Data(**data), **fields})


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    train_lm.main(config_of(corpus), workdir)
    return workdir


def test_every_loss_stands_beside_its_corpus(corpus, finished):
    parts = {name: read(str(corpus)).part(name) for name in ("train", "validation")}
    with (finished / "results.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(r["part"], int(r["step"])) for r in found] == [
        ("train", 2), ("validation", 3), ("train", 4), ("train", 6), ("validation", 6)
    ]  # fmt: skip
    for row in found:
        assert row["corpus_sha256"] == parts[row["part"]].sha256
    logged = [line for line in read_jsonl(finished / "metrics.jsonl") if "validation/loss" in line][-1]
    assert float(found[-1]["loss"]) == logged["validation/loss"]
    validation = parts["validation"]
    targets = validation.num_bytes + len(validation.documents)  # every byte, and the end of each document
    bits = logged["validation/loss"] / math.log(2) * targets / validation.num_bytes
    assert float(found[-1]["bits_per_byte"]) == pytest.approx(bits, rel=1e-12)
    text = (finished / "table.txt").read_text()
    assert all(part.sha256 in text for part in parts.values()) and "tokens/s" in text
    saved = json.loads((finished / "config.json").read_text())
    assert saved["corpus"]["train"]["sha256"] == parts["train"].sha256 and saved["model"]["width"] == 8
    assert (finished / "loss.png").stat().st_size > 1000 and (finished / "provenance.json").exists()


def test_another_corpus_is_another_run(corpus, finished, tmp_path):
    (tmp_path / "more.jsonl").write_text((corpus / "code.jsonl").read_text() + "\n" + json.dumps({"text": "new"}))
    kept = (corpus / "code.jsonl").read_text()
    try:
        (corpus / "code.jsonl").write_text((tmp_path / "more.jsonl").read_text())
        with pytest.raises(ConfigError, match="corpus.train.sha256"):
            train_lm.main(config_of(corpus), finished)
    finally:
        (corpus / "code.jsonl").write_text(kept)


def test_sampling_from_the_result(finished, monkeypatch):
    def sampled(**values):
        for name, value in {"workdir": str(finished), "prompt": ["def é"], "max_new_tokens": 12, **values}.items():
            monkeypatch.setattr(sampler.FLAGS[name], "value", value)
        return sampler.sample()

    sampler.FLAGS(["test"])
    one, two = sampled(samples=2), sampled(samples=2)
    assert one == two and len(one) == 2 and one[0] != one[1] and all(text.startswith("def é") for text in one)
    assert sampled(samples=1) == one[:1]  # a sample does not depend on how many there are
    assert sampled(samples=1, seed=1) != one[:1]
    with pytest.raises(ConfigError, match="no such folder"):
        sampled(workdir=str(finished / "nowhere"))


FIM_BYTES = ByteTokenizer(specials=(BOS, EOS, PAD, *FIM))


@pytest.mark.parametrize("level", ["document", "context"])
def test_filling_in_the_middle(corpus, tmp_path, monkeypatch, level):
    """Rows to train on have marks and those to evaluate on none; a middle is sampled between its two texts."""
    data = {"tokenizer": FIM_BYTES, "fill_in_middle": FillInMiddle(rate=0.9, level=level)}
    model = dataclasses.replace(SMALL, vocab_size=FIM_BYTES.vocab_size)
    config = config_of(corpus, model=model, data=data)
    marks = [FIM_BYTES.special(mark) for mark in FIM]
    for name, one in config.data.corpora().items():
        _, found = config.data.rows(name, one.documents)
        seen = np.concatenate([found[i]["tokens"] for i in range(len(found))])
        assert np.isin(marks, seen).all() == (name == "train") and np.isin(marks, seen).any() == (name == "train")
    train_lm.main(config, tmp_path / "run")
    sampler.FLAGS(["test"])
    for flag, value in {
        "workdir": str(tmp_path / "run"),
        "prompt": ["def f"],
        "suffix": "x",
        "max_new_tokens": 3,
    }.items():
        monkeypatch.setattr(sampler.FLAGS[flag], "value", value)
    pieces: list[str] = []
    (text,) = sampler.sample(pieces.append)
    assert text.startswith("def f") and text.endswith("x") and "".join(pieces) == text
    monkeypatch.setattr(sampler.FLAGS["fim_tokens"], "value", ["<a>", "<b>", "<c>"])
    with pytest.raises(ConfigError, match="has no <a>; its special tokens"):
        sampler.sample()


def test_adapters_on_top_of_a_run(corpus, finished, tmp_path):
    config = config_of(corpus, start=str(finished), train={"steps": 2, "lora": Lora(rank=2)})
    train_lm.main(config, tmp_path / "lora")
    (_, base), (_, tuned) = load_checkpoint(finished), load_checkpoint(tmp_path / "lora")
    assert (np.asarray(base["embed"]["table"]) == np.asarray(tuned["embed"]["table"])).all()
    qkv = [params["group_0"]["block_0"]["mixer"]["qkv"] for params in (base, tuned)]
    assert (np.asarray(qkv[0]) != np.asarray(qkv[1])).any()
    other = dataclasses.replace(config, model=dataclasses.replace(SMALL, vocab_size=300))
    with pytest.raises(ConfigError, match="holds another model"):
        train_lm.main(other, tmp_path / "other")


def test_a_run_goes_on_with_longer_rows_and_another_base(corpus, finished, tmp_path, capsys):
    model = jaxlm.replace(jaxlm.LanguageModel(SMALL), {"mixer.position": Rotary(base=500_000.0)}).spec
    config = config_of(corpus, start=str(finished), train={"steps": 1}, data={"length": 64})
    train_lm.main(dataclasses.replace(config, model=model), tmp_path / "longer")
    printed = capsys.readouterr().out
    assert "note: model.layers.0.pattern.0.mixer" in printed and "500000.0" in printed
    (_, before), (longer, after) = load_checkpoint(finished), load_checkpoint(tmp_path / "longer")
    assert longer.spec == model
    moved = np.abs(np.asarray(before["embed"]["table"]) - np.asarray(after["embed"]["table"])).max()
    assert 0 < moved < 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ([("model.vocab_size", "200")], "vocab_size 200 is smaller than the tokenizer's vocabulary of 259"),
        ([("model.width", "9")], "width 9 is not divisible by 2"),
        ([("model.witdh", "16")], "did you mean 'width'"),
        ([("train.steps", "'many'")], "expected int"),
        ([("data.layout", "packed")], "did you mean 'pack'"),
        ([("data.length", "1")], "expected at least 2"),
        (
            [
                ("model.layers[0].pattern[0].mixer.args.position", "learned"),
                ("model.layers[0].pattern[0].mixer.args.position.args.size", "31"),
            ],
            "data.length 32 is beyond the 31 positions",
        ),
        ([("train.lora", "{'rank': 0}")], "Lora.rank: 0 is not 1 or more"),
    ],
)
def test_a_bad_setting_stops_before_any_data(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        override(RunConfig(model=SMALL, data=Data(source="/nowhere", length=32)), changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "an empty folder"),
        ({"a.txt": b""}, "no text in it"),
        ({"a.txt": b"\xff\xfe\x00"}, "UTF-8"),
        ({"a.txt": b"one document"}, "part of .* is empty"),
    ],
)
def test_bad_data_stops_before_any_compile(files, message, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *a, **k: pytest.fail("compiled"))
    (tmp_path / "data").mkdir()
    for name, content in files.items():
        (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        train_lm.main(config_of(tmp_path / "data"), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "bytes.bin").write_bytes(np.random.default_rng(0).bytes(4000))
    config = config_of(tmp_path / "bytes.bin", train={"steps": 1}, data={"binary": True, "chunk": 100, "layout": "pad"})
    train_lm.main(config, tmp_path / "run")
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) == 2


def test_patches_by_the_entropies_of_another_run(corpus, finished, tmp_path):
    """The patcher takes in that run's model, which training leaves as it is; a run resumed names it again."""
    patcher = EntropyPatcher(width=8, heads=2, max_bytes=4, ngrams=(2,), ngram_buckets=32, threshold=5.0)
    config = config_of(corpus, model=dataclasses.replace(SMALL, patcher=patcher), entropies=str(finished))
    for _ in range(2):
        train_lm.main(config, tmp_path)
    theirs, params = load_checkpoint(finished)
    ours, all_params = load_checkpoint(tmp_path)
    assert ours.spec.patcher == dataclasses.replace(patcher, model=theirs.spec)
    jax.tree.map(np.testing.assert_array_equal, all_params["patcher"]["entropies"], params)
    with pytest.raises(ConfigError, match="an entropy patcher has to be given what it cuts by"):
        train_lm.main(dataclasses.replace(config, entropies=""), tmp_path)
    with pytest.raises(ConfigError, match="no file .*nosuch"):
        train_lm.main(dataclasses.replace(config, entropies="nosuch"), tmp_path)
    with pytest.raises(ConfigError, match="entropies=x: the model has no entropy patcher"):
        config_of(corpus, entropies="x")


@pytest.mark.parametrize("preset", ["smoke", "small", "longer", "longest", "patches", "gpu", "tpu"])
def test_presets_are_complete_models(preset):
    from configs.train_lm import PRESETS, get_config

    assert preset in PRESETS and get_config(preset).model.vocab_size >= 259
