"""Compounds and their parts (Minixhofer et al. 2023, CompoundPiece: Evaluating and Improving Decompounding ...).

    stage 1   self-supervised: words that texts write with a hyphen, and words they write without; the hyphens are taken
              out, and a byte model learns to put them back ("Wasser-fall" from "Wasserfall")
    stage 2   fine-tuning on dictionaries of compounds: predict the parts, which may differ from the pieces of the
              word ("Arbeit-Zimmer" from "Arbeitszimmer"); `split_like` cuts the word where the parts say
    use       words are cut into their parts before a unigram vocabulary is trained on them (`decompounded`);
              the tokenizer itself needs no decompounder

Rules of the authors' public program: hyphenated words have parts of two characters and more and are dropped if the word
without hyphens is e^6 times as frequent; spelled in several ways the most frequent counts; plain words are the most
frequent ones, as many as hyphenated. When a hyphen goes, the letter behind it takes the case of the one before it
(always in evaluation, with probability 0.999 in training). Words divided at the end of a line are joined first, which
that program does not do; and only letters that have a case change theirs.
"""

from __future__ import annotations

import collections
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core.config import require
from jaxlm.tokenize.base import as_bytes

HYPHENS = ("-", "\u2010")
CASE_RATE = 0.999

Decompounder = Callable[[str], Sequence[str]]


class Pair(NamedTuple):
    """What a model reads and what it should write: ``target`` has hyphens between the parts."""

    input: str
    target: str


def remove_hyphens(word: str, rng: np.random.Generator | None = None, case_rate: float = CASE_RATE) -> str:
    """The word without its hyphens. Where letters on both sides differ in case the second takes that of the first.

    Args:
      word: parts joined by single hyphens.
      rng: draws where the case stays as it is; without one it is always adapted.
      case_rate: with which probability it is adapted.

    Raises:
      ConfigError: a hyphen at an end, or two in a row.
    """
    parts = _normal(word).split("-")
    require(all(parts), f"{word!r}: hyphens must stand between characters")
    out = parts[0]
    for part in parts[1:]:
        after = part[0]
        if rng is None or rng.random() < case_rate:
            cased = after.lower() if out[-1].islower() else after.upper() if out[-1].isupper() else after
            after = cased if len(cased) == 1 else after  # an eszett would become two letters
        out += after + part[1:]
    return out


def join_lines(text: str) -> str:
    """The text with words that a line end divides ("Wasser-" newline "fall") made one hyphenated word."""
    lines = text.split("\n")
    out = [lines[0]]
    for line in lines[1:]:
        divided = len(out[-1]) > 1 and out[-1][-1] in HYPHENS and out[-1][-2].isalpha()
        follows = line.lstrip()
        if divided and follows[:1].isalpha():
            out[-1] += follows
        else:
            out.append(line)
    return "\n".join(out)


def word_counts(texts: Iterable[str]) -> collections.Counter[str]:
    """Words between white space, punctuation at their ends removed, with their counts; what is no word is left out.

    Left out are words of more than 64 bytes, with two hyphens in a row or one of ``. @ / { } [ ]`` inside; and
    hyphenated ones with a capital or a digit inside a part, or a part all capitals and digits ("UTF-8").
    """
    found: collections.Counter[str] = collections.Counter()
    for text in texts:
        for word in join_lines(text).split():
            word = _normal(_stripped(word))
            if word and _is_word(word):
                found[word] += 1
    return found


def stage_one(
    counts: Mapping[str, int], rng: np.random.Generator | None = None, *, case_rate: float = CASE_RATE
) -> list[Pair]:
    """The self-supervised pairs of a text's words (see the module), hyphenated ones first, the most frequent first.

    Args:
      counts: words with and without hyphens, as `word_counts` gives them.
      rng: of `remove_hyphens`; without one as in evaluation.
      case_rate: of `remove_hyphens`.

    Raises:
      ConfigError: if no hyphenated word is left.
    """
    plain: collections.Counter[str] = collections.Counter()
    for word, count in counts.items():
        if "-" not in _normal(word):
            plain[word.lower()] += count
    best: dict[str, tuple[int, str]] = {}
    for word, count in counts.items():
        parts = _normal(word).split("-")
        if len(parts) < 2 or min(map(len, parts)) < 2:
            continue
        joined = "".join(parts).lower()
        if count / max(1, plain[joined]) >= math.exp(-6):
            best[joined] = max(best.get(joined, (0, "")), (count, "-".join(parts)))
    require(best, "stage_one: no hyphenated word with parts of two characters and more")
    hyphenated = sorted(best.values(), key=lambda item: (-item[0], item[1]))
    others = [(n, word) for word, n in counts.items() if "-" not in _normal(word) and word.lower() not in best]
    others = sorted(others, key=lambda item: (-item[0], item[1]))[: len(hyphenated)]
    return [Pair(remove_hyphens(word, rng, case_rate), word) for _, word in (*hyphenated, *others)]


def stage_two(compounds: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Pairs of a dictionary: compound -> its parts in their own form; a word of one part is its own target.

    The parts are targets too, as words that must stay whole, unless the dictionary divides them.
    Raises `ConfigError` for a part that is empty or has a hyphen.
    """
    pairs = {}
    for word, parts in compounds.items():
        require(
            word and parts and all(part and "-" not in _normal(part) for part in parts),
            f"{word!r}: expected parts without hyphens, got {list(parts)}",
        )
        pairs[word] = "-".join(parts)
    for parts in compounds.values():
        for part in parts:
            pairs.setdefault(part, part)
    return [Pair(word, target) for word, target in pairs.items()]


def split_like(word: str, parts: Sequence[str]) -> list[str]:
    """The word cut into as many pieces as there are parts, at the least summed edit distance, case apart.

    Of equally near cuts the first pieces are the longest, so linking letters stay with what they follow:
    ``split_like("Arbeitszimmer", ["Arbeit", "Zimmer"]) == ["Arbeits", "zimmer"]``. No piece is empty.
    Raises `ConfigError` if the word has fewer characters than parts.
    """
    require(0 < len(parts) <= len(word), f"{word!r} cannot be cut into {len(parts)} pieces")
    n = len(word)
    # cost[start]: of cutting word[start:] into the last k parts; and where the first of these pieces stops.
    cost = [math.inf] * n + [0.0]
    stops: list[list[int]] = []
    for part in reversed(parts):
        new, chosen = [math.inf] * (n + 1), [0] * (n + 1)
        for start in range(n):
            distances = _edit_distances(part.lower(), word[start:].lower())
            for stop in range(start + 1, n + 1):
                total = distances[stop - start] + cost[stop]
                if total <= new[start]:
                    new[start], chosen[start] = total, stop
        cost = new
        stops.append(chosen)
    pieces, at = [], 0
    for chosen in reversed(stops):
        pieces.append(word[at : chosen[at]])
        at = chosen[at]
    return pieces


class Score(NamedTuple):
    """How well words were cut."""

    accuracy: float  # words whose cuts are exactly right, those that should stay whole included
    precision: float  # of the cuts made, the right ones; 1 if none was made
    recall: float  # of the cuts to be made, those found; 1 if there are none
    f1: float


def evaluate(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Score:
    """Scores words cut into pieces by the positions of their cuts.

    Raises `ConfigError` for other numbers of words, no words, or pieces that do not spell the same word.
    """
    require(predictions and len(predictions) == len(references), "evaluate: expected as many predictions as words")
    exact = right = made = wanted = 0
    for prediction, reference in zip(predictions, references, strict=True):
        word = "".join(reference)
        require("".join(prediction) == word, f"evaluate: {list(prediction)} do not spell {word!r}")
        ours, theirs = _cuts(prediction), _cuts(reference)
        exact += ours == theirs
        right, made, wanted = right + len(ours & theirs), made + len(ours), wanted + len(theirs)
    f1 = 2 * right / (made + wanted) if made + wanted else 1.0
    return Score(exact / len(references), right / made if made else 1.0, right / wanted if wanted else 1.0, f1)


def segment(text: str) -> list[str]:
    """The text as words and runs of punctuation, each with the white space before it; they join to the text."""
    pieces, pending = [], ""
    for kind, run in itertools.groupby(text, _kind):
        piece = "".join(run)
        if kind == "space":
            pending = piece
        else:
            pieces.append(pending + piece)
            pending = ""
    return pieces + [pending] * bool(pending)


def pretokens(text: str, decompound: Decompounder, max_bytes: int = 32) -> list[str]:
    """`segment`, with words cut into the pieces that a decompounder gives; they join to the text.

    Words of ``max_bytes`` and more, with hyphens, or without letters are not cut; nor is one that the decompounder
    spells in another way.
    """
    return list(itertools.chain.from_iterable(_pieces(piece, decompound, max_bytes) for piece in segment(text)))


def decompounded(
    texts: Iterable[str], decompound: Decompounder, min_count: int = 1, max_bytes: int = 32
) -> collections.Counter[str]:
    """What a unigram vocabulary is trained on: the pieces of `pretokens` with their counts, in the order of words.

    ``UnigramTokenizer.train(decompounded(texts, cut).elements(), size)``; of 3000 generated words, 150 tokens beside
    the bytes then respect all borders in compounds, and half of them when trained on whole words.

    Pieces of ``max_bytes`` and more, and those that occur fewer than ``min_count`` times, are left out; each word is
    given to the decompounder once.
    """
    require(min_count > 0, f"min_count: expected at least 1, got {min_count}")
    words = collections.Counter(itertools.chain.from_iterable(map(segment, texts)))
    found: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        if count >= min_count and len(as_bytes(word)) < max_bytes:
            for piece in _pieces(word, decompound, max_bytes):
                found[piece] += count
    return found


class Compound(NamedTuple):
    """A generated word."""

    word: str
    pieces: tuple[str, ...]  # of the word, linking letters with what they follow
    parts: tuple[str, ...]  # the stems themselves


def generated(
    rng: np.random.Generator, count: int, stems: int = 60, links: Sequence[str] = ("", "s", "en")
) -> list[Compound]:
    """Words of an invented language, about half of them compounds of two or three stems with linking letters between.

    Args:
      rng: draws stems and words; frequent stems are in many words (Zipf, exponent 1.05).
      count: of words, which may repeat.
      stems: how many there are, of two or three syllables.
      links: what stands between two stems.
    """
    syllables = [a + b for a in "bdfgklmnprtvz" for b in "aeiou"]
    lexicon: list[str] = []
    while len(lexicon) < stems:
        stem = "".join(rng.choice(syllables, size=int(rng.integers(2, 4))).tolist())
        if stem not in lexicon:
            lexicon.append(stem)
    shares = 1 / np.arange(1, stems + 1) ** 1.05
    out = []
    for size in rng.choice([1, 1, 2, 3], size=count).tolist():
        parts = rng.choice(lexicon, size=size, p=shares / shares.sum()).tolist()
        joints = [*rng.choice(list(links), size=size - 1).tolist(), ""]
        pieces = tuple(part + joint for part, joint in zip(parts, joints, strict=True))
        out.append(Compound("".join(pieces), pieces, tuple(parts)))
    return out


def _pieces(word: str, decompound: Decompounder, max_bytes: int) -> Sequence[str]:
    """A word of `segment` in pieces; the white space before it stays with the first."""
    bare = word.lstrip()
    if len(as_bytes(word)) >= max_bytes or not any(c.isalpha() for c in bare) or any(h in bare for h in HYPHENS):
        return [word]
    pieces = [piece for piece in decompound(bare) if piece]
    if "".join(pieces) != bare:
        return [word]
    return [word[: len(word) - len(bare)] + pieces[0], *pieces[1:]]


def _normal(word: str) -> str:
    return word.replace(HYPHENS[1], "-")


def _stripped(word: str) -> str:
    """Without punctuation at the ends."""
    inside = [i for i, c in enumerate(word) if unicodedata.category(c)[0] != "P"]
    return word[inside[0] : inside[-1] + 1] if inside else ""


def _is_word(word: str) -> bool:
    if len(as_bytes(word)) > 64 or "--" in word or set(word) & set(".@/{}[]"):
        return False
    if "-" not in word:
        return True
    inner = itertools.pairwise(word)
    if any((b.isupper() and a != "-") or (b.isnumeric() and not a.isnumeric()) for a, b in inner):
        return False
    return not any(all(c.isupper() or c.isnumeric() for c in part) for part in word.split("-"))


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return "punctuation" if unicodedata.category(character)[0] in "PS" else "word"


def _cuts(pieces: Sequence[str]) -> set[int]:
    """Positions between pieces, in characters."""
    return set(itertools.accumulate(map(len, pieces[:-1])))


def _edit_distances(part: str, text: str) -> list[int]:
    """Levenshtein distance of ``part`` to every beginning of ``text``, [len(text) + 1]."""
    row = list(range(len(text) + 1))
    for i, a in enumerate(part, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(text, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row
