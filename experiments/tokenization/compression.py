"""Compressed text as tokens (Lester et al. 2024, Training LLMs over Neurally Compressed Text): can it be learned?

M1, counts of the last two bytes in the training text, drives an arithmetic coder; M2, a small transformer, is trained
on what comes out. The same text, in pieces, is given to it as bytes; as equal-info windows of 16 bits, each two tokens
of a byte (or one token); and as the continuous code of a piece, a token a byte. A model sees the same bytes of text a
step in every form. Read as it learns: bits per 8-bit token of held-out text, 8 where nothing is learned, and bits per
byte of the text. Windows are self-delimiting: their tokens alone give the text back, so bits per byte are a code's.

Controls: windows in shuffled order, whose tokens are as often what they are but have no context, and random bytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, nats, of_text
from experiments.tokenization.texts import Texts
from jaxlm.compress import equal_info, range_coder
from jaxlm.compress.context_model import ContextModel
from jaxlm.core.config import require
from jaxlm.data.pack import TokenStream

BETWEEN = b"\n\n"  # documents
PLAIN, WINDOWS, WIDE, SHUFFLED, CODE, RANDOM = (
    "bytes",
    "windows",
    "windows, whole",
    "windows, shuffled",
    "code",
    "random",
)
PER_TOKEN, BITS, STORED = "bits per 8-bit token", "bits per byte", "stored bits per byte"
BYTE = 8


class Coded(NamedTuple):
    """A text in some form: the ids of its pieces, each int [n], and how many bytes of text they are."""

    pieces: list[NDArray[np.int64]]
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Compression(Study):
    """The study of compressed text.

    Attributes:
      order: of M1, symbols that it looks back.
      window_bits: W.
      whole: also windows as one token each, of 2^W ids.
      piece: bytes that are coded as one.
      model: M2.
      train_bytes, test_bytes: of documents.
      readings: times at which M2 is read.
    """

    name: ClassVar[str] = "compression"
    claim: ClassVar[str] = (
        "text compressed by plain arithmetic coding is not learnable; in equal-info windows, where coder and context "
        "start anew, it is (Lester et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("training step", "bits")

    order: int = 2
    window_bits: int = 16
    whole: bool = False
    piece: int = 10_240
    model: SmallModel = SmallModel(steps=1000)
    train_bytes: int = 0
    test_bytes: int = 50_000
    readings: int = 5

    def check(self) -> None:
        super().check()
        require(self.order >= 0, f"Compression.order: expected 0 or more, got {self.order}")
        require(
            self.window_bits >= 16 and self.window_bits % BYTE == 0,
            f"Compression.window_bits: expected 16 or a larger multiple of 8 (every byte then fits in a window), "
            f"got {self.window_bits}",
        )
        require(self.piece >= 1, f"Compression.piece: expected at least 1 byte, got {self.piece}")
        require(not self.whole or self.window_bits == 16, "Compression.whole: only windows of 16 bits are ids at once")
        require(
            1 <= self.readings <= self.model.steps,
            f"Compression.readings: expected 1..{self.model.steps} (model.steps), got {self.readings}",
        )

    def arms(self) -> Sequence[Arm]:
        wide = [WIDE] if self.whole else []
        return [Arm("", name, self.model.steps) for name in (PLAIN, WINDOWS, *wide, SHUFFLED, CODE, RANDOM)]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        train, test = (self._coded(arm.label, held_out) for held_out in (False, True))
        size = 1 << (self.window_bits if arm.label == WIDE else BYTE)
        stream, held_out = _stream(train, size), _stream(test, size)
        length = self.model.row_tokens(stream, train.num_bytes)
        training = Training(self.model, size + 1, of_text(self.model, stream, length), progress)
        eights = sum(map(len, test.pieces)) * (self.window_bits // BYTE if arm.label == WIDE else 1)

        def run(seed: int) -> Iterator[Found]:
            yield Found(STORED, BYTE * eights / test.num_bytes)
            for step, params in training.readings(seed, self.readings):
                bits = nats(training.model, params, held_out, length) / np.log(2)
                yield Found(PER_TOKEN, bits / eights, step)
                yield Found(BITS, bits / test.num_bytes, step)

        return run

    def _coded(self, label: str, held_out: bool) -> Coded:
        model, *texts = _source(self.order, self.train_bytes, self.test_bytes)
        text = texts[held_out]
        if label == PLAIN:
            return Coded([np.frombuffer(piece, np.uint8).astype(np.int64) for piece in self.cut(text)], len(text))
        if label in (CODE, RANDOM):
            codes = _codes(self, held_out)
            if label == RANDOM:
                draws = np.random.default_rng(int(held_out))
                codes = [draws.bytes(len(code)) for code in codes]
            return Coded([np.frombuffer(code, np.uint8).astype(np.int64) for code in codes], len(text))
        cells, done = _windows(self, held_out)
        if label == SHUFFLED:
            mixed = np.random.default_rng(int(held_out)).permutation(np.concatenate(cells))
            cells = np.split(mixed, np.cumsum([len(piece) for piece in cells])[:-1])
        bits = self.window_bits if label == WIDE else BYTE
        tokens = (equal_info.cells_to_tokens(piece.tolist(), self.window_bits, bits) for piece in cells)
        return Coded([piece.astype(np.int64) for piece in tokens], done)

    def cut(self, text: bytes) -> list[bytes]:
        """The pieces of a text."""
        return [text[i : i + self.piece] for i in range(0, len(text), self.piece)]

    def lines(self, found: Results) -> Iterator[Line]:
        of = lambda label, measure=PER_TOKEN: found.last("", label, measure)
        for label in (CODE, RANDOM):
            if values := of(label):
                away = {seed: abs(value - BYTE) for seed, value in values.items()}
                yield Line(f"{label}: bits per 8-bit token, from 8", 0.1, False, away)
        if below := between(of(CODE), of(WINDOWS)):
            yield Line("windows under the code, bits per 8-bit token", 0.2, True, below)
        if context := between(of(SHUFFLED), of(WINDOWS)):
            yield Line("  under shuffled windows (what context tells)", 0.0, True, context)
        if shorter := between(of(CODE, BITS), of(WINDOWS, BITS)):
            yield Line("windows under the code, bits per byte of the text", 0.0, True, shorter)

    def notes(self, found: Results) -> list[str]:
        if not (stored := found.last("", CODE, STORED)):
            return []
        return [f"M1 alone: {np.median(list(stored.values())):.3f} bits per byte of held-out text"]

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        return {name: lambda label, name=name: found.last(part, label, name) for name in (PER_TOKEN, BITS, STORED)}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            for panel in (PER_TOKEN, BITS):
                panels.add(out, panel, arm.label, found.curve("", arm.label, panel))
        return out


@functools.cache
def _source(order: int, train_bytes: int, test_bytes: int) -> tuple[ContextModel, bytes, bytes]:
    """M1 and the two texts."""
    texts = Texts(most=train_bytes, held_out=test_bytes)
    train, test = BETWEEN.join(texts.train_texts), BETWEEN.join(texts.test_texts)
    return ContextModel.train([train], order), train, test


@functools.cache
def _codes(study: Compression, held_out: bool) -> list[bytes]:
    """The arithmetic code of every piece."""
    model, *texts = _source(study.order, study.train_bytes, study.test_bytes)
    return range_coder.encode(study.cut(texts[held_out]), model.batch, model.total)


@functools.cache
def _windows(study: Compression, held_out: bool) -> tuple[list[NDArray[np.int64]], int]:
    """The cells of every piece, and how many bytes of the text they are.

    A piece that ends where no cell does is cut shorter, and what is cut off goes to the next; the last may lose it.
    """
    model, train, test = _source(study.order, study.train_bytes, study.test_bytes)
    text, at, cells = test if held_out else train, 0, []
    while at < len(text):
        piece = text[at : at + study.piece]
        while piece and (found := equal_info.encode_self_delimiting(model, piece, study.window_bits)) is None:
            piece = piece[:-1]
        if not piece:
            break
        cells.append(np.array(found, np.int64))
        at += len(piece)
    return cells, at


def _stream(coded: Coded, start: int) -> TokenStream:
    """Each piece behind the id ``start``, and nothing at its end."""
    dtype = np.min_scalar_type(start)
    ids = [np.concatenate([[start], piece]).astype(dtype) for piece in coded.pieces]
    stops = np.cumsum([len(piece) for piece in ids])
    return TokenStream(np.concatenate(ids), stops, np.concatenate([[0], stops[:-1]]) + 1)
