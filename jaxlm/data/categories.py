"""Texts of several kinds that a computer has already, each in two halves, and generated languages where one is missing.

For questions about mixtures (which shares of code, prose and languages was this trained on?) the kinds must differ as
real ones do. The eight of `NAMES` are found beside a running Python: the standard library's code without its
docstrings, the docstrings, C headers, licences, and manual pages in four languages. What is not there, or too short, is
replaced by a generated `Language`; `listing` says which, and results are only compared where it says the same.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import re
import sysconfig
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.data import text as corpus
from jaxlm.data.docstrings import Docstring, docstrings

PIECE = 2048  # bytes
SCRIPTS = {"latin": ord("a"), "cyrillic": ord("а"), "cjk": 0x4E00}  # where the code points of a..z go
LICENCES, MANUALS = "/usr/share/common-licenses", "/usr/share/man"
_CONSONANTS = (*"bcdfghjklmnprstvz", "br", "ch", "dr", "fl", "gr", "kl", "pr", "sk", "st", "tr")
_VOWELS = (*"aeiouy", "ai", "au", "ei", "ou")
_CODAS = ("", "", "", *"klmnrstx", "ft", "nd", "rt", "sk", "st")
# roff's escapes: fonts and sizes, accented letters, other named characters, hyphens and spaces.
_FONT = re.compile(r"\\(?:f(?:\[[^]]*\]|\(..|.)|s[-+]?\d+|[&|^/,:])")
_ACCENTED = re.compile(r"\\\(([:'`^,~])([A-Za-z])")
_ACCENTS = {":": "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", ",": "\u0327", "~": "\u0303"}
_NAMED = re.compile(r"\\\*?(?:\((..)|\[([^]]*)\])")
_NAMES = {"aq": "'", "Aq": "'", "dq": '"', "lq": '"', "rq": '"', "ss": "ß", "Fo": "«", "Fc": "»", "co": "©", "mc": "µ"}
_SINGLE = re.compile(r"\\([-e ~\\'`])")
_SINGLES = {"e": "\\", "~": " "}


@dataclasses.dataclass(frozen=True)
class Category:
    """A kind of text: ``train`` and ``count`` are halves with no piece in common; ``source`` says where it is from."""

    name: str
    source: str
    train: tuple[bytes, ...]
    count: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Language(Spec):
    """Words of syllables, drawn by Zipf's law: rank r has weight r ** -``zipf``.

    Attributes:
      number: which language; others have other syllables.
      script: of `SCRIPTS`; latin letters take one byte each, cyrillic two, cjk three.
      forms: stems there are, at most 1000.
      suffixes: endings a stem may have, at most 9.
      zipf: exponent of the stems' weights.
    """

    number: int
    script: str = "latin"
    forms: int = 80
    suffixes: int = 4
    zipf: float = 1.05

    def check(self) -> None:
        choose("script", self.script, SCRIPTS)
        require(1 <= self.forms <= 1000, f"Language.forms: expected 1..1000, got {self.forms}")
        require(0 <= self.suffixes <= 9, f"Language.suffixes: expected 0..9, got {self.suffixes}")

    @functools.cached_property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(stems by rank, endings) in the language's script; the first ending is none."""
        rng = np.random.default_rng([self.number, 0])

        def pick(table: list[str], n: int) -> list[str]:
            return [table[int(i)] for i in rng.choice(len(table), n, replace=False)]

        onsets, vowels, codas = pick([*_CONSONANTS], 8), pick([*_VOWELS], 3), pick([*_CODAS], 4)
        table = pick([a + b + c for a in onsets for b in vowels for c in codas], 40)
        stems: dict[str, None] = {}
        while len(stems) < self.forms:
            stems["".join(rng.choice(table, rng.integers(1, 4)))] = None
        endings = pick([b + c for b in vowels for c in _CODAS], self.suffixes)
        return tuple(map(self._written, stems)), ("", *map(self._written, endings))

    def text(self, size: int, seed: int = 0) -> bytes:
        """As many lines of ten words as fit ``size`` bytes."""
        stems, endings = self.words
        weights = np.arange(1, len(stems) + 1) ** -self.zipf
        rng, lines, room = np.random.default_rng([self.number, 1, seed]), [], size
        while True:
            stem = rng.choice(len(stems), 10, p=weights / weights.sum())
            words = (stems[s] + endings[e] for s, e in zip(stem, rng.integers(0, len(endings), 10), strict=True))
            line = " ".join(words).encode() + b"\n"
            room -= len(line)
            if room < 0:
                return b"".join(lines)
            lines.append(line)

    def _written(self, word: str) -> str:
        return "".join(chr(ord(c) - ord("a") + SCRIPTS[self.script]) for c in word)


def categories(
    seed: int = 0,
    *,
    size: int = 1_000_000,
    least: int = 100_000,
    names: Sequence[str] = (),
    licences: str = LICENCES,
    manuals: str = MANUALS,
) -> tuple[Category, ...]:
    """The kinds of text of ``names``, by default all, each cut into pieces that are dealt to two halves.

    Args:
      seed: of the dealing, and of what generated languages say.
      size: most bytes of a category.
      least: a source with fewer is replaced by a generated language of ``size`` bytes.
      names: of `NAMES`, or ``"generated_3"`` for a language by its number.
      licences, manuals: folders to look in.

    Raises:
      ConfigError: an unknown name, or sizes that leave a half empty.
    """
    require(2 * PIECE <= least <= size, f"expected {2 * PIECE} <= least <= size, got least {least} and size {size}")
    chosen = [(name, re.fullmatch(r"generated_(\d+)", name)) for name in names or NAMES]
    for name, generated in chosen:
        if not generated:
            choose("category", name, _READERS)
    folders = {"licences": Path(licences), **{f"man_{language}": Path(manuals, language) for language in LANGUAGES}}
    found = []
    for i, (name, generated) in enumerate(chosen):
        number, text, source = int(generated[1]) if generated else i, b"", ""
        if not generated:
            source = _READERS[name][0]
            text = _text(name, folders.get(name), size)
            if len(text) < least:
                source = f"{len(text)} bytes of {source} are too few: "
        if len(text) < least:
            language = Language(number, tuple(SCRIPTS)[number % len(SCRIPTS)])
            text = language.text(size, seed)
            name, source = f"generated_{number}", f"{source}generated language {number} in {language.script}"
        pieces = cut(text)
        order = np.random.default_rng([seed, i]).permutation(len(pieces))
        halves = [tuple(pieces[j] for j in sorted(order[part::2])) for part in range(2)]
        found.append(Category(name, source, halves[0], halves[1]))
    require(len({c.name for c in found}) == len(found), f"categories repeat: {[c.name for c in found]}")
    return tuple(found)


def listing(found: Sequence[Category]) -> str:
    """A line for each category: its name, the bytes of its halves, a hash of them, and its source."""
    width = max(len(c.name) for c in found)
    lines = []
    for c in found:
        sizes = [sum(map(len, half)) for half in (c.train, c.count)]
        digest = hashlib.sha256(b"\0".join((*c.train, *c.count))).hexdigest()[:12]
        lines.append(f"{c.name:<{width}} {sizes[0]:>9,} {sizes[1]:>9,}  {digest}  {c.source}")
    return "\n".join(lines) + "\n"


def cut(text: bytes, size: int = PIECE) -> list[bytes]:
    """Pieces of as many whole lines as fit ``size`` (a longer line is one of its own); joined they are the text."""
    pieces: list[bytes] = []
    current: list[bytes] = []
    held = 0
    for line in text.splitlines(keepends=True):
        if current and held + len(line) > size:
            pieces.append(b"".join(current))
            current, held = [], 0
        current.append(line)
        held += len(line)
    return [*pieces, b"".join(current)] if current else pieces


@functools.cache
def _text(name: str, folder: Path | None, size: int) -> bytes:
    """The texts of a category behind one another until there are ``size`` bytes, cut after a line."""
    found: list[bytes] = []
    total = 0
    for text in _READERS[name][1](folder):
        found.append(text)
        total += len(text)
        if total >= size:
            break
    data = b"".join(found)
    return data if len(data) <= size else data[: data.rfind(b"\n", 0, size) + 1]


def _mixing(name: str) -> bytes:
    """Sorts files in an order that mixes their folders and is the same everywhere."""
    return hashlib.sha256(name.encode()).digest()


def _files(root: Path | None, pattern: str) -> list[Path]:
    """Files below a folder, each once though it has several names; none if the folder is not there."""
    if root is None or not root.is_dir():
        return []
    found = {path.resolve(): path.relative_to(root).as_posix() for path in sorted(root.rglob(pattern))}
    return sorted((path for path in found if path.is_file()), key=lambda path: _mixing(found[path]))


def _sources() -> Iterator[tuple[str, list[Docstring]]]:
    """The standard library's modules with their docstrings."""
    try:
        documents = corpus.read("stdlib:").documents
    except ConfigError:
        return
    for document in sorted(documents, key=lambda d: _mixing(d.name)):
        text = document.text.decode()
        found = docstrings(text)
        if found is not None:
            yield text, found


def _code(_: Path | None) -> Iterator[bytes]:
    for text, found in _sources():
        lines = text.splitlines(keepends=True)
        for first, last, _doc in found:
            lines[first - 1 : last] = [""] * (last - first + 1)
        yield "".join(lines).encode()


def _docstrings(_: Path | None) -> Iterator[bytes]:
    for _text, found in _sources():
        yield "".join(f"{doc.strip()}\n\n" for *_, doc in found).encode()


def _headers(_: Path | None) -> Iterator[bytes]:
    for path in _files(Path(sysconfig.get_path("include")), "*.h"):
        yield _utf8(path)


def _licences(folder: Path | None) -> Iterator[bytes]:
    for path in _files(folder, "*"):
        yield _utf8(path)


def _pages(folder: Path | None) -> Iterator[bytes]:
    for path in _files(folder, "man*/*"):
        yield _prose(_utf8(path).decode())


def _prose(page: str) -> bytes:
    """A manual page without roff's requests and escapes, which are the same in all languages."""
    lines = [line for line in page.splitlines() if not line.startswith((".", "'"))]
    text = _FONT.sub("", "\n".join(lines))
    text = _ACCENTED.sub(lambda m: unicodedata.normalize("NFC", m[2] + _ACCENTS[m[1]]), text)
    text = _NAMED.sub(lambda m: _NAMES.get(m[1] or m[2], ""), text)
    text = _SINGLE.sub(lambda m: _SINGLES.get(m[1], m[1]), text)
    return text.encode() + b"\n"


def _utf8(path: Path) -> bytes:
    """A file's text, unpacked; nothing if it cannot be read or is in another encoding."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return b""
    return data


LANGUAGES = ("de", "fr", "es", "pl")
# name -> (what it is, its texts)
_READERS: dict[str, tuple[str, Callable[[Path | None], Iterator[bytes]]]] = {
    "code": ("code of Python's standard library without docstrings", _code),
    "docstrings": ("docstrings of Python's standard library", _docstrings),
    "c_headers": ("C headers of Python", _headers),
    "licences": ("licences", _licences),
    **{f"man_{language}": (f"manual pages in {language}", _pages) for language in LANGUAGES},
}
NAMES = tuple(_READERS)
