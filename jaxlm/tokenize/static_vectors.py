"""Static vectors of tokens from plain text: positive pointwise mutual information, factorised.

Paper: Levy and Goldberg 2014, Neural Word Embedding as Implicit Matrix Factorization; Levy, Goldberg and Dagan 2015.
Formula: with n(a, b) the number of times b stands within ``window`` tokens of a, n(b)^0.75 the smoothed counts of
contexts, M[a, b] = max(0, log n(a, b) sum(n^0.75) / (n(a) n(b)^0.75)), and the vectors are U sqrt(S) of its truncated
SVD. This is our stand-in for fastText, which FOCUS, WECHSEL and OFA take their auxiliary vectors from: it needs no
download and no training loop, and lacks fastText's sharing of character n-grams between words.

    static_vectors(tokenizer, texts)      a vector of each token, from the tokens around it (FOCUS)
    subword_vectors(tokenizer, texts)     of each token, the sum of the vectors of the words it is part of, by count
                                          (WECHSEL, OFA): tokens of two tokenizers are then in one space
    read_words(path), read_rows(path)     from files of others

Measured: 1.0 MB of the standard library, 4096 tokens, width 64: 6.5 CPU-seconds; by words for two tokenizers 22.
"""

from __future__ import annotations

import collections
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import Tokenizer, as_bytes

Vectors = NDArray[np.float64]

SMOOTHING = 0.75  # exponent of context counts (Mikolov et al. 2013; Levy et al. 2015)
CONTEXTS = 4096  # columns of the matrix: the most frequent tokens, which carry most of the information
_WORD = re.compile(rb"\s*[^\s]+")
_BARE = re.compile(rb"[A-Za-z\x80-\xff]+|[0-9]+|[^A-Za-z0-9\s\x80-\xff]+")


def static_vectors(
    tokenizer: Tokenizer,
    texts: Iterable[str | bytes],
    dim: int = 64,
    *,
    window: int = 5,
    seed: int = 0,
) -> Vectors:
    """A vector of each token id, float64 [V, dim]; zeros for tokens that the texts do not have.

    Args:
      texts: documents; windows do not cross from one to the next.
      dim: A, the width. Where there are fewer contexts than that, the last columns are zero.
      window: how many tokens to either side are a token's contexts.
      seed: of the randomised SVD's probe.

    Raises `ConfigError` for texts without two neighbouring tokens.
    """
    return _factorised([tokenizer.encode(text) for text in texts], tokenizer.vocab_size, dim, window, seed)


def subword_vectors(
    tokenizers: Sequence[Tokenizer],
    texts: Iterable[str | bytes],
    dim: int = 64,
    *,
    window: int = 5,
    seed: int = 0,
) -> list[Vectors]:
    """Vectors of each tokenizer's tokens in one space, float64 [V, dim] each, by `spread` from the words of the texts.

    The arguments are those of `static_vectors`; words are runs of letters, of digits, or of other signs.
    """
    texts = [as_bytes(text) for text in texts]
    index: dict[bytes, int] = {}
    documents = [
        np.array([index.setdefault(word, len(index)) for word in _BARE.findall(text)], np.int64) for text in texts
    ]
    vectors = _factorised(documents, max(len(index), 1), dim, window, seed)
    table, counts = {word: vectors[i] for word, i in index.items()}, words_of(texts)
    return [spread(tokenizer, table, counts, dim) for tokenizer in tokenizers]


def spread(tokenizer: Tokenizer, words: Mapping[bytes, NDArray], counts: Mapping[bytes, int], dim: int) -> Vectors:
    """A vector of each token, [V, dim]: the mean of the vectors of the words that contain it, by their counts
    (WECHSEL's construction); zeros for tokens of no known word.

    Args:
      words: bytes of a word, without spaces around it -> its vector [dim].
      counts: how often each run of text occurs (words with the white space before them: tokens may begin with it).
    """
    out, weight = np.zeros((tokenizer.vocab_size, dim)), np.zeros(tokenizer.vocab_size)
    table = tokenizer.token_bytes
    for text, count in counts.items():
        ids = tokenizer.encode(text)
        stops = np.cumsum([len(table[i]) for i in ids])
        added = max(int(stops[-1]) - len(text), 0)  # the space that some tokenizers put before a text
        for found in _BARE.finditer(text):
            vector = words.get(found[0])
            if vector is None:
                continue
            first, last = np.searchsorted(stops, [found.start() + added, found.end() - 1 + added], side="right")
            touched = np.unique(ids[first : last + 1])
            out[touched] += count * vector
            weight[touched] += count
    return np.divide(out, weight[:, None], out=out, where=weight[:, None] > 0)


def words_of(texts: Iterable[str | bytes]) -> collections.Counter[bytes]:
    """How often each word occurs, with the white space before it: the counts that `spread` wants."""
    return collections.Counter(word for text in texts for word in _WORD.findall(as_bytes(text)))


def read_words(path: str | os.PathLike[str]) -> dict[bytes, NDArray]:
    """Word vectors of a text file in fastText's form: a line ``count width``, then a word and its numbers a line.

    Raises `ConfigError` naming the first line that is of another form.
    """
    out: dict[bytes, NDArray] = {}
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    head = lines[0].split()
    require(
        len(head) == 2 and all(part.isdigit() for part in head) and int(head[1]) > 0,
        f"{path}: line 1 should hold a count and a width, got {shown(lines[0].decode(errors='replace'))}",
    )
    width = int(head[1])
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        word, *numbers = line.rstrip().rsplit(b" ", width)
        try:
            vector = np.array([float(one) for one in numbers])
        except ValueError:
            vector = np.zeros(0)
        require(
            len(vector) == width and np.isfinite(vector).all(),
            f"{path}: line {number} is not a word and {width} numbers",
        )
        out[word] = vector
    require(len(out) == int(head[0]), f"{path}: line 1 promises {int(head[0])} words, the file has {len(out)}")
    return out


def read_rows(path: str | os.PathLike[str], sizes: Mapping[str, int]) -> dict[str, Vectors]:
    """Vectors by token id of an .npz file: the arrays named in ``sizes`` that it has, each [vocabulary, A].

    Raises `ConfigError` for a file that is none, without any of those arrays, or with one of another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read as .npz: {' '.join(str(error).split())}") from None
    found = {name: arrays[name] for name in sizes if name in arrays}
    require(found, f"{path}: has arrays {sorted(arrays)}; expected {' or '.join(sizes)}, a row for each token id")
    for name, array in found.items():
        require(
            array.ndim == 2 and len(array) == sizes[name] and array.dtype.kind == "f" and np.isfinite(array).all(),
            f"{path}: {name} should be finite floats [{sizes[name]}, A], got {array.dtype} {list(array.shape)}",
        )
    return {name: array.astype(np.float64) for name, array in found.items()}


def _factorised(documents: Sequence[NDArray], size: int, dim: int, window: int, seed: int) -> Vectors:
    """Rows U sqrt(S) [size, dim] of the information matrix of ids that stand near each other."""
    require(dim >= 1 and window >= 1, f"static vectors: expected dim and window of 1 or more, got {dim} and {window}")
    gap = np.full(window, -1)  # so that no window reaches into the next document
    ids = np.concatenate([gap, *(part for document in documents for part in (document, gap))])
    total = np.bincount(ids[ids >= 0], minlength=size)
    seen = np.argsort(-total, kind="stable")[: int((total > 0).sum())]
    rank = np.full(size + 1, -1)  # of each id by frequency; the last entry is that of the gap, -1
    rank[seen] = np.arange(len(seen))
    ids, width = rank[ids], min(CONTEXTS, len(seen))
    counts = np.zeros((len(seen), width), np.float32)
    for offset in range(1, window + 1):
        for row, near in ((ids[:-offset], ids[offset:]), (ids[offset:], ids[:-offset])):
            kept = (row >= 0) & (near >= 0) & (near < width)
            pair, times = np.unique(row[kept].astype(np.int64) * width + near[kept], return_counts=True)
            counts.reshape(-1)[pair] += times
    require(counts.any(), "static vectors: the texts have no two tokens in a row; give more text")
    rows, columns = counts.sum(1, keepdims=True), counts.sum(0) ** SMOOTHING
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * (columns.sum() / (rows * columns)))
    information[~(information > 0)] = 0.0  # also where nothing was counted
    out = np.zeros((size, dim))
    out[seen] = _truncated(information, dim, seed)
    return out


def _truncated(matrix: NDArray, dim: int, seed: int) -> Vectors:
    """U sqrt(S) of the ``dim`` largest singular values, zero columns where there are fewer (Halko et al. 2011)."""
    rank = min(dim, *matrix.shape)
    probe = np.random.default_rng(seed).standard_normal((matrix.shape[1], min(rank + 10, min(matrix.shape))))
    basis, _ = np.linalg.qr(matrix @ probe)
    for _ in range(4):  # power iterations: the spectrum of such matrices falls slowly
        basis, _ = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])
    u, s, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    out = np.zeros((len(matrix), dim))
    out[:, :rank] = (basis @ u)[:, :rank] * np.sqrt(s[:rank])
    out[~matrix.any(1)] = 0.0
    return out
