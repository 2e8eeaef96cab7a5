"""Sampling from the command line's point of view, on a Hugging Face folder with a tokenizer.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlm
from experiments import generate as sampler
from jaxlm.core.errors import ConfigError
from jaxlm.ffn.glu import Glu
from jaxlm.mixer.attention import Attention
from jaxlm.model import extend
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.tokenize.hf import HfTokenizer
from tests.tiny import params_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = ["the quick brown fox jumps over the lazy dog, naïvely — again and again"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of random weights with a byte-level BPE of fewer ids than the model has, and two ends of text."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("hf") / "llama"
    block = Block(mixer=Attention(heads=2), ffn=Glu(hidden=24))
    spec = ModelSpec(vocab_size=304, width=16, layers=(Group((block,), 1),))
    params = jax.tree.map(lambda p: p * 2 if p.ndim > 1 else p, params_of(spec))
    jaxlm.save_hf(jaxlm.LanguageModel(spec), params, path)
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXT, trainer)
    library.save(str(path / "tokenizer.json"))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    return path


@pytest.fixture
def sampled(folder, monkeypatch):
    """Calls `sample` with the values of some flags."""
    sampler.FLAGS(["test"])

    def call(show=None, **values):
        for name, value in {"workdir": str(folder), "prompt": ["the fox"], "max_new_tokens": 12, **values}.items():
            monkeypatch.setattr(sampler.FLAGS[name], "value", value)
        return sampler.sample(show)

    return call


def test_text_in_and_out(folder, sampled):
    """The greedy text is that of `jaxlm.generate`; it ends at either end of text of generation_config.json."""
    model, params = jaxlm.load_hf(folder)
    tokenizer = HfTokenizer.from_folder(folder)
    assert tokenizer.stop_ids == (0, 1)
    ids = tokenizer.encode("the fox")
    new = np.asarray(jaxlm.generate(model, params, ids[None], 12, stop=(0, 1)))[0]
    assert (new < tokenizer.vocab_size).all(), "choose another seed of the weights"
    ends = np.flatnonzero(np.isin(new, (0, 1)))
    expected = tokenizer.decode(np.concatenate([ids, new[: ends[0] if ends.size else 12]]))
    assert sampled(temperature=0.0) == [expected.encode("utf-8", "surrogateescape").decode("utf-8", "replace")]


def test_prompts_samples_and_noise(sampled, tmp_path):
    """Each text is what it would be alone, however many there are."""
    (tmp_path / "prompts.txt").write_text("the lazy dog\nagain\n")
    several = sampled(prompts=str(tmp_path / "prompts.txt"), samples=2)
    assert len(several) == 4 and [t[:5] for t in several] == ["the l", "the l", "again", "again"]
    assert several[0] != several[1]
    assert sampled(prompts=None, prompt=["the lazy dog", "again", "fox"], samples=1)[:2] == several[::2]
    assert sampled(prompts=None, prompt=["the lazy dog"], samples=1, seed=1)[0] != several[0]


def test_a_stream_shows_the_text(sampled):
    """In pieces that add up to it; and a stop string never shows, not even its first half."""
    pieces: list[str] = []
    (text,) = sampled(pieces.append, max_new_tokens=30)
    assert "".join(pieces) == text and len(pieces) > 3
    new = text.removeprefix("the fox")
    stop = next(new[i : i + 2] for i in range(4, len(new)) if "�" not in new[i : i + 2])
    pieces.clear()
    (cut,) = sampled(pieces.append, max_new_tokens=30, stop=[stop])
    assert cut == "the fox" + new[: new.index(stop)] == "".join(pieces)


def test_the_printer_holds_back_what_may_change():
    shown: list[str] = []
    printer = sampler.Printer("> ", ["END"], shown.append)
    for text, ended in [("a", False), ("a E", False), ("a EN", False), ("a ENt", False), ("a ENt\ufffd", False),
                        ("a ENté", False), ("a ENtéE", True)]:  # fmt: skip
        printer.update(text, ended)
    assert shown == ["> ", "a", " ", "", "ENt", "", "é", "E"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"workdir": "nowhere"}, "no such folder"),
        ({"prompt": [""]}, "--prompt='' is no token"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"step": 3}, "has no steps"),
        ({"dtype": "float64"}, "unknown dtype"),
    ],
)
def test_bad_flags_are_one_line(sampled, values, message):
    with pytest.raises(ConfigError, match=message) as error:
        sampled(**values)
    assert "\n" not in str(error.value)


def run(module, *arguments):
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_binary(folder):
    arguments = (f"--checkpoint={folder}", "--max_new_tokens=3", "--prompt=the fox")
    done = run("generate", *arguments)
    assert done.returncode == 0 and done.stdout.startswith("the fox"), done.stderr[-2000:]
    done = run("generate", *arguments, "--top_k=-1")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_export_of_a_checkpoint(folder, tmp_path):
    arguments = [f"--checkpoint={folder}", f"--workdir={tmp_path / 'artifact'}", "--prompt_length=4", "--max_length=8"]
    done = run("export_model", *arguments, "--platforms=cpu,tpu")
    assert done.returncode == 0 and "for cpu, tpu" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / "artifact" / "README.md").exists()
    done = run("export_model", *arguments)
    assert done.returncode == 2 and "is not empty" in done.stderr and done.stderr.count("\n") == 1


QUICK = ("yarn", "streaming")
EXTENSIONS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in extend.METHODS]


@pytest.mark.parametrize("method", EXTENSIONS)
def test_every_way_to_a_longer_context_is_one_flag(folder, sampled, method):
    """The greedy text is that of the extended model with the method's cache."""
    model, params = jaxlm.load_hf(folder)
    tokenizer = HfTokenizer.from_folder(folder)
    ids = tokenizer.encode("the quick brown fox jumps over the lazy dog")
    longer, cache = jaxlm.extend(model, method, factor=4, original=6), extend.cache(method, 6)
    known = sampler._only_known(tokenizer, model.spec.vocab_size)
    new = np.asarray(jaxlm.generate(longer, params, ids[None], 4, stop=(0, 1), cache=cache, processors=known))[0]
    ends = np.flatnonzero(np.isin(new, (0, 1)))
    expected = tokenizer.decode(np.concatenate([ids, new[: ends[0] if ends.size else 4]]))
    values = {"prompt": ["the quick brown fox jumps over the lazy dog"], "max_new_tokens": 4, "temperature": 0.0}
    (text,) = sampled(extend=f"{method}:4:6", **values)
    assert text == expected.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@pytest.mark.parametrize(
    "value, words",
    [
        ("yarn", "expected METHOD:FACTOR:ORIGINAL"),
        ("yarn:4", "expected METHOD:FACTOR:ORIGINAL"),
        ("yarn:four:8", "expected METHOD:FACTOR:ORIGINAL"),
        ("yarm:4:8", "did you mean 'yarn'"),
        ("yarn:0.5:8", "factor 0.5 is below 1"),
    ],
)
def test_a_bad_extension_is_one_line(sampled, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        sampled(extend=value)
    assert "\n" not in str(caught.value)
