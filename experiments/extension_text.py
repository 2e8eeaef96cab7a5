"""Text for `experiments.context_extension`: rows to train on, windows to read, passkeys hidden in either."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.loader import Loader
from jaxlm.data.pack import TokenStream
from jaxlm.data.text import Corpus
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.byte import ByteTokenizer

COPIES = 3  # of a passkey in a row to train on, so that it has as much to say as the text


@dataclasses.dataclass(frozen=True)
class Needle:
    """A passkey: a mark and some symbols, all different, that come once in a row and are asked for at its end.

    Attributes:
      mark: tokens before the symbols, there and at the end.
      symbols: what the passkey is drawn from.
      size: how many symbols it has.
    """

    mark: tuple[int, ...]
    symbols: tuple[int, ...]
    size: int = 4

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Needle:
        """Bytes that UTF-8 never has, for a byte tokenizer; else digits after a sentence."""
        if isinstance(tokenizer, ByteTokenizer):
            return cls((0xFF,), tuple(range(0xF5, 0xFF)))
        digits = [tokenizer.encode(str(n)) for n in range(10)]
        return cls(tuple(map(int, tokenizer.encode("\nThe pass key is "))), tuple(int(d[-1]) for d in digits))

    def hide(self, row: np.ndarray, depths: Sequence[float], draws: np.random.Generator) -> np.ndarray:
        """``row`` int32 [L] with the passkey at ``depths`` (0 to 1) of what is left of it, and again at its end.

        Raises `ConfigError` if there is no room.
        """
        key = np.concatenate((self.mark, draws.choice(self.symbols, self.size, replace=False))).astype(row.dtype)
        rest = len(row) - (len(depths) + 1) * len(key)
        require(rest >= 0, f"a row of {len(row)} tokens has no room for {len(depths) + 1} passkeys of {len(key)}")
        cuts = [0, *(round(depth * rest) for depth in sorted(depths)), rest]
        pieces = [part for start, stop in itertools.pairwise(cuts) for part in (row[start:stop], key)]
        return np.concatenate(pieces)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A loader's batches with a passkey, several times, in the first rows of each.

    Attributes:
      loader: of rows without padding inside.
      needle: what is hidden.
      share: of the rows.
      first: the loader's step that is step 0 here.
    """

    loader: Loader
    needle: Needle
    share: float = 0.0
    first: int = 0

    @property
    def seed(self) -> int:
        return self.loader.seed

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        batch = {name: array for name, array in self.loader(self.first + step).items() if name != "positions"}
        rows = round(self.share * len(batch["tokens"]))
        draws = np.random.default_rng((self.seed, self.first + step))
        for row in range(rows):
            tokens = np.append(batch["tokens"][row], batch["targets"][row, -1])
            hidden = self.needle.hide(tokens, draws.random(COPIES).tolist(), draws)
            batch["tokens"][row], batch["targets"][row] = hidden[:-1], hidden[1:]
            batch["segment_ids"][row], batch["weights"][row] = 1, 1.0
        return batch


@dataclasses.dataclass(frozen=True)
class Text:
    """A corpus as tokens.

    Attributes:
      corpus: where it is from.
      tokenizer: text to tokens.
    """

    corpus: Corpus
    tokenizer: Any

    @functools.cached_property
    def train(self) -> TokenStream:
        return TokenStream.encode(self.corpus.part("train").documents, self.tokenizer)

    @functools.cached_property
    def needle(self) -> Needle:
        return Needle.of(self.tokenizer)

    @functools.cached_property
    def held_out(self) -> list[np.ndarray]:
        """Tokens of the validation documents, int32, longest first."""
        texts = (self.tokenizer.encode(d.text, eos=False) for d in self.corpus.part("validation").documents)
        return sorted((np.asarray(t, np.int32) for t in texts), key=len, reverse=True)

    def ends(self, longest: int, count: int) -> list[tuple[int, int]]:
        """(document, end) of ``count`` windows that have ``longest`` tokens before their end."""
        long = [i for i, t in enumerate(self.held_out) if len(t) > longest]
        require(long, f"{self.corpus.source}: no held-out document has more than {longest} tokens; give longer text")
        draws = np.random.default_rng(0)
        return [(i, int(draws.integers(longest, len(self.held_out[i])))) for i in np.resize(long, count)]

    def windows(self, length: int, count: int, longest: int) -> np.ndarray:
        """int32 [count, length + 1]: tokens up to ends that do not depend on ``length``."""
        ends = self.ends(longest, count)
        return np.stack([self.held_out[i][end - length : end + 1] for i, end in ends])
