"""Conversion from the command line: there and back, dtypes and shards, verification that can fail, refusals."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxlm
from experiments import checkpoints, command, convert_checkpoint
from experiments.convert_checkpoint import FLAGS, parse_size
from jaxlm.core.config import to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.ffn.glu import Glu
from jaxlm.interop.tensors import INDEX, open_folder
from jaxlm.tokenize.base import EOS, Tokenizer
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.unigram import UnigramTokenizer
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.config import VERSION, TrainConfig
from jaxlm.train.load import CHECKPOINTS, save_checkpoint
from tests.tiny import params_of, tiny


def convert(source, target, *arguments):
    argv = ["convert", f"--source={source}", f"--target={target}", *arguments]
    return command.run(convert_checkpoint.main, FLAGS, convert_checkpoint.__doc__, argv)


def save_run(folder, spec, tokenizer):
    """A checkpoint as a run on text leaves it."""
    meta = {"config_version": VERSION, "model": to_dict(spec), "train": to_dict(TrainConfig())}
    meta["run"] = {"data": {"tokenizer": {"name": tokenizer.name, "args": to_dict(tokenizer)}}}
    with Checkpointer(folder / CHECKPOINTS, asynchronous=False) as saved:
        assert saved.save(0, {"params": params_of(spec)}, meta)


def tensors(folder):
    opened = open_folder(folder)
    return {name: opened.read(name) for name in opened}


@pytest.fixture
def source(golden, tmp_path):
    """A golden checkpoint with a tokenizer's files beside it."""
    folder = next(path for path in sorted((golden / "hf").glob("*/")) if "llama" in path.name)
    shutil.copytree(folder, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (tmp_path / "hf" / "README.md").write_text("# The card of the import")
    return tmp_path / "hf"


def test_there_and_back(source, tmp_path, capsys):
    assert convert(source, tmp_path / "ours", "--verify") == 0
    out = capsys.readouterr().out
    assert "recorded tokens" in out and "largest difference from the source: 0 (" in out
    assert "largest difference from the recorded logits:" in out
    model, params = jaxlm.load_checkpoint(tmp_path / "ours")
    first, same = jaxlm.load_hf(source)
    assert model.spec == first.spec
    jax.tree.map(np.testing.assert_array_equal, params, same)

    assert convert(tmp_path / "ours", tmp_path / "back", "--verify", "--shard_size=100KB") == 0
    assert "random tokens" in capsys.readouterr().out
    before, after = tensors(source), tensors(tmp_path / "back")
    assert before.keys() == after.keys() and (tmp_path / "back" / INDEX).is_file()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    names = (
        json.loads((source / "config.json").read_text()),
        json.loads((tmp_path / "back" / "config.json").read_text()),
    )
    assert (
        names[0]["model_type"] == names[1]["model_type"] and names[0]["rope_parameters"] == names[1]["rope_parameters"]
    )
    assert (tmp_path / "back" / "tokenizer_config.json").read_text() == '{"eos_token": "</s>"}'
    assert "The card of the import" in (tmp_path / "back" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype(source, tmp_path, dtype, capsys):
    """Kept in between, and what was rounded stays as it is."""
    assert convert(source, tmp_path / "ours", f"--dtype={dtype}", "--verify") == 0
    assert "(tolerance 0.0001)" not in capsys.readouterr().out
    model, params = jaxlm.load_checkpoint(tmp_path / "ours")
    assert model.spec.dtype == dtype and {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    assert convert(tmp_path / "ours", tmp_path / "back", "--verify") == 0
    assert "difference from the source: 0 (tolerance 0.0001)" in capsys.readouterr().out
    for name, array in load_file(tmp_path / "back" / "model.safetensors").items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, tensors(source)[name].astype(array.dtype))


def test_one_kind_into_itself(source, tmp_path):
    assert convert(source, tmp_path / "shards", "--to=hf", "--shard_size=90KB") == 0
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert convert(source, tmp_path / "ours") == 0
    assert convert(tmp_path / "ours", tmp_path / "half", "--to=orbax", "--dtype=bfloat16") == 0
    assert jaxlm.load_checkpoint(tmp_path / "half")[0].origin.endswith("/half/origin/hf")


def test_verification_fails(source, tmp_path, capsys):
    """Beyond the tolerance, and for logits that are not numbers; by recorded logits alone too."""
    assert convert(source, tmp_path / "a", "--dtype=bfloat16", "--verify", "--tolerance=1e-4") == 1
    assert "differ by more than the tolerance" in capsys.readouterr().err
    expected = dict(np.load(source / "expected.npz"))
    for change in (0.5, np.nan):
        np.savez(source / "expected.npz", **expected | {"logits": expected["logits"] + change})
        assert convert(source, tmp_path / f"b{change}", "--verify") == 1
    (source / "expected.npz").write_bytes(b"PK not an archive")
    assert convert(source, tmp_path / "c", "--verify") == 2
    assert "expected arrays input_ids [B, L] and logits" in capsys.readouterr().err


def test_a_model_of_our_own(tmp_path, capsys):
    """Llama's family can express it; what none can is refused."""
    spec = tiny(mixer={"position": "rotary"}, block={"ffn": Glu(hidden=24)}, repeats=1)
    save_checkpoint(jaxlm.LanguageModel(spec), params_of(spec), tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "hf", "--verify") == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llama"
    spec = tiny(
        mixer={"position": "kerple"} if "kerple" in jaxlm.list("position") else {"position": "t5_bias"}, repeats=1
    )
    save_checkpoint(jaxlm.LanguageModel(spec), params_of(spec), tmp_path / "other")
    assert convert(tmp_path / "other", tmp_path / "none") == 2
    assert "no Hugging Face family can express" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=no/such"], "no/such: no such folder; expected a checkpoint"),
        (["--target="], "--source and --target: name both folders"),
        (["--to=onnx"], "unknown --to 'onnx'; allowed: hf, orbax"),
        (["--dtype=int8"], "unknown --dtype 'int8'"),
        (["--shard_size=5 elephants"], "--shard_size=5 elephants: expected a number of bytes"),
        (["--step=3"], "has no steps; got step 3"),
        (["--sorce=x"], "Unknown command line flag 'sorce'. Did you mean: source"),
        (["stray"], "unexpected argument ['stray']"),
        (["--target={source}"], "is the source; name another folder"),
        (["--target={source}/.."], "contains the source"),
        (["--target={full}"], "is not empty; choose another"),
        (["--source={empty}"], "is no checkpoint; expected the workdir of a run, or config.json"),
    ],
)
def test_refusals_are_one_line(source, tmp_path, arguments, message, capsys):
    (tmp_path / "full").mkdir(), (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "precious").touch()
    places = {"source": source, "full": tmp_path / "full", "empty": tmp_path / "empty"}
    assert convert(source, tmp_path / "out", *(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and (tmp_path / "full" / "precious").exists()


def test_overwrite(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").touch()
    assert convert(source, tmp_path / "full", "--overwrite") == 0
    assert not (tmp_path / "full" / "old").exists() and (tmp_path / "full" / "checkpoints").is_dir()


def test_help(capsys):
    assert command.run(lambda: 1 // 0, FLAGS, convert_checkpoint.__doc__, ["convert", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--shard_size=5GB" in out and out.startswith("Convert checkpoints")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("0", None), ("GB", None), ("-1", None)],
)
def test_sizes(text, size):
    if size is not None:
        assert parse_size(text) == size
    else:
        with pytest.raises(ConfigError, match="expected a number of bytes, KB, MB or GB"):
            parse_size(text)


def test_tokenizers_of_either_kind(source, tmp_path):
    """The one beside the weights, carried along by a conversion; and it must fit the model."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    model, _ = jaxlm.load_hf(source)
    with pytest.raises(ConfigError, match="has no tokenizer.json"):
        checkpoints.tokenizer_of(source, model)
    words = {f"w{i}": i for i in range(model.spec.vocab_size + 1)}
    for size in (model.spec.vocab_size + 1, model.spec.vocab_size):
        vocabulary = dict(list(words.items())[:size])
        Library(models.WordLevel(vocabulary, unk_token="w0")).save(str(source / "tokenizer.json"))
        if size > model.spec.vocab_size:
            with pytest.raises(ConfigError, match="they belong to different checkpoints"):
                checkpoints.tokenizer_of(source, model)
    assert convert(source, tmp_path / "ours") == 0
    ours, _ = checkpoints.load(tmp_path / "ours")
    found: Tokenizer = checkpoints.tokenizer_of(tmp_path / "ours", ours)
    assert found == checkpoints.tokenizer_of(source, model) and found.vocab_size == model.spec.vocab_size


@pytest.mark.parametrize(
    "tokenizer",
    [ByteTokenizer(), ByteTokenizer(specials=()), BpeTokenizer.train(["the cat sat on the mat"] * 9, 265)],
    ids=["bytes", "bytes alone", "bpe"],
)
def test_the_tokenizer_of_a_run_goes_along(tmp_path, tokenizer, capsys):
    """And reads text, with its first token, as the run did."""
    spec = tiny(mixer={"position": "rotary"}, block={"ffn": Glu(hidden=24)}, repeats=1, vocab_size=tokenizer.vocab_size)
    save_run(tmp_path / "run", spec, tokenizer)
    assert convert(tmp_path / "run", tmp_path / "hf") == 0, capsys.readouterr().err
    model, _ = checkpoints.load(tmp_path / "hf")
    found = checkpoints.tokenizer_of(tmp_path / "hf", model)
    text = "the cat\u00e9 \U0001f600"
    assert found.token_bytes == tokenizer.token_bytes and found.adds_bos == tokenizer.adds_bos
    assert found.encode(text, bos=found.adds_bos).tolist() == tokenizer.encode(text, bos=tokenizer.adds_bos).tolist()
    assert found.special_ids.items() >= tokenizer.special_ids.items() and found.stop_ids == tokenizer.stop_ids
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.special_ids.get(EOS)


def test_a_tokenizer_without_files_is_named(tmp_path, capsys):
    tokenizer = UnigramTokenizer.train(["the cat sat on the mat"] * 9, 270)
    spec = tiny(mixer={"position": "rotary"}, block={"ffn": Glu(hidden=24)}, repeats=1, vocab_size=tokenizer.vocab_size)
    save_run(tmp_path / "run", spec, tokenizer)
    assert convert(tmp_path / "run", tmp_path / "hf") == 0, capsys.readouterr().err
    assert "note: no tokenizer is written: a 'unigram' tokenizer has no tokenizer.json" in capsys.readouterr().out
    assert not (tmp_path / "hf" / "tokenizer.json").exists()


def test_a_run_names_its_tokenizer(tmp_path):
    spec = tiny(repeats=1, vocab_size=ByteTokenizer().vocab_size)
    model = jaxlm.LanguageModel(spec)
    save_checkpoint(model, params_of(spec), tmp_path)
    with pytest.raises(ConfigError, match="is not a run on text: its configuration names no tokenizer"):
        checkpoints.tokenizer_of(tmp_path, model)
