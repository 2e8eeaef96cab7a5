"""The text of the studies that train language models: the standard library's docstrings, a document each."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxlm.data.pack import TokenStream
from jaxlm.data.records import Document
from jaxlm.data.text import Corpus, read
from jaxlm.tokenize.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents to learn from and documents held out.

    Attributes:
      source: of `jaxlm.data.text.read`.
      most: bytes of training documents at most, from the first on; 0 for all.
      held_out: bytes of validation documents at most.
    """

    source: str = "stdlib:docstrings"
    most: int = 0
    held_out: int = 50_000

    @functools.cached_property
    def train(self) -> Corpus:
        return _first(_corpus(self.source).part("train"), self.most)

    @functools.cached_property
    def test(self) -> Corpus:
        return _first(_corpus(self.source).part("validation"), self.held_out)

    @functools.cached_property
    def train_texts(self) -> list[bytes]:
        return [document.text for document in self.train.documents]

    @functools.cached_property
    def test_texts(self) -> list[bytes]:
        return [document.text for document in self.test.documents]


@functools.cache
def _corpus(source: str) -> Corpus:
    return read(source)


def _first(corpus: Corpus, most: int) -> Corpus:
    """The first documents, up to ``most`` bytes; at least one."""
    sizes = np.cumsum([len(document.text) for document in corpus.documents])
    number = max(1, int(np.searchsorted(sizes, most, side="right"))) if most else len(sizes)
    return Corpus(corpus.source, corpus.documents[:number])


def stream_of(tokenizer: Tokenizer, texts: list[bytes]) -> TokenStream:
    return TokenStream.encode([Document(str(i), text) for i, text in enumerate(texts)], tokenizer)


def with_typos(texts: list[bytes], share: float, seed: int) -> list[bytes]:
    """Texts in which so many of the ASCII letters are another one, of the same case."""
    draws = np.random.default_rng(seed)
    changed = []
    for text in texts:
        data = np.frombuffer(text, np.uint8).copy()
        lower = data | 0x20
        letters = np.flatnonzero((lower >= ord("a")) & (lower <= ord("z")))
        hit = letters[draws.random(len(letters)) < share]
        data[hit] = (data[hit] & 0xE0) + 1 + ((data[hit] & 0x1F) - 1 + draws.integers(1, 26, len(hit))) % 26
        changed.append(data.tobytes())
    return changed


def with_swaps(texts: list[bytes], share: float, seed: int) -> list[bytes]:
    """Texts in which so many pairs of neighbouring ASCII letters, none of them in two pairs, are exchanged."""
    draws = np.random.default_rng(seed)
    changed = []
    for text in texts:
        data = np.frombuffer(text, np.uint8).copy()
        lower = data | 0x20
        letter = (lower >= ord("a")) & (lower <= ord("z"))
        hit = np.flatnonzero(letter[:-1] & letter[1:] & (draws.random(max(0, len(data) - 1)) < share))
        keep = np.concatenate([[True], np.diff(hit) > 1]) if len(hit) else np.zeros(0, bool)
        first = hit[keep]
        data[first], data[first + 1] = data[first + 1], data[first]
        changed.append(data.tobytes())
    return changed


def in_capitals(texts: list[bytes]) -> list[bytes]:
    """Texts whose ASCII letters are upper case."""
    return [text.upper() for text in texts]


def make(name: str, texts: list[bytes], vocab_size: int, **args: Any) -> Tokenizer:
    """A registered tokenizer trained on texts; ``vocab_size`` is not asked of those whose size the alphabet says."""
    from jaxlm.core import registry

    method = registry.get("tokenizer", name)
    return method.train(texts, **args) if name in ("byte", "character") else method.train(texts, vocab_size, **args)
