"""What a tokenizer does to text, and what its vocabulary is made of, in numbers.

    fertility          tokens / word                      words are runs between white space
    compression        bytes / token, characters / token
    Renyi entropy      log2(sum p^a) / (1 - a) of the tokens' shares p; a = 1 is Shannon's
    efficiency         entropy / log2(V), V the ids that were seen or all ids (Zouhar et al. 2023, Tokenization and the
                       Noiseless Channel, a = 2.5; their scorer's defaults are a = 3 and the ids seen)
    percentile mass    shares of the tokens ranked between 3 % and 83 % (Gowda and May 2020; bounds of that scorer)
    parity             tokens of a language / tokens of the reference, on parallel text (Petrov et al. 2023)
    coverage           characters of a text that are tokens by themselves; alphabetic tokens by script
    classes            of a vocabulary's tokens, with word-initial and inner pieces (Chelombitko et al. 2024, Qtok)

A higher efficiency alone is no better tokenizer (counterexamples raise it for nothing): read it with bytes per token.
"""

from __future__ import annotations

import collections
import functools
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import Tokenizer, as_bytes

# Of a vocabulary's tokens; the first that fits, `special` for tokens without bytes.
CLASSES = (
    "special", "invalid_utf8", "whitespace", "control", "alphabetic", "numeric", "punctuation", "mixed"
)  # fmt: skip


class Usage(NamedTuple):
    """What a tokenizer made of texts; every rate is a quotient of these."""

    counts: NDArray[np.int64]  # [V], how often each id
    words: int
    characters: int
    bytes: int

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    @property
    def fertility(self) -> float:
        """Tokens a word."""
        return _ratio(self.tokens, self.words, "words")

    @property
    def chars_per_token(self) -> float:
        return _ratio(self.characters, self.tokens, "tokens")

    @property
    def bytes_per_token(self) -> float:
        return _ratio(self.bytes, self.tokens, "tokens")

    @property
    def observed(self) -> int:
        """Ids that occur."""
        return int((self.counts > 0).sum())

    @property
    def unused(self) -> NDArray[np.int64]:
        """Ids that do not occur."""
        return np.flatnonzero(self.counts == 0)


def usage(tokenizer: Tokenizer, texts: Iterable[str | bytes]) -> Usage:
    """Tokenizes texts, each by itself, without special tokens. Bytes that are not UTF-8 are a character each."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    words = characters = size = 0
    for text in texts:
        data = as_bytes(text)
        string = data.decode("utf-8", "surrogateescape")
        counts += np.bincount(tokenizer.encode(data), minlength=len(counts))
        words, characters, size = words + len(string.split()), characters + len(string), size + len(data)
    return Usage(counts, words, characters, size)


def renyi_entropy(counts: ArrayLike, order: float) -> float:
    """Renyi entropy of order a in bits, of tokens that occur ``counts`` times; Shannon's for a = 1, least for infinity.

    Raises `ConfigError` for a negative order or counts, and for no tokens at all.
    """
    require(order >= 0, f"order: expected 0 or more, got {order}")
    p = _shares(counts)
    if order == 1:
        return float(-(p * np.log2(p)).sum())
    if math.isinf(order):
        return float(-np.log2(p.max()))
    # Relative to the largest share, so that a high order does not underflow.
    return float((np.log2(((p / p.max()) ** order).sum()) + order * np.log2(p.max())) / (1 - order))


def shannon_entropy(counts: ArrayLike) -> float:
    """Shannon entropy in bits."""
    return renyi_entropy(counts, 1)


def efficiency(counts: ArrayLike, order: float = 2.5, vocab_size: int | None = None) -> float:
    """Renyi entropy over log2 of the vocabulary: of ``vocab_size`` ids, or by default of those with a count.

    Raises `ConfigError` for a vocabulary of fewer than two ids, or of fewer than occur.
    """
    observed = int((np.asarray(counts) > 0).sum())
    size = observed if vocab_size is None else vocab_size
    require(size >= max(2, observed), f"vocab_size: expected at least {max(2, observed)} ids, got {size}")
    return renyi_entropy(counts, order) / math.log2(size)


def percentile_mass(counts: ArrayLike, start: float = 0.03, stop: float = 0.83) -> float:
    """The share of the tokens whose rank by frequency lies in [start, stop) of the ids that occur.

    Of few ids at least one is taken: first the one before, else the one behind.
    """
    require(0 <= start <= stop <= 1, f"expected 0 <= start <= stop <= 1, got {start} and {stop}")
    p = np.sort(_shares(counts))[::-1]
    first, last = (min(int(len(p) * at), len(p) - 1) for at in (start, stop))
    if first == last:
        first = max(0, first - 1)
    if first == last:
        last = min(len(p) - 1, last + 1)
    return float(p[first:last].sum())


def parity(tokenizer: Tokenizer, parallel: Mapping[str, Sequence[str]], reference: str) -> dict[str, float]:
    """Tokens of each language's texts over those of the ``reference`` language's; 1 is fair, 2 pays twice.

    Raises `ConfigError` if the texts cannot be parallel: other numbers of them, or no reference.
    """
    require(reference in parallel, f"parity: no texts of the reference {reference!r}; there are {', '.join(parallel)}")
    for language, texts in parallel.items():
        require(
            len(texts) == len(parallel[reference]),
            f"parity: {len(texts)} texts of {language!r}, {len(parallel[reference])} of {reference!r}; "
            "parallel text has as many of each",
        )
    tokens = {language: usage(tokenizer, texts).tokens for language, texts in parallel.items()}
    return {language: _ratio(n, tokens[reference], "tokens of the reference") for language, n in tokens.items()}


class WordRates(NamedTuple):
    """Shares of the words of a text, every occurrence counted."""

    single: float  # one token with the space in front of it
    split: float  # two or more


def word_rates(tokenizer: Tokenizer, texts: Iterable[str], prefix: str = " ") -> WordRates:
    """How many words are one token, and how many are cut.

    Args:
      tokenizer: encodes ``prefix + word`` for each word by itself.
      texts: words are runs between white space.
      prefix: ``""`` for a tokenizer that puts its own space in front of a text.

    Raises:
      ConfigError: texts without a word.
    """
    words = collections.Counter(word for text in texts for word in text.split())
    pieces = {word: len(tokenizer.encode(prefix + word)) for word in words}
    total = words.total()
    single, cut = (sum(n for word, n in words.items() if fits(pieces[word])) for fits in ((1).__eq__, (1).__lt__))
    return WordRates(_ratio(single, total, "words"), _ratio(cut, total, "words"))


class Coverage(NamedTuple):
    """Of the characters of a text, white space apart."""

    distinct: float  # share of the different ones that are a token
    occurring: float  # the same, each as often as it occurs


def character_coverage(tokenizer: Tokenizer, texts: Iterable[str]) -> Coverage:
    """How much of a script the vocabulary has: characters whose bytes are one token, so that none is cut apart."""
    found = collections.Counter(c for text in texts for c in text if not c.isspace())
    vocabulary = frozenset(tokenizer.token_bytes)
    known = [c for c in found if as_bytes(c) in vocabulary]
    return Coverage(
        _ratio(len(known), len(found), "characters"),
        _ratio(sum(found[c] for c in known), found.total(), "characters"),
    )


# Vocabularies.


@functools.lru_cache(maxsize=1 << 20)
def class_of(piece: bytes) -> str:
    """One of `CLASSES`. After invalid_utf8, whitespace and control (any Cc), spaces around the token do not count:
    alphabetic is all L* or M*, numeric all N*, punctuation all P* or S*, in Unicode's categories.
    """
    if not piece:
        return "special"
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "invalid_utf8"
    if text.isspace():
        return "whitespace"
    if any(unicodedata.category(c) == "Cc" and not c.isspace() for c in text):
        return "control"
    kinds = {unicodedata.category(c)[0] for c in text.strip(" ")}
    for name, allowed in (("alphabetic", {"L", "M"}), ("numeric", {"N"}), ("punctuation", {"P", "S"})):
        if kinds <= allowed:
            return name
    return "mixed"


def script_of(piece: bytes) -> str:
    """The scripts of an alphabetic token: the first words of its letters' Unicode names, sorted, ``+`` in between."""
    letters = [c for c in piece.decode() if unicodedata.category(c)[0] == "L"]
    return "+".join(sorted({unicodedata.name(c, "UNNAMED").split()[0] for c in letters})) or "MARKS"


def classes(token_bytes: Iterable[bytes]) -> dict[str, int]:
    """How many tokens are in each class; classes without any are left out."""
    found = collections.Counter(map(class_of, token_bytes))
    return {name: found[name] for name in CLASSES if found[name]}


def scripts(token_bytes: Iterable[bytes]) -> dict[str, int]:
    """How many alphabetic tokens are of each script, the most first."""
    found = collections.Counter(script_of(piece) for piece in token_bytes if class_of(piece) == "alphabetic")
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def lengths(token_bytes: Iterable[bytes]) -> dict[int, int]:
    """How many tokens have each number of bytes; special tokens, which have none, are left out."""
    return dict(sorted(collections.Counter(len(piece) for piece in token_bytes if piece).items()))


class Completeness(NamedTuple):
    """Alphabetic tokens as pieces of words."""

    initial: int  # begin with a space: how a word begins
    inner: int  # do not: the inside and the end of words, and words at the beginning of a text
    both: int  # strings that are there in both forms


def completeness(token_bytes: Iterable[bytes]) -> Completeness:
    """How a vocabulary's alphabetic tokens divide into those that begin a word and those that go on."""
    pieces = {piece for piece in token_bytes if class_of(piece) == "alphabetic"}
    initial = {piece.strip(b" ") for piece in pieces if piece.startswith(b" ")}
    inner = {piece.strip(b" ") for piece in pieces if not piece.startswith(b" ")}
    starts = sum(piece.startswith(b" ") for piece in pieces)
    return Completeness(starts, len(pieces) - starts, len(initial & inner))


def starts_with_space(token_bytes: Iterable[bytes]) -> int:
    """How many tokens begin with a space."""
    return sum(piece.startswith(b" ") for piece in token_bytes)


def core_tokens(vocabularies: Iterable[Iterable[bytes]]) -> frozenset[bytes]:
    """The byte strings that are a token in every vocabulary; special tokens have none."""
    sets = [frozenset(pieces) - {b""} for pieces in vocabularies]
    require(sets, "core_tokens: expected at least one vocabulary")
    return frozenset.intersection(*sets)


def _shares(counts: ArrayLike) -> NDArray[np.float64]:
    """The positive counts over their sum."""
    array = np.asarray(counts, np.float64)
    require(array.size and np.isfinite(array).all() and (array >= 0).all(), "counts: expected numbers, none negative")
    require(array.sum() > 0, "counts: there is no token")
    return array[array > 0] / array.sum()


def _ratio(part: float, whole: float, what: str) -> float:
    require(whole > 0, f"a rate is undefined: the texts have no {what}")
    return part / whole
