"""A source that looks k symbols back, with and without tokens (Rajaraman et al. 2024, Toward a Theory of Tokenization).

Two parts for each k. *unigram*: a dictionary (LZW with the longest match, or BPE) of d tokens and nothing but their
frequencies, smoothed by half a count, in bits a symbol of held-out text; the model is so simple that all structure it
captures is the dictionary's. *transformer*: the same model trained on symbols and on BPE tokens of the same text, the
same number of symbols a step, read as it learns; with rotary positions, and with learned ones as in the paper, where
looking k back is not one thing but one for every position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, bits_per_byte, of_text
from jaxlm.core.config import require
from jaxlm.data.pack import TokenStream
from jaxlm.data.switching_source import SwitchingSource
from jaxlm.tokenize import merges
from jaxlm.tokenize.dictionary import lempel_ziv
from jaxlm.tokenize.trie import Trie

LINE = 1000  # symbols a BPE word may have
ALPHABET = b"ab"
METHODS = ("lzw", "bpe")
BITS = "bits per symbol"
LEARNED = ", learned"
POSITIONS: dict[str, Any] = {"": "rotary", LEARNED: {"name": "learned", "args": {"size": 1024}}}


@dataclasses.dataclass(frozen=True)
class Markov(Study):
    """The study of Markov sources.

    Attributes:
      orders: k, how far back the source looks.
      switch: probability that a symbol differs from the one k before.
      dictionaries: d, tokens that a dictionary has, the two symbols among them.
      train_symbols, test_symbols: of text, for dictionaries and frequencies.
      order: k of the transformers' source.
      tokens: d of the transformer with tokens.
      model: the transformer.
      model_symbols: of text to train it on.
      readings: times at which it is read.
    """

    name: ClassVar[str] = "markov"
    claim: ClassVar[str] = (
        "without tokens transformers stay at the unigram level of a source of order 2 and more, or leave it late; with "
        "a dictionary the best unigram model over tokens is already near the entropy rate (Rajaraman et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("tokens in the dictionary, or training step", BITS)
    log_x: ClassVar[bool] = True

    orders: tuple[int, ...] = (1, 2, 4)
    switch: float = 0.9
    dictionaries: tuple[int, ...] = (2, 16, 64, 256, 1024, 4096)
    train_symbols: int = 300_000
    test_symbols: int = 100_000
    order: int = 2
    tokens: int = 16
    model: SmallModel = SmallModel(width=64, heads=2, steps=800)
    model_symbols: int = 2_000_000
    readings: int = 16

    def check(self) -> None:
        super().check()
        require(min(self.orders + (self.order,)) >= 1, f"Markov.orders: expected orders >= 1, got {self.orders}")
        require(min(self.dictionaries + (self.tokens,)) >= 2, "Markov: a dictionary has at least the two symbols")

    def source(self, order: int) -> SwitchingSource:
        return SwitchingSource(order, self.switch, self.switch)

    def arms(self) -> Sequence[Arm]:
        unigram = [Arm(f"k {k}", method) for k in self.orders for method in METHODS]
        texts = ("symbols", f"bpe {self.tokens}")
        return [*unigram, *(Arm(self.trained, text + kind, self.model.steps) for kind in POSITIONS for text in texts)]

    @property
    def trained(self) -> str:
        return f"transformer, k {self.order}"

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        if arm.part == self.trained:
            return self._transformer(arm, progress)
        return lambda seed: self._unigram(arm, int(arm.part.removeprefix("k ")), seed)

    def _unigram(self, arm: Arm, order: int, seed: int) -> Iterator[Found]:
        draws = np.random.default_rng(seed)
        train, test = (_text(self.source(order), n, draws) for n in (self.train_symbols, self.test_symbols))
        for size in self.dictionaries:
            encode = _lzw(train, size) if arm.label == "lzw" else _bpe(train, size)
            yield Found(BITS, _unigram_bits(encode(train), encode(test), size, len(test)), size)

    def _transformer(self, arm: Arm, progress: frame.Report) -> Run:
        text, comma, _ = arm.label.partition(LEARNED)
        size = 2 if text == "symbols" else self.tokens
        small = dataclasses.replace(self.model, position=POSITIONS[comma])
        draws = np.random.default_rng(0)  # one text and dictionary for all seeds, which then share what is compiled
        train, test = (_text(self.source(self.order), n, draws) for n in (self.model_symbols, self.test_symbols))
        encode = _bpe(train[: self.train_symbols], size)
        stream, held_out = _stream(encode(train)), _stream(encode(test))
        length = small.row_tokens(stream, len(train))
        training = Training(small, size, of_text(small, stream, length), progress)

        def run(seed: int) -> Iterator[Found]:
            for step, params in training.readings(seed, self.readings):
                yield Found(BITS, bits_per_byte(training.model, params, held_out, length, len(test)), step)

        return run

    def lines(self, found: Results) -> Iterator[Line]:
        for k in self.orders:
            source, part = self.source(k), f"k {k}"
            near = min(self.dictionaries, key=lambda size: abs(size - 64))
            if k <= 2 and (values := found.of(part, "bpe", BITS, near)):
                above = {seed: value - source.entropy_rate for seed, value in values.items()}
                yield Line(f"{part}: unigram over BPE {near}, above the entropy rate", 0.05, False, above)
            if 2 in self.dictionaries and (values := found.of(part, "bpe", BITS, 2)):
                apart = {seed: abs(value - source.unigram_floor) for seed, value in values.items()}
                yield Line(f"{part}: unigram over symbols, from the floor", 0.005, False, apart)
        step = self.model.steps * max(1, round(self.readings / 4)) // self.readings
        floor = self.source(self.order).unigram_floor
        for kind in POSITIONS:
            symbols, tokens = (
                found.of(self.trained, text + kind, BITS, step) for text in ("symbols", f"bpe {self.tokens}")
            )
            if symbols and tokens:
                below = {seed: floor - value for seed, value in symbols.items()}
                yield Line(f"{self.trained}: symbols{kind}, under the floor at step {step}", 0.03, False, below)
                yield Line(f"  tokens{kind}, bits there", 0.6, False, tokens)
                yield Line(f"  tokens{kind}, under symbols there", 0.0, True, between(symbols, tokens))

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        trained = part == self.trained
        places = [self.model.steps * i // self.readings for i in range(1, self.readings + 1)]
        shown = places[1 :: max(1, self.readings // 4)] + places[-1:] if trained else list(self.dictionaries)
        name = "step" if trained else "d"
        return {f"{name} {at}": lambda label, at=at: found.of(part, label, BITS, at) for at in dict.fromkeys(shown)}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            panels.add(out, arm.part, arm.label, found.curve(arm.part, arm.label, BITS))
        for part, order in ((self.trained, self.order), *((f"k {k}", k) for k in self.orders)):
            if part in out:
                x = [min(min(xs) for xs, _ in out[part].values()), max(max(xs) for xs, _ in out[part].values())]
                rate = self.source(order).entropy_rate
                out[part]["entropy rate"] = (x, np.array([[rate, rate]]))
        return out


Encode = Callable[[bytes], NDArray[np.int64]]


def _text(source: SwitchingSource, size: int, draws: np.random.Generator) -> bytes:
    return np.frombuffer(ALPHABET, np.uint8)[source.sample(size, draws)].tobytes()


def _lzw(text: bytes, size: int) -> Encode:
    """Tokens 0..size-1 by the longest match: the two symbols, then LZW's phrases."""
    phrases = [ALPHABET[:1], ALPHABET[1:], *lempel_ziv([text], size - 2)]
    trie = Trie((phrase, i) for i, phrase in enumerate(phrases))
    return lambda data: np.array(trie.greedy(data), np.int64)


def _bpe(text: bytes, size: int) -> Encode:
    """Tokens 0..size-1: the two symbols, then the merges, learned and applied line by line."""
    lines: dict[tuple[int, ...], int] = {}
    for line in _lines(text):
        lines[tuple(line)] = lines.get(tuple(line), 0) + 1
    learned = [(step.left, step.right) for step in merges.learn(lines, size - 2)]
    ranks = merges.ranks_of(learned)
    compact = np.full(merges.BYTES + len(learned), -1, np.int64)
    compact[list(ALPHABET)] = range(2)
    compact[merges.BYTES :] = np.arange(len(learned)) + 2
    return lambda data: compact[[i for line in _lines(data) for i in merges.apply(line, ranks)]]


def _lines(text: bytes) -> Iterator[bytes]:
    return (text[i : i + LINE] for i in range(0, len(text), LINE))


def _unigram_bits(train: NDArray[np.int64], test: NDArray[np.int64], size: int, symbols: int) -> float:
    """Bits a symbol under the tokens' frequencies and half a count each."""
    counts = np.bincount(train, minlength=size) + 0.5
    return float(-np.log2(counts / counts.sum())[test].sum() / symbols)


def _stream(tokens: NDArray[np.int64]) -> TokenStream:
    """One document."""
    return TokenStream(tokens.astype(np.uint16), np.array([len(tokens)]), np.array([1]))
