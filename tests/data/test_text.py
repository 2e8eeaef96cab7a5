"""Documents from files: every kind of source, the split, and one-line errors for what cannot be read."""

import gzip
import hashlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.data.records import Document
from jaxlm.data.text import PARTS, Corpus, _cut, part_of, read


@pytest.fixture(scope="module")
def stdlib() -> Corpus:
    return read("stdlib:")


def texts(corpus):
    return [document.text for document in corpus.documents]


def refused(match, source, **options):
    with pytest.raises(ConfigError, match=match) as error:
        read(str(source), **options)
    assert "\n" not in str(error.value)


def test_stdlib_is_the_sorted_sources(stdlib):
    names = [document.name for document in stdlib.documents]
    assert names == sorted(names) and {"abc.py", "json/decoder.py"} <= set(names)
    assert not [n for n in names if "site-packages" in n or "/test/" in f"/{n}" or not n.endswith(".py")]
    assert stdlib.num_bytes > 5_000_000
    assert Path(json.__file__).with_name("decoder.py").read_bytes() in texts(stdlib)
    assert stdlib.sha256 == hashlib.sha256(b"\n".join(texts(stdlib))).hexdigest()


def test_split_is_a_partition_by_contents(stdlib):
    parts = {name: stdlib.part(name).documents for name in PARTS}
    assert sorted(d.name for docs in parts.values() for d in docs) == [d.name for d in stdlib.documents]
    shares = {name: len(docs) / len(stdlib.documents) for name, docs in parts.items()}
    assert 0.85 < shares["train"] < 0.95 and 0.02 < shares["validation"] < 0.09 and 0.02 < shares["test"] < 0.09
    some = parts["validation"][0]
    assert part_of(Document("elsewhere", some.text)) == "validation"
    assert {part_of(Document("d", b"", str(i).encode())) for i in range(200)} == set(PARTS)  # the prompt counts too


def test_hash_sees_order_contents_and_prompts():
    a, b = Document("a", b"a"), Document("b", b"b")
    corpora = [(a, b), (b, a), (a,), (Document("a", b"b", b"a"),), (a, Document("b", b"c"))]
    assert len({Corpus("x", documents).sha256 for documents in corpora}) == len(corpora)


def test_text_folder_and_pattern(tmp_path):
    for name, text in {"b.txt": "bé", "a/z.md": "z", "a/empty.txt": "", ".hidden": "no", ".git/x": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    folder = read(str(tmp_path))
    names = [Path(d.name).relative_to(tmp_path).as_posix() for d in folder.documents]
    assert names == ["a/empty.txt", "a/z.md", "b.txt"]
    assert folder.num_bytes == 4
    assert texts(read(str(tmp_path / "b.txt"))) == ["bé".encode()]
    assert texts(read(str(tmp_path / "**" / "*.md"))) == [b"z"]
    (tmp_path / "c[1].txt").write_text("brackets")
    assert texts(read(str(tmp_path / "c[1].txt"))) == [b"brackets"]


LINES = [{"text": "one\nline"}, {"text": "zwei", "id": 2}, {"prompt": "2+2=", "completion": "4"}]
DOCUMENTS = [(b"one\nline", b""), (b"zwei", b""), (b"4", b"2+2=")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path, suffix):
    data = ("\ufeff" + "\n\n".join(map(json.dumps, LINES)) + "\r\n").encode()
    if suffix == ".gz":
        data = gzip.compress(data[:20]) + gzip.compress(data[20:])
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        data = zstandard.compress(data[:20]) + zstandard.compress(data[20:])
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(data)
    corpus = read(str(path))
    assert [(d.text, d.prompt) for d in corpus.documents] == DOCUMENTS
    assert [d.name for d in corpus.documents] == [f"{path}:{n}" for n in (1, 3, 5)]
    if suffix:
        path.write_bytes(data[:-3])
        refused("damaged", path)
        path.write_bytes(b"not packed at all")
        refused("damaged", path)


def test_json_fields(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"body": "b", "prompt": "p", "completion": "c"}')
    assert texts(read(str(path), field="body")) == [b"b"]
    assert [(d.prompt, d.text) for d in read(str(path)).documents] == [(b"p", b"c")]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2], "text": ["eins", "zwé"], "raw": [b"\xff", b"x"]}), path)
    assert texts(read(str(path))) == [b"eins", "zwé".encode()]
    assert texts(read(str(path), field="raw", binary=True)) == [b"\xff", b"x"]
    refused("d.parquet:1: field 'raw': not UTF-8 at byte 0", path, field="raw")
    refused("d.parquet:1: field 'n': expected text, got int", path, field="n")
    refused("no field 'body', nor prompt and completion; the fields there: n, text, raw", path, field="body")
    parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), path)
    assert [(d.prompt, d.text) for d in read(str(path)).documents] == [(b"a", b"b")]
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    refused("d.parquet:2: field 'text': expected text, got NoneType", path)
    path.write_bytes(b"PAR1 no")
    refused("d.parquet: cannot be read as parquet", path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"d.jsonl:2: not a JSON value"),
        (b"[1]", r"d.jsonl:2: expected a JSON object, got list"),
        (b'{"body": "x", "id": 1}', r"d.jsonl:2: no field 'text'.* the fields there: body, id"),
        (b"{}", r"the fields there: \(none\)"),
        (b'{"text": 3}', r"d.jsonl:2: field 'text': expected text, got int"),
        (b'{"text": null}', r"got NoneType"),
        (b'{"prompt": "p"}', r"the fields there: prompt"),
        (b'{"prompt": "p", "completion": []}', r"field 'completion': expected text, got list"),
        (b'{"text": "\xff"}', r"d.jsonl:2: not UTF-8 at byte 10 \(0xff\); binary=True takes any bytes"),
        (b'{"text": "\\ud800"}', r"d.jsonl:2: field 'text': not Unicode text \(lone surrogate at character 0\)"),
        (b"[" * 100_000, r"nested too deeply"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    refused(message, path)


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    refused(r"latin.txt: not UTF-8 at byte 3 \(0xe9\); binary=True takes any bytes", path)
    assert texts(read(str(path), binary=True)) == [b"caf\xe9"]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800"}')
    assert texts(read(str(path), binary=True)) == [b"caf\xe9", b"\xed\xa0\x80"]


def test_nothing_to_read(tmp_path, monkeypatch):
    refused("no such file or folder; expected one, a pattern, or 'stdlib:'", tmp_path / "no.txt")
    refused(r"\(empty path\): no such file", "")
    refused("cannot be read: File name too long", "x" * 300)
    refused("no file matches", tmp_path / "*.txt")
    refused("an empty folder", tmp_path)
    refused("unknown stdlib corpus 'test'; did you mean 'tests'", "stdlib:test")
    refused("chunk: expected 0", "stdlib:", chunk=-1)
    for name in ("empty.txt", "blank.jsonl"):
        (tmp_path / name).write_text("\n" if name.endswith("jsonl") else "")
        refused("no text in it", tmp_path / name)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("loop: cannot be read", tmp_path / "loop")

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused("empty.txt: cannot be read: Permission denied", tmp_path / "empty.txt")
    monkeypatch.setattr(os, "scandir", denied)
    refused(f"{tmp_path}: cannot be read: Permission denied", tmp_path)


@pytest.mark.parametrize(("name", "package"), [("d.txt.zst", "zstandard"), ("d.parquet", "pyarrow")])
def test_missing_extra(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    real = importlib.import_module

    def absent(module, *rest):
        if module.split(".")[0] == package:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    refused(rf"{name}: reading it needs {package}: pip install 'jaxlm\[data\]'", tmp_path / name)


@settings(max_examples=60)
@given(st.text(alphabet="aé漢😀\n"), st.integers(4, 9))
def test_cut_keeps_everything_and_whole_characters(text, size):
    data = text.encode()
    pieces = [piece.text for piece in _cut(Document("d", data), size)]
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= size for piece in pieces if data)
    assert "".join(piece.decode() for piece in pieces) == text
    with_prompt = Document("d", data, b"never cut from its prompt")
    assert list(_cut(with_prompt, size)) == [with_prompt]


def test_a_text_of_too_few_documents_is_split_in_pieces(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i}\n" for i in range(2000)))
    whole = read(str(path))
    parts = [whole.part(name) for name in PARTS]
    assert len(whole.documents) == 1 and [part.num_bytes > 0 for part in parts] == [True] * 3
    assert sum(part.num_bytes for part in parts) == whole.num_bytes < 2 * parts[0].num_bytes
    assert sorted(piece for part in parts for piece in b"".join(texts(part)).splitlines()) == sorted(
        path.read_bytes().splitlines()
    )
    cut = read(str(path), chunk=100)
    assert b"".join(texts(cut)) == path.read_bytes() and all(t.endswith(b"\n") for t in texts(cut))
    assert all(cut.part(name).num_bytes for name in PARTS)
    with pytest.raises(ConfigError, match="unknown part of a corpus 'valid'"):
        cut.part("valid")


def test_too_little_text_to_set_any_aside(tmp_path):
    path = tmp_path / "word.txt"
    path.write_text("word")
    with pytest.raises(ConfigError, match=r"part of .*word.txt is empty: 4 bytes in 1 documents .*give more text"):
        [read(str(path)).part(name) for name in PARTS]


def test_text_to_batches_needs_numpy_only(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    code = """
import sys
from jaxlm.data import loader, pack, text
from jaxlm.tokenize.byte import ByteTokenizer
rows = pack.Packed(pack.TokenStream.encode(text.read(sys.argv[1]).documents, ByteTokenizer()), length=4)
print(loader.Loader(rows, batch_size=2, seed=0)(0)["tokens"].shape)
print(sorted({"jax", "flax", "pyarrow", "zstandard"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.txt")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.split("\n")[:2] == ["(2, 4)", "[]"]
