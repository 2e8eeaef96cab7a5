"""The binary that asks a tokenizer what it was trained on, and the study's one draw."""

import csv
import json

import numpy as np
import pytest

from experiments import command, mixture_inference
from experiments.mixture_inference import FLAGS, numbers
from experiments.tokenization.recovery import log10_mse, recovery
from jaxlm.data.categories import Category, Language, cut
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.bpe_files import to_hf
from jaxlm.tokenize.merge_files import MergeList

pytest.importorskip("highspy")

TEXTS = {f"language{i}": Language(i, forms=20).text(20_000) for i in range(3)}


def ask(tmp_path, *arguments):
    base = [
        f"--tokenizer={tmp_path / 'tokenizer'}",
        f"--samples={tmp_path / 'samples'}",
        f"--workdir={tmp_path / 'out'}",
    ]
    return command.run(mixture_inference.main, FLAGS, mixture_inference.__doc__, ["ask", *base, *arguments])


@pytest.fixture
def place(tmp_path):
    """A tokenizer of three languages in parts 1, 2 and 1, and samples of them as a file, lines of JSON and a folder."""
    first, second, third = TEXTS.values()
    tokenizer = BpeTokenizer.train([first, second * 2, third], vocab_size=256 + 50 + 3, split=("space",))
    to_hf(tokenizer, tmp_path / "tokenizer")
    samples = tmp_path / "samples"
    (samples / "language2").mkdir(parents=True)
    (samples / "language0.txt").write_bytes(first)
    (samples / "language1.jsonl").write_text(json.dumps({"text": second.decode()}))
    (samples / "language2" / "a.txt").write_bytes(third[: len(third) // 2])
    (samples / "language2" / "b.txt").write_bytes(third[len(third) // 2 :])
    (samples / ".hidden").write_text("no")
    return tmp_path


def rows(place):
    with (place / "out" / "results.csv").open() as stream:
        return {row.pop("category"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)}


def test_a_mixture_is_found_again(place, capsys):
    assert ask(place) == 0
    found = rows(place)
    assert [found[f"language{i}"]["bytes"] for i in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    for row in found.values():
        assert row["least"] <= row["pairs"] <= row["greatest"]
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("language1  ") and "contradict the merges by 0 of all pairs" in out
    assert (place / "out" / "table.txt").read_text() in out and (place / "out" / "mixture.png").stat().st_size > 5000
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["split"] == ["space"] and config["merges"] == 50 and config["sample_bytes"]["language2"] > 19_000
    assert json.loads((place / "out" / "mixture.json").read_text())["objective"] == pytest.approx(0, abs=1e-9)
    assert (place / "out" / "provenance.json").is_file()


def test_options(place, capsys):
    assert (
        ask(place, "--merges=20", "--noranges", "--ignore=0-1,5", "--bytes=5000", "--split=gpt2", "--competitors=3")
        == 0
    )
    out = capsys.readouterr().out
    assert "from 17 merges" in out and "not asked for" in out and "(--noranges)" in out
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["split"] == ["gpt2"] and set(config["sample_bytes"].values()) == {5000}
    assert sum(row["pairs"] for row in rows(place).values()) == pytest.approx(1, abs=1e-3)


def test_what_is_not_determined_is_said(place, capsys):
    (place / "samples" / "again.txt").write_bytes(TEXTS["language1"])
    (place / "samples" / "language0.txt").rename(place / "samples" / "zero.txt")
    assert ask(place) == 0
    assert "NOT determined by these samples and merges: again, language1" in capsys.readouterr().out
    assert rows(place)["again"]["least"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer="], "--tokenizer and --samples: name both"),
        (["--tokenizer=no/such.json"], "no/such.json: cannot be read: No such file"),
        (["--samples=no/such"], "--samples=no/such: no such folder"),
        (["--merges=-1"], "--merges=-1: expected 0 (all) or a positive number"),
        (["--bytes=-1"], "--bytes=-1"),
        (["--competitors=0"], "--competitors=0: expected at least 1"),
        (["--slack=-1"], "--slack=-1.0: expected 0 or a positive number"),
        (["--split=words"], "unknown splitting rule 'words'"),
        (["--ignore=3-1"], "--ignore=3-1: expected numbers of merges in 0..49"),
        (["--ignore=50"], "--ignore=50"),
        (["--ignore=0-49"], "every merge that occurs in the samples is ignored"),
        (["--workdir={place}/samples/language0.txt"], "language0.txt is no folder that can be written to"),
    ],
)
def test_refusals_are_one_line(place, arguments, message, capsys):
    assert ask(place, *(argument.replace("{place}", str(place)) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (place / "out").exists()


def test_a_tokenizer_that_does_not_say_how_it_splits(place, capsys):
    file = place / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}))
    assert ask(place) == 2 and "name --split, such as gpt2" in capsys.readouterr().err
    assert ask(place, "--split=space") == 0


def test_samples_that_are_none(place, capsys):
    (place / "samples" / "empty.txt").touch()
    assert ask(place) == 2 and "empty.txt: no text in it" in capsys.readouterr().err
    (place / "samples" / "empty.txt").rename(place / "samples" / "language0.jsonl")
    assert ask(place) == 2 and "two categories are named 'language0'" in capsys.readouterr().err
    (place / "one").mkdir()
    (place / "one" / "a.txt").write_text("a b")
    assert ask(place, f"--samples={place / 'one'}") == 2 and "at least two categories" in capsys.readouterr().err


def test_numbers_count_in_the_file():
    learned = MergeList(((97, 98), (97, 99), (97, 100)), (), (1, 3), None)  # merges 0, 2 and 4 of the file are left
    assert numbers("2-4", learned) == [1, 2] and numbers("", learned) == [] and numbers("0, 1", learned) == [0]


def test_recovery():
    halves = [[Language(i, forms=30).text(30_000, seed) for seed in range(2)] for i in range(3)]
    texts = [Category(f"l{i}", "", tuple(cut(a)), tuple(cut(b))) for i, (a, b) in enumerate(halves)]
    row, mixture = recovery(0, 60, texts=texts)
    assert row.merges == 60 and row.categories == 3 and row.pairs <= -3.5 and row.pairs <= row.uniform - 1.5
    same, _ = recovery(0, 60, texts=texts, same_text=True)
    assert same.pairs <= -6 and same.objective < 1e-8 and same.same_text
    assert recovery(0, 60, texts=texts)[1] == mixture and recovery(1, 60, texts=texts)[1] != mixture
    assert log10_mse([0.5, 0.5], np.array([0.4, 0.6])) == pytest.approx(-2)
    assert log10_mse([0.5, 0.5], np.array([0.5, 0.5])) == -np.inf
