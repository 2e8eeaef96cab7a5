"""Passkey retrieval: recall what was stored, somewhere in noise: a symbol under a key, or the digits of a number.

``5 c k3 9 t t 0 k1 c 4 k3`` -> ``9``. The needle test of Mohtashami and Jaggi 2023 (Landmark Attention, section 4.2) in
symbols: a stored symbol looks like noise and only the key before it tells, pairs lie at random places, and the key that
is asked for comes last.

``the grass is green . the pass key is 7 1 4 3 2 . the sky is blue . ... the pass key is`` -> ``7 1 4 3 2`` is the same
with repetitive text for noise, which shows how much text a state survives (Chen et al. 2025, Stuffed Mamba).

Length: the words of noise. Claim: attention that retrieves blocks recalls far beyond the training length, where
attention over the whole row with rotary positions does not. Shown by experiments/long_context_retrieval.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Example, Task, alphabet, encoded_length, require_symbols


@dataclasses.dataclass(frozen=True)
class Passkey(Task):
    """``noise k v noise k`` -> ``v``.

    Attributes:
      pairs: stored in each example, under different keys; one of them is asked for.
      copies: how often each pair is written down. More than one gives a training example more places to learn from
        (`recalled`).
      keys: how many keys there are.
      symbols: what noise and stored values are drawn from.
    """

    paper: ClassVar[str] = "Mohtashami and Jaggi 2023, Landmark Attention (passkey retrieval)"

    pairs: int = 1
    copies: int = 1
    keys: int = 8
    symbols: int = 56

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)
        require(1 <= self.pairs <= self.keys, f"Passkey.pairs: allowed 1..{self.keys}, the keys, got {self.pairs}")
        require(self.copies >= 1, f"Passkey.copies: allowed 1 or more, got {self.copies}")

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), *(f"key{i}" for i in range(self.keys)))

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        words = self.words
        noise = [words[i] for i in rng.integers(self.symbols, size=length)]
        keys = [f"key{i}" for i in rng.permutation(self.keys)[: self.pairs]]
        values = [words[i] for i in rng.integers(self.symbols, size=self.pairs)]
        which = rng.permutation(np.repeat(np.arange(self.pairs), self.copies))
        prompt, start = [], 0
        for place, pair in zip(np.sort(rng.integers(length + 1, size=len(which))), which, strict=True):
            prompt += [*noise[start:place], keys[pair], values[pair]]
            start = place
        chosen = int(rng.integers(self.pairs))
        return [*prompt, *noise[start:], keys[chosen]], [values[chosen]]

    def tokens_bound(self, length: int) -> int:
        return encoded_length(["0"] * (length + 2 * self.pairs * self.copies + 1), ["0"])

    def depth(self, example: Example) -> float:
        """Where in the prompt the value was first stored: 0 at its start, 1 at its end."""
        words = self.decode(example.tokens[1 : example.prompt_length - 1])
        return words.index(words[-1]) / max(len(words) - 3, 1)

    def recalled(self, tokens: np.ndarray) -> np.ndarray:
        """Boolean, as ``tokens`` [T]: a key that was there before, after which the stored symbol follows."""
        first = self.vocab_size - self.keys
        seen: set[int] = set()
        return np.array([t >= first and (t in seen or seen.add(t) is not None) for t in tokens.tolist()], bool)


FILLER = "the grass is green . the sky is blue . the sun is yellow . here we go . there and back again .".split()
NEEDLE = "the pass key is".split()


@dataclasses.dataclass(frozen=True)
class PasskeyStream(Task):
    """``filler the pass key is 7 1 4 3 2 . filler the pass key is`` -> ``7 1 4 3 2``; ``digits`` of the key."""

    paper: ClassVar[str] = "Chen et al. 2025, Stuffed Mamba: Oversized States Lead to the Inability to Forget"

    digits: int = 5

    def check(self) -> None:
        super().check()
        require(self.digits >= 1, f"PasskeyStream.digits: expected a positive integer, got {self.digits}")

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", *dict.fromkeys((*FILLER, *NEEDLE)))

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        key = [str(digit) for digit in rng.integers(10, size=self.digits)]
        start, place = int(rng.integers(len(FILLER))), int(rng.integers(length + 1))
        filler = [FILLER[(start + i) % len(FILLER)] for i in range(length)]
        return [*filler[:place], *NEEDLE, *key, ".", *filler[place:], *NEEDLE], key

    def tokens_bound(self, length: int) -> int:
        return encoded_length(["."] * (length + 2 * len(NEEDLE) + self.digits + 1), ["0"] * self.digits)

    def depth(self, example: Example) -> float:
        """Where in the filler the key stands: 0 at its start, 1 at its end."""
        words = self.decode(example.tokens[1 : example.prompt_length - 1])
        return (words.index("pass") - 1) / example.length
