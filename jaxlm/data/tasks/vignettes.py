"""Vignettes: a list of nouns, other text, and a list again: the same, in another order, or other nouns.

``mary wrote down a list of words : n7 , n3 , n9 . <text> when she came back she read the list again : n7 , n3 , n9 .``
A language model that remembers the list word by word is not surprised by the second (Armeni et al. 2022,
Characterizing Verbatim Short-Term Memory in Neural Language Models). The text between is of a small grammar of our own.
The whole document is to be predicted; the metric is of `spans`: the median surprisal of the second list relative to
that of the first, the first noun of each left out.

In training the second list repeats the first with a probability, and otherwise is of other nouns; in evaluation it is
what ``condition`` says. Length: the nouns of a list. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.data.tasks.base import Example, Task, encoded_length

CONDITIONS = ("repeat", "permute", "novel")
OPENING = "mary wrote down a list of words :".split()
RETURN = "when she came back she read the list again :".split()
PROMPT = "text"
DETERMINERS = ("the", "a", "this", "every")
ADJECTIVES = ("old", "small", "quiet", "green", "tired", "famous")
PEOPLE = ("farmer", "teacher", "child", "doctor", "king", "sailor")
VERBS = ("sees", "follows", "helps", "calls", "paints", "forgets")
ADVERBS = ("today", "often", "slowly", "again")


@dataclasses.dataclass(frozen=True)
class Vignettes(Task):
    """``... : n7 , n3 . text ... : n7 , n3 .``

    Attributes:
      nouns: that lists are drawn from, without replacement.
      gap: words of text between the lists, the least and the most; its logarithm is drawn uniformly, for heads that
        look a list up are learned from near ones.
      condition: of the second list in evaluation: ``"repeat"``, ``"permute"`` (never the same order, if there is
        another) or ``"novel"`` (none of the first list's nouns).
      repeats: the share of training documents whose second list is the first.
    """

    paper: ClassVar[str] = "Armeni et al. 2022, Characterizing Verbatim Short-Term Memory in Neural Language Models"

    nouns: int = 500
    gap: tuple[int, int] = (20, 200)
    condition: str = "repeat"
    repeats: float = 0.5

    def check(self) -> None:
        super().check()
        most = max(self.train_lengths[1], self.eval_lengths[1])
        require(self.nouns >= 2 * most, f"Vignettes.nouns: two lists of {most} need {2 * most}, got {self.nouns}")
        require(1 <= self.gap[0] <= self.gap[1], f"Vignettes.gap: allowed 1 <= least <= most, got {self.gap}")
        choose("Vignettes.condition", self.condition, CONDITIONS)
        require(0 <= self.repeats <= 1, f"Vignettes.repeats: allowed 0..1, got {self.repeats}")

    @property
    def words(self) -> tuple[str, ...]:
        grammar = (*OPENING, *RETURN, ",", ".", *DETERMINERS, *ADJECTIVES, *PEOPLE, *VERBS, *ADVERBS)
        return (PROMPT, *dict.fromkeys(grammar), *(f"n{i}" for i in range(self.nouns)))

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._document(rng, length, self.condition)

    def sample_training(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._document(rng, length, "repeat" if rng.random() < self.repeats else "novel")

    def tokens_bound(self, length: int) -> int:
        return encoded_length([PROMPT], [*OPENING, *RETURN]) + 4 * length + self.gap[1]

    def spans(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Places in ``example.tokens`` of the nouns of the first list and of the second, int [N] each."""
        first = self._ids["n0"]
        places = np.flatnonzero((example.tokens >= first) & (example.tokens < first + self.nouns))
        return places[: example.length], places[example.length :]

    def _document(self, rng: np.random.Generator, length: int, condition: str) -> tuple[list[str], list[str]]:
        drawn = [f"n{i}" for i in rng.choice(self.nouns, size=2 * length, replace=False)]
        first, second = drawn[:length], drawn[length:]
        if condition == "repeat":
            second = first
        elif condition == "permute":
            # Any order but the first: a rotation of a permutation that happens to change nothing.
            order = rng.permutation(length)
            order = np.roll(order, 1) if (order == np.arange(length)).all() else order
            second = [first[i] for i in order]
        low, high = self.gap
        # As each number's share of the logarithmic scale, and never above the most.
        count = min(int(low * ((high + 1) / low) ** rng.random()), high)
        text: list[str] = []
        while len(text) < count:
            text += _sentence(rng)
        text = [*text[: count - 1], "."]
        return [PROMPT], [*OPENING, *_listed(first), *text, *RETURN, *_listed(second)]


def _listed(nouns: list[str]) -> list[str]:
    return [word for noun in nouns for word in (noun, ",")][:-1] + ["."]


def _sentence(rng: np.random.Generator) -> list[str]:
    """``the old farmer sees a child often .``"""
    pick = lambda words: words[int(rng.integers(len(words)))]
    phrase = lambda: [pick(DETERMINERS), *([pick(ADJECTIVES)] if rng.random() < 0.5 else []), pick(PEOPLE)]
    return [*phrase(), pick(VERBS), *phrase(), *([pick(ADVERBS)] if rng.random() < 0.5 else []), "."]
