"""How well the mixture of a tokenizer's training data is found again: one mixture, trained on and inferred."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.categories import Category, categories
from jaxlm.tokenize.merges import learn
from jaxlm.tokenize.mixture_inference import Mixture, infer
from jaxlm.tokenize.pretokens import words_of

SPLIT = ("digits", "gpt2")  # of the paper's controlled experiments
TOTAL = 10**9  # bytes of training data the mixture is scaled to, so that rounding weighted counts does not matter


class Recovery(NamedTuple):
    """One line of the study; errors are log10 of the mean squared error of the shares.

    Attributes:
      same_text: whether the samples were the training text itself.
      pairs, bytes: error of the shares of pairs, and of bytes.
      uniform: error of guessing equal shares of pairs.
      objective, width: of the program's optimum: how far it contradicts the merges, and the widest range of a share.
      training, inference: seconds of processor time, to learn the merges and to infer (counting and solving).
    """

    seed: int
    merges: int
    categories: int
    same_text: bool
    pairs: float
    bytes: float
    uniform: float
    objective: float
    width: float
    constraints: int
    rounds: int
    training: float
    inference: float


def recovery(
    seed: int,
    merges: int,
    *,
    texts: Sequence[Category] | None = None,
    same_text: bool = False,
    split: tuple[str, ...] = SPLIT,
    report: Callable[[str, int, int], None] = lambda work, done, total: None,
) -> tuple[Recovery, Mixture]:
    """Draws shares of bytes from Dirichlet(1), learns merges from that mixture, and infers it from the other halves.

    Args:
      seed: of the shares and, unless ``texts`` are given, of the halves.
      merges: how many to learn.
      texts: categories of text, by default all of `jaxlm.data.categories`.
      same_text: count in the halves that were trained on.
      split: rules that cut text into words.
      report: see `jaxlm.tokenize.mixture_inference.infer`.
    """
    require(merges >= 1, f"merges: expected at least 1, got {merges}")
    found = categories(seed) if texts is None else texts
    shares = np.random.default_rng([seed, len(found)]).dirichlet(np.ones(len(found)))
    began = time.process_time()
    mixed: dict[tuple[int, ...], int] = {}
    pairs, sizes = np.zeros(len(found)), np.zeros(len(found))
    for i, category in enumerate(found):
        words = words_of(category.train, split)
        scale = shares[i] * TOTAL / sum(map(len, category.train))
        for word, count in words.items():
            weight = round(count * scale)
            mixed[word] = mixed.get(word, 0) + weight
            pairs[i] += weight * (len(word) - 1)
            sizes[i] += weight * len(word)
    learned = [(step.left, step.right) for step in learn(mixed, merges)]
    trained = time.process_time()
    samples = {category.name: category.train if same_text else category.count for category in found}
    mixture = infer(learned, samples, split=split, report=report)
    done = time.process_time()
    truth = pairs / pairs.sum()
    row = Recovery(
        seed,
        len(learned),
        len(found),
        same_text,
        log10_mse(mixture.pairs, truth),
        log10_mse(mixture.bytes, sizes / sizes.sum()),
        log10_mse(np.full(len(found), 1 / len(found)), truth),
        mixture.objective,
        float(max(np.subtract(mixture.greatest, mixture.least))),
        mixture.constraints,
        mixture.rounds,
        trained - began,
        done - trained,
    )
    return row, mixture


def log10_mse(shares: Sequence[float] | np.ndarray, truth: np.ndarray) -> float:
    """log10 of the mean squared error of shares; -inf if there is none."""
    error = float(np.mean(np.square(np.asarray(shares) - truth)))
    return math.log10(error) if error else -math.inf
