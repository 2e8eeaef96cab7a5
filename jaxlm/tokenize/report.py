"""The numbers of several tokenizers side by side (after Qtok, Chelombitko et al. 2024, and the tokenization scorer).

`usages` measures each tokenizer on each category of texts (a language, a kind of text), `vocabularies` what its tokens
are, without any text. Rows are plain tuples; `experiments.tokenizer_report` writes and draws them.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxlm.core.config import require
from jaxlm.tokenize import metrics
from jaxlm.tokenize.base import Tokenizer

ORDER = 2.5  # of Renyi's entropy, as in the paper


class UsageRow(NamedTuple):
    """A tokenizer on one category of texts; ``"(all)"`` pools them."""

    tokenizer: str
    category: str
    vocab_size: int
    bytes: int
    words: int
    tokens: int
    fertility: float  # tokens a word
    bytes_per_token: float
    chars_per_token: float
    shannon_observed: float  # efficiency over the ids that occur
    renyi_observed: float
    renyi_full: float  # over all ids
    percentile_mass: float
    single_token_words: float
    split_words: float
    character_coverage: float  # of the different characters; nan where tokens have no bytes of their own
    used: float  # share of the ids that occur


class VocabularyRow(NamedTuple):
    """How many tokens of a vocabulary are of a kind."""

    tokenizer: str
    kind: str  # "class", "script", "piece", "bytes" or "shared"
    name: str
    count: int
    share: float  # of the vocabulary


class Parity(NamedTuple):
    """Tokens of a category's texts over those of the reference's."""

    tokenizer: str
    category: str
    ratio: float


ALL = "(all)"


def usages(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, Sequence[str]]) -> list[UsageRow]:
    """A row for each tokenizer and category, and one for all texts if there are several categories.

    Raises `ConfigError` without a tokenizer or texts, for a category without words, and for one that is called
    ``"(all)"``.
    """
    _check(tokenizers, texts)
    found = []
    for name, tokenizer in tokenizers.items():
        parts = dict(texts)
        if len(texts) > 1:
            parts[ALL] = [text for several in texts.values() for text in several]
        found += [_row(name, tokenizer, category, several) for category, several in parts.items()]
    return found


def parities(
    tokenizers: Mapping[str, Tokenizer], parallel: Mapping[str, Sequence[str]], reference: str
) -> list[Parity]:
    """A row for each tokenizer and category of parallel texts. Raises `ConfigError` if they cannot be parallel."""
    _check(tokenizers, parallel)
    return [
        Parity(name, category, ratio)
        for name, tokenizer in tokenizers.items()
        for category, ratio in metrics.parity(tokenizer, parallel, reference).items()
    ]


def vocabularies(tokenizers: Mapping[str, Tokenizer]) -> list[VocabularyRow]:
    """What the tokens are: classes, scripts, pieces of words, lengths, and the core that all vocabularies share.

    Tokenizers whose tokens have no bytes of their own (WordPiece from a checkpoint) are left out.
    """
    pieces = {name: tokenizer.token_bytes for name, tokenizer in tokenizers.items() if has_bytes(tokenizer)}
    core = metrics.core_tokens(pieces.values()) if pieces else frozenset()
    holders = collections.Counter(piece for table in pieces.values() for piece in set(table))
    found = []
    for name, table in pieces.items():
        complete = metrics.completeness(table)
        groups = {
            "class": metrics.classes(table),
            "script": metrics.scripts(table),
            "piece": complete._asdict(),
            "bytes": {str(length): count for length, count in metrics.lengths(table).items()},
            "shared": {
                "core": sum(piece in core for piece in set(table)),
                "own": sum(bool(piece) and holders[piece] == 1 for piece in set(table)),
            },
        }
        for kind, counts in groups.items():
            found += [VocabularyRow(name, kind, of, count, count / len(table)) for of, count in counts.items()]
    return found


def has_bytes(tokenizer: Tokenizer) -> bool:
    """Whether each token stands for bytes whatever its neighbours are."""
    try:
        return bool(tokenizer.token_bytes)
    except ValueError:
        return False


def table(rows: Sequence[UsageRow]) -> str:
    """The rows as text to read."""
    head = (
        "tokenizer",
        "category",
        "ids",
        "bytes/token",
        "tokens/word",
        "Renyi",
        "Renyi full",
        "1-token words",
        "used",
    )
    lines = [
        (
            row.tokenizer, row.category, f"{row.vocab_size}", f"{row.bytes_per_token:.3f}", f"{row.fertility:.3f}",
            f"{row.renyi_observed:.3f}", f"{row.renyi_full:.3f}", f"{row.single_token_words:.1%}", f"{row.used:.1%}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    sides = [str.ljust] * 2 + [str.rjust] * (len(head) - 2)
    fitted = ([side(cell, n) for side, cell, n in zip(sides, line, widths, strict=True)] for line in (head, *lines))
    return "\n".join("  ".join(cells) for cells in fitted)


def _row(name: str, tokenizer: Tokenizer, category: str, texts: Sequence[str]) -> UsageRow:
    used = metrics.usage(tokenizer, texts)
    require(used.words > 0, f"category {category!r} has no words")
    rates = metrics.word_rates(tokenizer, texts, "" if _adds_space(tokenizer) else " ")
    several = used.observed > 1  # the efficiency of a single token is undefined
    return UsageRow(
        tokenizer=name,
        category=category,
        vocab_size=tokenizer.vocab_size,
        bytes=used.bytes,
        words=used.words,
        tokens=used.tokens,
        fertility=used.fertility,
        bytes_per_token=used.bytes_per_token,
        chars_per_token=used.chars_per_token,
        shannon_observed=metrics.efficiency(used.counts, 1) if several else 0.0,
        renyi_observed=metrics.efficiency(used.counts, ORDER) if several else 0.0,
        renyi_full=metrics.efficiency(used.counts, ORDER, tokenizer.vocab_size) if several else 0.0,
        percentile_mass=metrics.percentile_mass(used.counts),
        single_token_words=rates.single,
        split_words=rates.split,
        character_coverage=(
            metrics.character_coverage(tokenizer, texts).distinct if has_bytes(tokenizer) else float("nan")
        ),
        used=used.observed / tokenizer.vocab_size,
    )


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Whether encoding puts a space of its own in front of a text, as SentencePiece does."""
    ids = tokenizer.encode("a")
    return has_bytes(tokenizer) and len(ids) > 0 and tokenizer.token_bytes[ids[0]].startswith(b" ")


def _check(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, Sequence[str]]) -> None:
    require(tokenizers, "report: expected at least one tokenizer")
    require(texts, "report: expected at least one category of texts")
    require(ALL not in texts, f"report: a category may not be called {ALL!r}")
