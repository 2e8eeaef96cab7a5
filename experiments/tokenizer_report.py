"""Compare tokenizers on texts and by their vocabularies (a report in the manner of Qtok, arXiv 2410.12989).

    python -m experiments.tokenizer_report
    python -m experiments.tokenizer_report --tokenizers=byte,llama=Llama-3.2-1B,mine=bpe.json --texts=code=src,de=de.txt
    python -m experiments.tokenizer_report --tokenizers=bpe:4096,unigram:4096 --parallel=en=en.txt,de=de.txt

Without --tokenizers small ones are trained, and without --texts code and prose of Python's standard library are read.

--tokenizers, one or more, each with an optional name before "=":
    a folder                 with a tokenizer.json (or merges.txt)
    tokenizer.json, merges.txt, *.model (SentencePiece), *.tiktoken, or a file that a tokenizer of jaxlm saved
    byte                     a method that needs no training
    bpe:2048                 a method trained on the texts (all categories) with so many ids
--texts      categories (languages, kinds of text): files, folders, patterns or "stdlib:", as jaxlm.data.text reads them
--parallel   files whose lines are translations of each other, the first being the reference

Renyi efficiency (order 2.5) alone says little: read it with bytes per token. Losses of models with different tokenizers
are compared in bits per byte only (jaxlm.tokenize.loss).

Writes to --workdir: results.csv, vocabulary.csv, parity.csv (with --parallel), config.json, table.txt, provenance.json,
and where matplotlib is installed classes.png, scripts.png, fertility.png, renyi.png.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import jaxlm.tokenize
from experiments import command, provenance, study
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.data.docstrings import docstrings
from jaxlm.data.text import read
from jaxlm.tokenize import report
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.loss import digest
from jaxlm.tokenize.metrics import CLASSES
from jaxlm.tokenize.report import ALL, Parity, UsageRow, VocabularyRow

FLAGS = flags.FlagValues()
TOKENIZERS = flags.DEFINE_list("tokenizers", [], "[name=]tokenizer, separated by commas", flag_values=FLAGS)
TEXTS = flags.DEFINE_list("texts", [], "[category=]source, separated by commas", flag_values=FLAGS)
PARALLEL = flags.DEFINE_list("parallel", [], "language=file, the first is the reference", flag_values=FLAGS)
LIMIT = flags.DEFINE_integer("bytes", 500_000, "of each category that are read", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string("workdir", "runs/tokenizer_report", "where results go", flag_values=FLAGS)

SMOKE = ("byte", "bpe:512", "bpe:2048")
SMOKE_BYTES = 150_000
_SCRIPTS = 12  # bars of scripts.png


def main() -> int:
    """Measures, prints the table and writes the files."""
    require(LIMIT.value > 0, f"--bytes={LIMIT.value}: expected a positive number")
    workdir = study.folder(WORKDIR)
    limit = LIMIT.value if TEXTS.value else min(LIMIT.value, SMOKE_BYTES)
    texts = {name: texts_of(source, limit) for name, source in named(TEXTS.value).items()} or standard_texts(limit)
    parallel = {name: lines_of(source) for name, source in named(PARALLEL.value).items()}
    sources = named(TOKENIZERS.value or SMOKE)
    tokenizers = {name: tokenizer_of(source, texts.values()) for name, source in sources.items()}

    parities = report.parities(tokenizers, parallel, next(iter(parallel))) if parallel else []
    usages = report.usages(tokenizers, texts)
    vocabularies = report.vocabularies(tokenizers)

    workdir.mkdir(parents=True, exist_ok=True)
    study.save(usages, workdir, UsageRow)
    study.save(vocabularies, workdir, VocabularyRow, "vocabulary.csv")
    if parities:
        study.save(parities, workdir, Parity, "parity.csv")
    config = {
        "tokenizers": {
            name: {"source": sources[name], "vocab_size": one.vocab_size, "digest": _digest(one)}
            for name, one in tokenizers.items()
        },
        "texts": {name: {"texts": len(some), "bytes": _size(some)} for name, some in texts.items()},
        "parallel": {name: len(lines) for name, lines in parallel.items()},
        "bytes": limit,
        "renyi_order": report.ORDER,
    }
    (workdir / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(
        [report.table(usages), *_vocabulary_tables(vocabularies), *_parity_table(parities), *_never_used(tokenizers)]
    )
    (workdir / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(
        study.figures(
            functools.partial(stacked, vocabularies, "class", "classes of tokens", workdir / "classes.png"),
            functools.partial(stacked, vocabularies, "script", "scripts of alphabetic tokens", workdir / "scripts.png"),
            functools.partial(fertility, usages, workdir / "fertility.png"),
            functools.partial(renyi, usages, workdir / "renyi.png"),
        )
    )
    provenance.write(workdir)
    return 0


# What is compared.


def named(items: Sequence[str]) -> dict[str, str]:
    """``[name=]source`` as a table; a source without a name is called by the last part of its path."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, source = item.partition("=")
        name, source = (name, source) if equals else (Path(item).name or item, item)
        require(name and source, f"{item!r}: expected [name=]source")
        require(name not in found, f"{name!r} is given twice; write name=source to tell them apart")
        found[name] = source
    return found


def tokenizer_of(source: str, texts: Iterable[Sequence[str]]) -> Tokenizer:
    """The tokenizer of a file or folder, or of a method, which is trained on ``texts`` if a size is given."""
    path = Path(source)
    if path.is_dir():
        kind = "bpe" if (path / "merges.txt").is_file() and not (path / "tokenizer.json").is_file() else "hf"
        return _merges(path / "merges.txt") if kind == "bpe" else registry.get("tokenizer", "hf")(source)
    if path.is_file():
        return _from_file(path)
    method, colon, size = source.partition(":")
    if not colon and method not in registry.methods("tokenizer"):
        raise ConfigError(
            f"--tokenizers={source}: no such file or folder, and no method; methods: "
            f"{', '.join(registry.methods('tokenizer'))}, as byte or bpe:2048"
        )
    choose("tokenizer", method, registry.methods("tokenizer"))
    require(not colon or size.isdecimal(), f"--tokenizers={source}: expected a number of ids behind the colon")
    kind = registry.get("tokenizer", method)
    if any(field.name == "path" for field in dataclasses.fields(kind)):
        raise ConfigError(f"--tokenizers={source}: {method!r} reads files and is not trained; name its file or folder")
    if colon:
        return kind.train([text for several in texts for text in several], vocab_size=int(size))
    if method != "byte":
        raise ConfigError(f"--tokenizers={source}: it has to be trained: write {source}:2048 for 2048 ids")
    return kind()


def texts_of(source: str, limit: int) -> list[str]:
    """The documents of a source, the first ``limit`` bytes of them."""
    found, left = [], limit
    for document in read(source).documents:
        if left <= 0:
            break
        piece = document.text[:left]
        found.append(piece.decode("utf-8", "ignore"))  # the cut may go through a character
        left -= len(piece)
    return found


def standard_texts(limit: int) -> dict[str, list[str]]:
    """Code and prose that every Python has: its library's sources, and their docstrings."""
    code, prose, size = [], [], {"code": 0, "prose": 0}
    for document in read("stdlib:").documents:
        if min(size.values()) >= limit:
            break
        if size["code"] < limit:
            code.append(document.text.decode())
            size["code"] += len(document.text)
        for _, _, text in docstrings(document.text.decode()) or ():
            if size["prose"] < limit:
                prose.append(text)
                size["prose"] += len(text.encode())
    return {"code": code, "prose": prose}


def lines_of(source: str) -> list[str]:
    """The lines of a file of parallel text."""
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--parallel: cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--parallel: {source} is not UTF-8") from None
    require(any(map(str.strip, lines)), f"--parallel: {source} has no text in it")
    return lines


def _from_file(path: Path) -> Tokenizer:
    if path.suffix == ".model":
        return registry.get("tokenizer", "sentence_piece")(str(path))
    if path.suffix == ".tiktoken":
        return registry.get("tokenizer", "tiktoken")(str(path))
    if path.suffix == ".txt":
        return _merges(path)
    if path.name == "tokenizer.json":
        return registry.get("tokenizer", "hf")(str(path))
    return jaxlm.tokenize.load(path)


def _merges(path: Path) -> Tokenizer:
    from jaxlm.tokenize.bpe_files import from_hf

    tokenizer = from_hf(path).tokenizer
    require(tokenizer.merges, f"--tokenizers: {path}: there are no merges in it")
    return tokenizer


def _never_used(tokenizers: Mapping[str, Tokenizer]) -> list[str]:
    """Tokens and merges of byte pair encodings that no text brings out."""
    from jaxlm.tokenize.bpe_files import notes_of

    lines = [f"  {name}: {note}" for name, one in tokenizers.items() for note in notes_of(one)]
    return ["\n".join(["never used:", *lines])] if lines else []


def _digest(tokenizer: Tokenizer) -> str:
    return digest(tokenizer) if report.has_bytes(tokenizer) else ""


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode("utf-8", "surrogateescape")) for text in texts)


# What is shown.


def _vocabulary_tables(rows: Sequence[VocabularyRow]) -> list[str]:
    """Classes, scripts, pieces and the shared core, a line a tokenizer."""
    tokenizers = list(dict.fromkeys(row.tokenizer for row in rows))
    found = []
    for kind, title in (
        ("class", "classes of tokens"),
        ("script", "scripts of alphabetic tokens"),
        ("piece", "alphabetic tokens: word-initial, inner, in both forms"),
        ("shared", "tokens that all vocabularies have (core), and that no other has (own)"),
    ):
        lines = [f"{title}:"]
        for name in tokenizers:
            parts = [f"{row.name} {row.count}" for row in rows if (row.tokenizer, row.kind) == (name, kind)]
            more = [f"and {len(parts) - _SCRIPTS} more"] if len(parts) > _SCRIPTS else []
            lines.append(f"  {name}: {', '.join(parts[:_SCRIPTS] + more) or 'none'}")
        found.append("\n".join(lines))
    return found if tokenizers else []


def _parity_table(rows: Sequence[Parity]) -> list[str]:
    lines = [f"  {row.tokenizer}  {row.category}  {row.ratio:.3f}" for row in rows]
    return ["\n".join(["tokens over those of the reference, on parallel text:", *lines])] if rows else []


def stacked(rows: Sequence[VocabularyRow], kind: str, title: str, path: Path) -> Path:
    """Shares of the vocabularies as stacked bars."""
    import matplotlib.pyplot as plt

    chosen = [row for row in rows if row.kind == kind]
    tokenizers = list(dict.fromkeys(row.tokenizer for row in rows))
    totals: dict[str, float] = {}
    for row in chosen:
        totals[row.name] = totals.get(row.name, 0.0) + row.share
    names = sorted(totals, key=lambda name: -totals[name])
    names = [name for name in CLASSES if name in totals] if kind == "class" else names[:_SCRIPTS]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.45 * max(1, len(tokenizers))))
    left = np.zeros(len(tokenizers))
    for i, name in enumerate(names):
        shares = np.array([sum(r.share for r in chosen if (r.tokenizer, r.name) == (t, name)) for t in tokenizers])
        axes.barh(tokenizers, shares, left=left, label=name, color=plt.get_cmap("tab20")(i % 20))
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="share of the vocabulary", title=title)
    if names:
        axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return study.saved(figure, path)


def fertility(rows: Sequence[UsageRow], path: Path) -> Path:
    """Tokens a word, bars by category."""
    import matplotlib.pyplot as plt

    chosen = [row for row in rows if row.category != ALL]
    categories = list(dict.fromkeys(row.category for row in chosen))
    tokenizers = list(dict.fromkeys(row.tokenizer for row in chosen))
    figure, axes = plt.subplots(figsize=(2 + 1.4 * len(categories), 3.6))
    width = 0.8 / len(tokenizers)
    for i, name in enumerate(tokenizers):
        values = [row.fertility for row in chosen if row.tokenizer == name]
        axes.bar(np.arange(len(categories)) + (i + 0.5) * width - 0.4, values, width, label=name)
    axes.set_xticks(range(len(categories)), categories)
    axes.set(ylabel="tokens per word")
    axes.legend(fontsize="small", frameon=False)
    return study.saved(figure, path)


def renyi(rows: Sequence[UsageRow], path: Path) -> Path:
    """Renyi efficiency against bytes per token, a point for each tokenizer and category."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 4))
    markers: dict[str, Any] = dict(zip(dict.fromkeys(row.category for row in rows), "osv^D*PX<>" * 20, strict=False))
    for i, name in enumerate(dict.fromkeys(row.tokenizer for row in rows)):
        for row in (row for row in rows if row.tokenizer == name):
            axes.plot(row.bytes_per_token, row.renyi_observed, markers[row.category], color=f"C{i % 10}")
            at = (row.bytes_per_token, row.renyi_observed)
            axes.annotate(f"{name}, {row.category}", at, (4, 3), textcoords="offset points", fontsize=6)
    axes.set(xlabel="bytes per token", ylabel=f"Renyi efficiency, order {report.ORDER}, of the ids seen")
    axes.grid(alpha=0.3)
    return study.saved(figure, path)


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
