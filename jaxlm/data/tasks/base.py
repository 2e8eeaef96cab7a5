"""What a task is: random-access, deterministic (prompt, target) pairs, with lengths to train on and others to test on.

A task file defines three things: `Task.words` (its own tokens), `Task.sample` (a generator and a length -> prompt and
target) and `Task.tokens_bound` (how long an encoded example of that length can get). Everything else is here.

Example ``i`` is a pure function of ``(seed, i)``: a counter-based generator (Philox, Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") takes the seed and the stream as its key and the length and the index as its
counter, so any example costs the same to reach, and the training and the evaluation streams cannot meet.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import operator
import string
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import unknown

PAD, BOS, SEP, EOS = range(4)
SPECIALS = ("<pad>", "<bos>", "<sep>", "<eos>")
KAZEMNEJAD = "Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization in Transformers"

_TRAIN, _EVAL = 0, 1  # the streams


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One encoded example: ``tokens`` int32 [T] is ``<bos> prompt <sep> target <eos>``.

    ``prompt_length`` counts the tokens up to and including ``<sep>``; ``length`` is the task's measure (digits, items).
    ``places`` int32 [T] is what a position encoding looks up for each token where the task says so, else None.
    ``labels`` int32 [T - 1] is what has to be predicted at each token, -1 for nothing, of tasks whose answers stand all
    along a row (`jaxlm.data.tasks.rows`); None where that is the next token, from ``<sep>`` on.
    """

    tokens: np.ndarray
    prompt_length: int
    length: int
    places: np.ndarray | None = None
    labels: np.ndarray | None = None

    @property
    def target(self) -> np.ndarray:
        """What the model has to write, int32: the target, or all labels, and its ``<eos>``."""
        if self.labels is not None:
            return self.labels[self.labels >= 0]
        return self.tokens[self.prompt_length :]


@dataclasses.dataclass(frozen=True)
class Task(Spec, abc.ABC):
    """Base of all tasks. Lengths are inclusive ranges; they may not overlap, because extrapolation is what is claimed.

    Fields: ``seed`` of everything drawn; ``size``, the examples in each stream; ``train_lengths`` and ``eval_lengths``.
    """

    seed: int = 0
    size: int = 100_000
    train_lengths: tuple[int, int] = (1, 10)
    eval_lengths: tuple[int, int] = (11, 20)

    paper: ClassVar[str] = KAZEMNEJAD

    def check(self) -> None:
        name = type(self).__name__
        require(0 <= self.seed < 2**64, f"{name}.seed: allowed 0..2**64 - 1, got {self.seed}")
        require(1 <= self.size < 2**63, f"{name}.size: allowed 1..2**63 - 1 examples, got {self.size}")
        for field, (low, high) in {"train_lengths": self.train_lengths, "eval_lengths": self.eval_lengths}.items():
            require(1 <= low <= high, f"{name}.{field}: allowed 1 <= first <= last, got {(low, high)}")
        require(
            self.train_lengths[1] < self.eval_lengths[0] or self.eval_lengths[1] < self.train_lengths[0],
            f"{name}.eval_lengths {self.eval_lengths} overlap train_lengths {self.train_lengths}: "
            f"extrapolation needs disjoint ranges, such as ({self.train_lengths[1] + 1}, {2 * self.train_lengths[1]})",
        )

    @property
    @abc.abstractmethod
    def words(self) -> tuple[str, ...]:
        """The task's own tokens, in the order of their ids (which follow those of `SPECIALS`)."""

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        """Draws one (prompt, target) of exactly ``length``, as words."""

    def sample_training(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        """As `sample`, for the training stream, where that differs."""
        return self.sample(rng, length)

    def places(
        self, prompt: Sequence[str], target: Sequence[str], rng: np.random.Generator | None
    ) -> Sequence[int] | None:
        """What a position encoding looks up for each token of the encoded example; None leaves it the plain positions.

        ``rng`` is given in training alone.
        """
        return None

    @abc.abstractmethod
    def tokens_bound(self, length: int) -> int:
        """The most tokens an encoded example of ``length`` has, specials included; what a batch is padded to."""

    def places_bound(self, length: int) -> int:
        """How many places a position encoding has to know for examples of ``length``: one more than the greatest."""
        return self.tokens_bound(length) - 1

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens; a token's id is its place. The four specials come first in every task."""
        return SPECIALS + self.words

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """Ids (int32 [T]) of words; raises `ConfigError` for a word that is not in the vocabulary."""
        try:
            return np.array([self._ids[word] for word in words], np.int32)
        except KeyError as error:
            raise unknown(f"token of {type(self).__name__}", error.args[0], self.vocabulary) from None

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of ids. One beyond the vocabulary (the model's may be larger) becomes ``<id>``, so any output shows."""
        return [self.vocabulary[i] if 0 <= i < self.vocab_size else f"<{i}>" for i in map(int, ids)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Training example ``index``, its length uniform over ``train_lengths``. IndexError outside 0..size-1."""
        rng = self._generator(_TRAIN, 0, index)
        low, high = self.train_lengths
        length = int(rng.integers(low, high + 1))
        prompt, target = self.sample_training(rng, length)
        return self._example(prompt, target, length, rng)

    def at(self, length: int, index: int) -> Example:
        """Evaluation example ``index`` of exactly ``length``, from a stream that training never sees.

        Any length from the shortest to the longest of both ranges is allowed, so in-distribution accuracy is measured
        on the same footing. Raises IndexError outside of that, or for an index outside 0..size-1.
        """
        low = min(self.train_lengths[0], self.eval_lengths[0])
        high = max(self.train_lengths[1], self.eval_lengths[1])
        if not low <= length <= high:
            raise IndexError(f"{type(self).__name__}.at: length {length} is outside {low}..{high}")
        prompt, target = self.sample(self._generator(_EVAL, length, index), length)
        return self._example(prompt, target, length, None)

    @staticmethod
    def exact_match(example: Example, output_ids: Sequence[int] | np.ndarray) -> bool:
        """Whether an output (the ids after ``<sep>``), up to and including its first ``<eos>``, is the target."""
        output = np.asarray(output_ids)
        ends = np.flatnonzero(output == EOS)
        return bool(len(ends)) and np.array_equal(output[: ends[0] + 1], example.target)

    def answer(self, output_ids: Iterable[int]) -> list[str]:
        """The final answer in an output (the ids after ``<sep>``), as words, without ``<eos>`` and what follows it."""
        words = self.decode(output_ids)
        return words[: words.index(SPECIALS[EOS])] if SPECIALS[EOS] in words else words

    def render(self, example: Example) -> str:
        """The example as two lines of text."""
        prompt = " ".join(self.decode(example.tokens[1 : example.prompt_length - 1]))
        return f"prompt: {prompt}\ntarget: {' '.join(self.decode(example.target[:-1]))}"

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.vocabulary)}

    def _generator(self, stream: int, length: int, index: int) -> np.random.Generator:
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"{type(self).__name__}: example {index} is outside 0..{self.size - 1}")
        # The low 128 bits of the counter are left to the draws of this one example.
        return np.random.Generator(np.random.Philox(key=self.seed << 64 | stream, counter=index << 192 | length << 128))

    def _example(self, prompt: list[str], target: list[str], length: int, rng: np.random.Generator | None) -> Example:
        tokens = self.encode((SPECIALS[BOS], *prompt, SPECIALS[SEP], *target, SPECIALS[EOS]))
        places = self.places(prompt, target, rng)
        return Example(tokens, len(prompt) + 2, length, None if places is None else np.asarray(places, np.int32))


def encoded_length(prompt: Sequence[str], target: Sequence[str]) -> int:
    """The tokens of an encoded (prompt, target): both, and ``<bos>``, ``<sep>``, ``<eos>``."""
    return len(prompt) + len(target) + 3


# Pairs end in a digit, so that no symbol is also a word of a task ("in", "re").
ALPHABET = (*string.digits, *string.ascii_letters, *(a + b for a in string.ascii_letters for b in string.digits))


def alphabet(size: int) -> tuple[str, ...]:
    """The first ``size`` plain symbols: 0-9, a-z, A-Z, then a0, a1, ... (at most 582)."""
    return ALPHABET[:size]


def require_symbols(task: Task, symbols: int, least: int = 1) -> None:
    """Raises `ConfigError` unless ``least <= symbols <= len(ALPHABET)``."""
    require(
        least <= symbols <= len(ALPHABET),
        f"{type(task).__name__}.symbols: allowed {least}..{len(ALPHABET)}, got {symbols}",
    )
