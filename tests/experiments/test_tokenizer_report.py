"""The report on tokenizers: from the command line, its files, every kind of source, refusals."""

from __future__ import annotations

import json

import pytest

from experiments import command, study, tokenizer_report
from experiments.tokenizer_report import FLAGS, named
from jaxlm.tokenize import metrics, report
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.bpe_files import to_hf
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.loss import digest
from jaxlm.tokenize.report import Parity, UsageRow, VocabularyRow

TEXTS = {"en": "the cat sat on the mat\nthe dog sat\n" * 20, "ru": "кот и пёс\nкот спит\n" * 20}


def run(tmp_path, *arguments):
    argv = ["report", f"--workdir={tmp_path / 'out'}", *arguments]
    return command.run(tokenizer_report.main, FLAGS, tokenizer_report.__doc__, argv)


@pytest.fixture
def texts(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return ",".join(f"{name}={tmp_path / name}.txt" for name in TEXTS)


def test_files_and_numbers(tmp_path, texts, capsys):
    pytest.importorskip("matplotlib")
    tokenizer = BpeTokenizer.train(TEXTS.values(), vocab_size=290)
    tokenizer.save(tmp_path / "bpe.json")
    assert run(tmp_path, f"--tokenizers=byte,mine={tmp_path}/bpe.json", f"--texts={texts}", f"--parallel={texts}") == 0
    out = tmp_path / "out"
    rows = {(row.tokenizer, row.category): row for row in study.read(out, UsageRow)}
    assert list(rows) == sorted((name, part) for name in ("byte", "mine") for part in ("(all)", "en", "ru"))
    used = metrics.usage(tokenizer, [TEXTS["ru"]])
    row = rows["mine", "ru"]
    assert (row.tokens, row.words, row.bytes, row.vocab_size) == (used.tokens, used.words, used.bytes, 290)
    assert row.renyi_full == pytest.approx(metrics.efficiency(used.counts, 2.5, 290), abs=1e-4)
    assert rows["byte", "ru"].bytes_per_token == 1 and rows["byte", "(all)"].tokens == rows["mine", "(all)"].bytes
    kinds = {(r.tokenizer, r.kind, r.name): r.count for r in study.read(out, VocabularyRow, file="vocabulary.csv")}
    assert kinds["byte", "shared", "core"] == 256 == kinds["mine", "shared", "core"]
    assert kinds["byte", "class", "alphabetic"] == 52 and kinds["mine", "script", "CYRILLIC"] > 0
    parity = {(r.tokenizer, r.category): r.ratio for r in study.read(out, Parity, file="parity.csv")}
    assert parity["byte", "en"] == 1 and parity["mine", "ru"] > 0
    assert "never used" not in (out / "table.txt").read_text()
    config = json.loads((out / "config.json").read_text())
    assert config["tokenizers"]["mine"]["digest"] == digest(tokenizer) and config["texts"]["en"]["texts"] == 1
    assert all((out / f"{name}.png").stat().st_size for name in ("classes", "scripts", "fertility", "renyi"))
    assert (out / "table.txt").read_text().strip() in capsys.readouterr().out


def test_tokens_that_nothing_makes_are_named(tmp_path, texts):
    BpeTokenizer(((97, 98), (98, 99), (97, 257))).save(tmp_path / "odd.json")
    assert run(tmp_path, f"--tokenizers=byte,odd={tmp_path}/odd.json", f"--texts={texts}") == 0
    assert "never used:\n  odd: 1 tokens that encoding never makes: b'abc'" in (tmp_path / "out/table.txt").read_text()


def test_every_kind_of_source(tmp_path, texts, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(study, "figures", lambda *draw: "no figures")
    to_hf(BpeTokenizer.train(TEXTS.values(), vocab_size=280), tmp_path / "folder")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    sources = f"{tmp_path}/folder,file={tmp_path}/folder/tokenizer.json,{tmp_path}/gpt,bpe:270"
    assert run(tmp_path, f"--tokenizers={sources}", f"--texts={texts}") == 0
    sizes = {row.tokenizer: row.vocab_size for row in study.read(tmp_path / "out", UsageRow)}
    assert sizes["folder"] == sizes["file"] == 280 and sizes["bpe:270"] == 270 and sizes["gpt"] == 258


def test_tokens_without_bytes_of_their_own_are_counted(tmp_path, texts, monkeypatch):
    """WordPiece of a checkpoint: no vocabulary tables, but all that is counted on texts."""
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setattr(study, "figures", lambda *draw: "no figures")
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.decoder = tokenizers.decoders.WordPiece()
    model.save(str(tmp_path / "tokenizer.json"))
    assert run(tmp_path, f"--tokenizers=byte,piece={tmp_path}/tokenizer.json", f"--texts={texts}") == 0
    rows = {(row.tokenizer, row.category): row for row in study.read(tmp_path / "out", UsageRow)}
    assert rows["piece", "en"].fertility == 1 and str(rows["piece", "en"].character_coverage) == "nan"
    assert {r.tokenizer for r in study.read(tmp_path / "out", VocabularyRow, file="vocabulary.csv")} == {"byte"}


def test_words_of_a_tokenizer_that_adds_a_space(tmp_path):
    """SentencePiece's habit: with a second space in front no word would be one token."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "[UNK]": 2}, "[UNK]"))
    model.pre_tokenizer, model.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    model.save(str(tmp_path / "tokenizer.json"))
    one = tokenizer_report.tokenizer_of(str(tmp_path / "tokenizer.json"), [])
    (row,) = report.usages({"one": one}, {"en": ["the cat the"]})
    assert (row.tokens, row.single_token_words, row.split_words) == (3, 1.0, 0.0)


def test_without_arguments_it_trains_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "figures", lambda *draw: "no figures")
    monkeypatch.setattr(tokenizer_report, "SMOKE", ("byte", "bpe:300"))
    assert run(tmp_path, "--bytes=20000") == 0
    shown = capsys.readouterr().out
    assert "bpe:300" in shown and "prose" in shown and "code" in shown


def test_names_of_sources():
    assert named(["a/b.json", "x=c:1", "byte"]) == {"b.json": "a/b.json", "x": "c:1", "byte": "byte"}
    assert tokenizer_report.tokenizer_of("byte", []) == ByteTokenizer()


def test_help(capsys):
    assert command.run(tokenizer_report.main, FLAGS, tokenizer_report.__doc__, ["report", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "python -m experiments.tokenizer_report" in shown and all(f"--{name}=" in shown for name in FLAGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizers=nosuch"], "no such file or folder, and no method; methods: byte, bpe"),
        (["--tokenizers=bpe"], "it has to be trained: write bpe:2048"),
        (["--tokenizers=bpf:300"], "did you mean 'bpe'"),
        (["--tokenizers=bpe:many"], "expected a number of ids behind the colon"),
        (["--tokenizers=bpe:12"], "12"),
        (["--tokenizers=byte,byte"], "'byte' is given twice"),
        (["--tokenizers=a="], "expected [name=]source"),
        (["--tokenizers=hf"], "'hf' reads files and is not trained; name its file or folder"),
        (["--tokenizers=tiktoken:300"], "'tiktoken' reads files and is not trained"),
        (["--tokenizers={tmp}/empty.txt"], "empty.txt: there are no merges in it"),
        (["--tokenizers=byte", "--parallel=en={tmp}/en.txt,ru={tmp}/empty.txt"], "empty.txt has no text in it"),
        (["--workdir={tmp}/empty.txt"], "empty.txt is no folder that can be written to"),
        (["--workdir={tmp}/empty.txt/deeper"], "empty.txt is no folder that can be written to"),
        (["--tokenizers=byte", "--texts=no/such"], "no/such"),
        (["--tokenizers=byte", "--parallel=en=no/such"], "cannot read no/such"),
        (["--bytes=0"], "--bytes=0: expected a positive number"),
    ],
)
def test_refusals(tmp_path, texts, capsys, arguments, message):
    (tmp_path / "empty.txt").touch()
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    more = [] if any(a.startswith("--texts") for a in arguments) else [f"--texts={texts}"]
    assert run(tmp_path, *more, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
