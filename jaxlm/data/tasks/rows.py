"""Tasks whose answers stand all along a row, not behind a question: what they share.

The model reads ``<bos> row <sep> w_1 ... w_n`` and is asked at some of the words, each time for a word that need not be
the next one. The prompt is one constant word, so that nothing in the row itself tells where it begins or ends. The last
word is asked for nothing: there ``<eos>`` is due, which counts as the last of the answers.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jaxlm.data.tasks.base import BOS, EOS, SEP, Example, Task

PROMPT = "row"
NOTHING = ""  # asked at a word


@dataclasses.dataclass(frozen=True)
class RowTask(Task, abc.ABC):
    """`sample` gives the words of a row, and at each of them the word that is asked for, or `NOTHING`."""

    @property
    @abc.abstractmethod
    def row_words(self) -> tuple[str, ...]:
        """The task's own tokens, the prompt's left out."""

    @abc.abstractmethod
    def row_length(self, length: int) -> int:
        """The words of a row of ``length``."""

    @property
    def words(self) -> tuple[str, ...]:
        return (PROMPT, *self.row_words)

    def tokens_bound(self, length: int) -> int:
        return self.row_length(length) + 4

    def row(self, example: Example) -> list[str]:
        """The words of an example's row."""
        return self.decode(example.tokens[example.prompt_length : -1])

    def asked(self, example: Example) -> list[str]:
        """What is asked at each word of an example's row, `NOTHING` where nothing is."""
        assert example.labels is not None
        labels = example.labels[example.prompt_length :]
        return [self.vocabulary[i] if i >= 0 and i != EOS else NOTHING for i in labels.tolist()]

    def label_accuracy(self, example: Example, predictions: Sequence[int] | np.ndarray) -> float:
        """The share of the labels, ``<eos>`` left out, that predictions [T - 1] at all places get right."""
        assert example.labels is not None
        counted = (example.labels >= 0) & (example.labels != EOS)
        return float((np.asarray(predictions)[: len(counted)] == example.labels)[counted].mean())

    def render(self, example: Example) -> str:
        """The row and its answers as two lines of text."""
        return f"prompt: {' '.join(self.row(example))}\ntarget: {' '.join(self.answer(example.target))}"

    def _example(self, prompt: list[str], target: list[str], length: int, rng: np.random.Generator | None) -> Example:
        head = [BOS, self._ids[PROMPT], SEP]
        tokens = np.array([*head, *self.encode(prompt), EOS], np.int32)
        labels = np.full(len(tokens) - 1, -1, np.int32)
        labels[len(head) :] = [self._ids[word] if word else -1 for word in target]
        labels[-1] = EOS
        return Example(tokens, len(head), length, labels=labels)


def answers(pairs: Iterable[tuple[int, str]], length: int) -> list[str]:
    """``length`` words, all `NOTHING` but those of (place, word)."""
    asked = [NOTHING] * length
    for place, word in pairs:
        asked[place] = word
    return asked
