"""Files compressed from the command line: what comes out is what went in, or one line and no file."""

from __future__ import annotations

import json
import random
import shutil

import jax
import pytest

import jaxlm
from experiments import command, compress
from experiments.compress import FLAGS
from tests.interop.test_vocabulary import model_of
from tests.tokenize.test_hf import byte_level
from tests.tokenize.test_overlap import hf

TEXT = "the cat sat on the mat and the hen sat on the hat; naïve cats ate the rat.\n" * 6
CODING = ("--piece=24", "--lanes=8")


def run(*arguments):
    return command.run(compress.main, FLAGS, compress.__doc__, ["compress", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama of a small vocabulary, another one, and files."""
    folder = tmp_path_factory.mktemp("compress")
    tokenizer = hf(folder / "tokenizer", byte_level(), eos_token="<|endoftext|>")
    model, params = model_of("llama", tokenizer.vocab_size)
    for name, scale in (("one", 1.0), ("two", 1.001)):
        jaxlm.save_hf(model, jax.tree.map(lambda p, scale=scale: p * scale, params), folder / name, family="llama")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / "tokenizer" / file, folder / name / file)
    (folder / "texts").mkdir()
    (folder / "texts" / "library.txt").write_text(TEXT)
    (folder / "source").write_bytes(TEXT.encode() + b"\xff\x00 not text \x80")
    (folder / "empty").touch()
    return folder


def there_and_back(folder, tmp_path, source, *model):
    small, again = tmp_path / "small", tmp_path / "again"
    assert run(f"--source={folder}/{source}", f"--target={small}", *model, *CODING) == 0
    assert run(f"--source={small}", f"--target={again}", *model, "--decompress") == 0  # cut as it was
    assert again.read_bytes() == (folder / source).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"small", "again"}
    return small.read_bytes()


def test_a_checkpoint(folder, tmp_path, capsys):
    data = there_and_back(folder, tmp_path, "source", f"--checkpoint={folder}/one")
    header = json.loads(data.partition(b"\n")[0])
    assert header["size"] == (folder / "source").stat().st_size and header["piece"] == 24 and header["lanes"] == 8
    assert "bits per byte" in capsys.readouterr().out


def test_counts(folder, tmp_path):
    data = there_and_back(folder, tmp_path, "source", f"--texts={folder}/texts", "--order=3")
    assert len(data.partition(b"\n")[2]) < 0.5 * (folder / "source").stat().st_size


@pytest.mark.parametrize("model", ["--checkpoint={folder}/one", "--texts={folder}/texts"])
def test_an_empty_file(folder, tmp_path, model):
    there_and_back(folder, tmp_path, "empty", model.format(folder=folder))


def test_another_model_is_refused(folder, tmp_path, capsys):
    small, again = tmp_path / "small", tmp_path / "again"
    assert run(f"--source={folder}/source", f"--target={small}", f"--checkpoint={folder}/one", *CODING) == 0
    others = [f"--checkpoint={folder}/two"], [f"--texts={folder}/texts"], [f"--texts={folder}/texts", "--order=1"]
    for other in others:
        assert run(f"--source={small}", f"--target={again}", *other, "--decompress") == 2
        error = capsys.readouterr().err
        assert "was compressed with another model" in error and error.count("\n") == 1
    assert not again.exists()


def test_another_machine_is_refused(folder, tmp_path, capsys):
    """One whose probabilities differ, as the header says: the content is not even tried."""
    small, again = tmp_path / "small", tmp_path / "again"
    model = f"--checkpoint={folder}/one"
    assert run(f"--source={folder}/texts/library.txt", f"--target={small}", model, *CODING) == 0
    line, _, rest = small.read_bytes().partition(b"\n")
    small.write_bytes(json.dumps({**json.loads(line), "probe": "0" * 64}).encode() + b"\n" + rest)
    assert run(f"--source={small}", f"--target={again}", model, "--decompress") == 2
    assert "gives other probabilities here" in capsys.readouterr().err and not again.exists()


def test_nothing_else_ever_comes_out_of_a_damaged_file(folder, tmp_path, capsys):
    """The last bits of a code may say nothing; then the content is whole."""
    small, again, model = tmp_path / "small", tmp_path / "again", f"--texts={folder}/texts"
    assert run(f"--source={folder}/source", f"--target={small}", model, *CODING) == 0
    data, draws, refused = small.read_bytes(), random.Random(0), 0
    start = data.index(b"\n") + 1
    for at in [start, len(data) - 1, *(draws.randrange(start, len(data)) for _ in range(20))]:
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 1 << draws.randrange(8)]) + data[at + 1 :]):
            small.write_bytes(damaged)
            if run(f"--source={small}", f"--target={again}", model, "--decompress") == 0:
                assert again.read_bytes() == (folder / "source").read_bytes()
                again.unlink()
                continue
            error = capsys.readouterr().err
            assert "is damaged" in error and error.count("\n") == 1
            refused += 1
    assert list(tmp_path.iterdir()) == [small] and refused > 30


SOURCE, TARGET, MODEL = "--source={folder}/source", "--target={tmp}/out", "--texts={folder}/texts"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TARGET, MODEL], "--source and --target: name both files"),
        ([SOURCE, TARGET], "give either --checkpoint or --texts"),
        ([SOURCE, TARGET, MODEL, "--checkpoint={folder}/one"], "give either --checkpoint or --texts"),
        ([SOURCE, "--target={folder}/source", MODEL], "is the source; name another file"),
        ([SOURCE, "--target={folder}", MODEL], "is a folder; name a file"),
        ([SOURCE, "--target={folder}/empty", MODEL], "exists; replace it with --overwrite"),
        ([SOURCE, "--target={tmp}/none/out", MODEL], "cannot be written: No such file"),
        (["--source={folder}/none", TARGET, MODEL], "cannot be read: No such file"),
        ([SOURCE, TARGET, "--texts={folder}/none"], "none is no file or folder"),
        ([SOURCE, TARGET, "--checkpoint={folder}/none"], "no such folder"),
        ([SOURCE, TARGET, MODEL, "--decompress"], "was not compressed by this program"),
        (["--source={folder}/one/config.json", TARGET, MODEL, "--decompress"], "was not compressed by this program"),
        ([SOURCE, TARGET, MODEL, "--piece=0"], "--piece"),
    ],
)
def test_bad_input_leaves_nothing_behind(folder, tmp_path, capsys, arguments, message):
    assert run(*(one.format(folder=folder, tmp=tmp_path) for one in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_overwriting_is_asked_for(folder, tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"old")
    arguments = [f"--source={folder}/source", f"--target={target}", f"--texts={folder}/texts"]
    assert run(*arguments) == 2 and target.read_bytes() == b"old"
    assert run(*arguments, "--overwrite") == 0 and target.read_bytes() != b"old"
