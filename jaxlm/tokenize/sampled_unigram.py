"""Unigram tokenizers drawn at random, for training what should serve any tokenizer.

Paper: Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer (algorithm and constants as in its released code). There is
no expectation maximisation, only one count:

    1. every substring s of at most ``max_length`` characters inside a pre-token has score count(s) * bytes(s), and
       p(s) is its share of all scores
    2. a deviation is drawn for the tokenizer, sigma ~ LogNormal(ln noise, spread), and p(s) + N(0, sigma^2) for each s
    3. the largest fill the vocabulary, with the logarithm as Unigram score (-100000 where it is not positive)

Most draws are tiny against p and leave the frequent substrings; large ones give almost random vocabularies. Bytes are
always there, at the score of the rarest substring.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxlm.core.config import require
from jaxlm.tokenize.base import BYTES, as_text
from jaxlm.tokenize.pieces import room_for_pieces
from jaxlm.tokenize.pretokens import word_counts
from jaxlm.tokenize.substrings import Substrings
from jaxlm.tokenize.unigram import UnigramTokenizer

NOISE, SPREAD = 1e-5, 4.0  # the released runs'
NEVER = -1e5  # the score of a piece whose noised probability is not positive


def sample_unigram(
    texts: Iterable[str | bytes],
    vocab_size: int,
    rng: np.random.Generator,
    *,
    noise: float = NOISE,
    spread: float = SPREAD,
    max_length: int = 16,
    split: tuple[str, ...] = ("space",),
) -> UnigramTokenizer:
    """A tokenizer of at most ``vocab_size`` ids: bytes, substrings of the texts, special tokens.

    Args:
      noise: the median of sigma; 0 for none, which gives the most frequent substrings.
      spread: the deviation of its logarithm.
      max_length: of a piece, in characters.
      split: rules that cut the texts first.

    Raises `ConfigError` for a vocabulary that the bytes fill, and for texts that have no substring of two bytes.
    """
    room = room_for_pieces("sampled unigram", vocab_size)
    require(noise >= 0 and spread >= 0, f"sample_unigram: noise {noise} and spread {spread} should not be negative")
    require(max_length >= 2, f"sample_unigram: max_length should be 2 or more, got {max_length}")
    lattice = Substrings({as_text(word): n for word, n in word_counts(texts, split).items()}, max_length, least=1)
    sizes = np.array([len(piece.encode("utf-8", "surrogateescape")) for piece in lattice.pieces], np.int64)
    scores = (lattice.counts * sizes).astype(np.float64)
    several = np.flatnonzero(sizes > 1)
    require(len(several), "sample_unigram: the texts have no substring of two bytes; give more text")
    probability = scores / scores.sum()
    sigma = rng.lognormal(np.log(noise), spread) if noise else 0.0
    noised = probability[several] + sigma * rng.standard_normal(len(several))
    chosen = np.argsort(-noised, kind="stable")[:room]
    logs = np.where(noised > 0, np.log(np.maximum(noised, np.finfo(np.float64).tiny)), NEVER)[chosen]
    least = float(np.log(probability.min()))
    return UnigramTokenizer(
        tuple(lattice.pieces[i] for i in several[chosen]), scores=(*(least,) * BYTES, *logs.tolist()), split=split
    )


def sample_size(rng: np.random.Generator, least: int, most: int) -> int:
    """A vocabulary size, uniform in its logarithm between two sizes (both included)."""
    require(1 <= least <= most, f"sample_size: expected 1 <= least <= most, got {least} and {most}")
    return int(np.clip(round(float(np.exp(rng.uniform(np.log(least), np.log(most))))), least, most))
