"""Another tokenizer from the command line: folders that load, what is printed, refusals that leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

import jaxlm
from experiments import command, swap_tokenizer
from experiments.swap_tokenizer import FLAGS
from jaxlm.interop.embedding_init import METHODS
from jaxlm.tokenize.base import EOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.extend import extend
from jaxlm.tokenize.hf import HfTokenizer
from jaxlm.tokenize.overlap import overlap, pieces_of
from tests.interop.test_vocabulary import model_of
from tests.tokenize.test_hf import TEXT, byte_level, fallback_bpe
from tests.tokenize.test_overlap import hf, incomplete

LARGER = BpeTokenizer.train(TEXT, 300, specials=())


def swap(*arguments):
    return command.run(swap_tokenizer.main, FLAGS, swap_tokenizer.__doc__, ["swap", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer, another tokenizer's folder, one of ours, and text."""
    folder = tmp_path_factory.mktemp("swap")
    old = hf(folder / "old", fallback_bpe(), bos_token="<s>", eos_token="</s>")
    hf(folder / "new", byte_level(), eos_token="<|endoftext|>")
    hf(folder / "few", incomplete())
    model, params = model_of("llama", old.vocab_size)
    jaxlm.save_hf(model, params, folder / "llama", family="llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / "old" / name, folder / "llama" / name)
    BpeTokenizer.train(TEXT, 290).save(folder / "ours.json")
    (folder / "texts" / "deep").mkdir(parents=True)
    for i, text in enumerate(TEXT):
        (folder / "texts" / "deep" / f"{i}.txt").write_text(text, encoding="utf-8")
    (folder / "texts" / "picture").write_bytes(b"\0\1\2")
    return folder


@pytest.mark.parametrize("init", METHODS)
def test_every_method(folder, init, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"--checkpoint={folder}/llama", f"--tokenizer={folder}/new", f"--out={out}", "--dim=8"]
    assert swap(*arguments, f"--init={init}", f"--texts={folder}/texts") == 0
    said = capsys.readouterr().out
    model, _ = jaxlm.load_hf(out)
    old, new = (HfTokenizer.from_folder(path) for path in (folder / "llama", out))
    shared = int((overlap(old, new) >= 0).sum())
    assert model.spec.vocab_size == new.vocab_size == HfTokenizer.from_folder(folder / "new").vocab_size
    assert f"Of its tokens {shared:,} have the embeddings" in said and f"start by {init} (" in said
    assert "bytes a token on --texts:" in said
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == new.special(EOS)
    assert f"start by {init}" in (out / "README.md").read_text()
    assert list(tmp_path.iterdir()) == [out]


def test_a_network_that_predicts_embeddings(folder, tmp_path, capsys):
    """Tokens that both have keep their rows, bit for bit; of two steps something is learned for the others."""
    out = tmp_path / "out"
    settings = {"steps": 2, "drawn": [300, 320], "batch_size": 2, "network": {"width": 16, "heads": 2}, "rate": 0.1}
    arguments = [f"--checkpoint={folder}/llama", f"--tokenizer={folder}/new", f"--out={out}", "--init=hypernetwork"]
    assert swap(*arguments) == 2
    assert "--init=hypernetwork is trained on texts: name --texts" in capsys.readouterr().err
    assert swap(*arguments, f"--texts={folder}/texts", '--init_args={"step": 2}') == 2
    assert "unknown field of Transfer 'step'" in capsys.readouterr().err and not out.exists()
    assert swap(*arguments, f"--texts={folder}/texts", f"--init_args={json.dumps(settings)}") == 0
    assert "start by hypernetwork (Minixhofer et al. 2024" in capsys.readouterr().out
    old, new = (HfTokenizer.from_folder(path) for path in (folder / "llama", out))
    (_, before), (_, after) = jaxlm.load_hf(folder / "llama"), jaxlm.load_hf(out)
    source, same = HfTokenizer.from_folder(folder / "llama"), overlap(old, new)
    np.testing.assert_array_equal(after["embed"]["table"][same >= 0], before["embed"]["table"][same[same >= 0]])
    fresh = [i for i in np.flatnonzero(same < 0) if new.token_bytes[i]]
    pieces = pieces_of(source, [new.token_bytes[i] for i in fresh])
    means = np.stack([np.asarray(before["embed"]["table"])[ids].mean(0) for ids in pieces])
    apart = np.abs(np.asarray(after["embed"]["table"])[fresh] - means).max(1)
    assert (apart > 1e-3).all() and apart.max() < 10 * np.abs(means).max()


def test_tokens_that_nothing_makes_are_named(folder, tmp_path, capsys):
    merges = ((97, 98), (98, 99), (97, 257))  # a + bc is never made: ab comes first
    BpeTokenizer(merges, specials=()).save(tmp_path / "odd.json")
    assert swap(f"--checkpoint={folder}/llama", f"--tokenizer={tmp_path}/odd.json", f"--out={tmp_path}/out") == 0
    assert "note: 1 tokens that encoding never makes: b'abc'" in capsys.readouterr().out


def test_a_tokenizer_of_ours_and_extension(folder, tmp_path, capsys):
    """First ours in place of the checkpoint's; then a larger one behind it, which keeps every row."""
    one, two = tmp_path / "one", tmp_path / "two"
    BpeTokenizer(merges=LARGER.merges[:30], specials=()).save(tmp_path / "small.json")
    LARGER.save(tmp_path / "large.json")
    assert swap(f"--checkpoint={folder}/llama", f"--tokenizer={tmp_path}/small.json", f"--out={one}") == 0
    assert "note:" not in capsys.readouterr().out
    arguments = [f"--checkpoint={one}", f"--tokenizer={tmp_path}/large.json", f"--out={two}", "--extend"]
    assert swap(*arguments, "--init=covariance", '--init_args={"scale": 0.25}', "--pad_to_multiple=64") == 0
    (small, before), (large, after) = jaxlm.load_hf(one), jaxlm.load_hf(two)
    assert (small.spec.vocab_size, large.spec.vocab_size) == (286, 320)
    np.testing.assert_array_equal(after["embed"]["table"][:286], before["embed"]["table"])
    np.testing.assert_array_equal(after["head"]["kernel"][:, :286], before["head"]["kernel"])
    assert swap(*arguments) == 2  # it is not empty
    assert swap(*arguments, "--overwrite") == 0 and jaxlm.load_hf(two)[0].spec.vocab_size == 300


def test_where_it_writes_is_asked_first(folder, tmp_path, monkeypatch, capsys):
    """Not after the model was read and its embeddings made."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    monkeypatch.setattr(swap_tokenizer, "load_hf", lambda *_, **__: pytest.fail("read the checkpoint"))
    assert swap(f"--checkpoint={folder}/llama", f"--tokenizer={folder}/new", f"--out={tmp_path}/out") == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_tokenizer_extended_behind_its_special_tokens(folder, tmp_path):
    """`jaxlm.tokenize.extend`: the folder's ids, special tokens among them, keep their rows."""
    small = BpeTokenizer.train(TEXT, 290)
    larger = extend(small, BpeTokenizer.train(["zab zabaz zabaz kuzab"], 264, specials=()))
    larger.save(tmp_path / "larger.json")
    one, two = tmp_path / "one", tmp_path / "two"
    assert swap(f"--checkpoint={folder}/llama", f"--tokenizer={folder}/ours.json", f"--out={one}") == 0
    assert swap(f"--checkpoint={one}", f"--tokenizer={tmp_path}/larger.json", f"--out={two}", "--extend") == 0
    (_, before), (model, after), written = jaxlm.load_hf(one), jaxlm.load_hf(two), HfTokenizer.from_folder(two)
    assert model.spec.vocab_size == larger.vocab_size > 290
    np.testing.assert_array_equal(after["embed"]["table"][:290], before["embed"]["table"])
    assert written.token_bytes == larger.token_bytes and written.special(EOS) == small.special(EOS)
    assert written.encode("kuzabaz").tolist() == larger.encode("kuzabaz").tolist()


@pytest.mark.torch
def test_transformers_generates_with_it(folder, tmp_path):
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    import transformers

    assert swap(f"--checkpoint={folder}/llama", f"--tokenizer={folder}/ours.json", f"--out={tmp_path}/out") == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("the quick brown", return_tensors="pt", add_special_tokens=False)
    theirs = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, -3:].tolist()
    ours = jaxlm.generate(*jaxlm.load_hf(tmp_path / "out"), inputs["input_ids"].numpy(), max_new_tokens=3)
    assert ours[0].tolist() == theirs and max(theirs) < len(tokenizer)


CHECKPOINT, NEW = "--checkpoint={folder}/llama", "--tokenizer={folder}/new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([NEW], "--checkpoint: name a folder"),
        ([CHECKPOINT], "--tokenizer: name a folder"),
        ([CHECKPOINT, NEW, "--init=fokus"], "unknown embedding_init 'fokus'; did you mean 'focus'"),
        ([CHECKPOINT, NEW, "--init_args=[1]"], "expected a JSON object"),
        ([CHECKPOINT, NEW, '--init_args={"rank": 3}'], "unknown field of MeanOfPieces 'rank'"),
        ([CHECKPOINT, NEW, "--init=focus"], "Focus needs auxiliary vectors: give texts"),
        ([CHECKPOINT, NEW, "--init=focus", "--vectors={folder}/none.npz"], "none.npz: cannot be read"),
        ([CHECKPOINT, NEW, "--init=focus", "--texts={folder}/none"], "none is no file or folder"),
        ([CHECKPOINT, NEW, "--texts={folder}/texts/picture"], "there is no text in"),
        ([CHECKPOINT, NEW, "--extend"], "has 302 ids, the old one 320; it is no extension"),
        ([CHECKPOINT, "--tokenizer={folder}/few"], "no token for 253 of the 256 bytes"),
        ([CHECKPOINT, "--tokenizer={folder}/texts"], "has no tokenizer.json"),
        ([CHECKPOINT, "--tokenizer={folder}/none"], "no such file or folder"),
        (["--checkpoint={folder}/new", NEW], "has no config.json"),
        ([CHECKPOINT, NEW, "--dtype=int8"], "unknown dtype 'int8'"),
        ([CHECKPOINT, NEW, "--out={folder}"], "is or contains the checkpoint"),
        ([CHECKPOINT, NEW, "--out={folder}/texts"], "texts is not empty; choose another, or replace it"),
        ([CHECKPOINT, NEW, "--out={folder}/ours.json"], "ours.json is a file; expected a folder"),
        (["--checkpoint={folder}/none", NEW], "none: no such folder"),
        ([CHECKPOINT, NEW, "--seed=-1"], "seed"),
    ],
)
def test_refusals(folder, arguments, message, tmp_path, capsys):
    given = [argument.replace("{folder}", str(folder)) for argument in arguments]
    if not any(argument.startswith("--out") for argument in given):
        given.append(f"--out={tmp_path}/out")
    before = sorted(path for path in folder.rglob("*"))
    assert swap(*given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir()) and sorted(folder.rglob("*")) == before
