"""Kinds of segmentation on one model: at equal bytes, which reads text in the fewest bits, and which survives typos?

Each tokenizer is trained on the same text to the same vocabulary, and a language model on its tokens with the same
bytes a step (so one of longer tokens computes less). Read: bits per byte of held-out text, as it is and with letters
exchanged, bytes per token, and Renyi efficiency, which was proposed as a measure of tokenizers that needs no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, bits_per_byte, of_text
from experiments.tokenization.texts import Texts, make, stream_of, with_typos
from jaxlm.core.config import require
from jaxlm.data.pack import TokenStream
from jaxlm.tokenize import bpe_dropout, metrics
from jaxlm.tokenize.base import BOS, EOS, Tokenizer
from jaxlm.tokenize.bpe import BpeTokenizer

DROPOUT = "bpe_dropout"
BITS, TYPOS = "bits per byte", "with typos"


@dataclasses.dataclass(frozen=True)
class Segmentation(Study):
    """The study of segmentations.

    Attributes:
      tokenizers: registered names, and ``"bpe_dropout"``: BPE whose merges are dropped while training.
      vocab_size: of each but bytes and characters.
      dropout: probability that a merge is dropped.
      passes: of the training text that dropout cuts anew.
      model: the transformer.
      train_bytes, test_bytes: of text.
      typos: share of letters exchanged.
    """

    name: ClassVar[str] = "segmentation"
    claim: ClassVar[str] = (
        "fewer tokens are not better by themselves (Schmidt et al. 2024); merging over spaces saves tokens (Liu et al. "
        "2025); a model that saw dropped merges loses less on typos (Provilkov et al. 2020)"
    )
    axes: ClassVar[tuple[str, str]] = ("bytes per token", BITS)

    tokenizers: tuple[str, ...] = (
        "byte", "character", "bpe", DROPOUT, "super_bpe", "unigram", "word_piece", "path_piece", "less_is_better",
    )  # fmt: skip
    vocab_size: int = 2048
    dropout: float = 0.1
    passes: int = 4
    model: SmallModel = SmallModel()
    train_bytes: int = 1_500_000
    test_bytes: int = 50_000
    typos: float = 0.05

    def check(self) -> None:
        super().check()
        for name in ("dropout", "typos"):
            require(0 < getattr(self, name) < 1, f"Segmentation.{name}: expected a share, got {getattr(self, name)}")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", name, self.model.steps) for name in self.tokenizers]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        texts = Texts(most=self.train_bytes, held_out=self.test_bytes)
        tokenizer = make("bpe" if arm.label == DROPOUT else arm.label, texts.train_texts, self.vocab_size)
        plain, test = stream_of(tokenizer, texts.train_texts), stream_of(tokenizer, texts.test_texts)
        stream = self._dropped(tokenizer, texts.train_texts) if arm.label == DROPOUT else plain
        length = self.model.row_tokens(plain, texts.train.num_bytes)
        training = Training(self.model, tokenizer.vocab_size, of_text(self.model, stream, length), progress)
        tokens = np.concatenate([tokenizer.encode(text) for text in texts.test_texts])
        counts = np.bincount(tokens, minlength=tokenizer.vocab_size)

        def run(seed: int) -> Iterator[Found]:
            params, _ = training(seed)
            wrong = stream_of(tokenizer, with_typos(texts.test_texts, self.typos, seed))
            yield Found("bytes per token", texts.test.num_bytes / len(tokens))
            yield Found("tokens of training text", float(len(plain.tokens)))
            yield Found("renyi", metrics.efficiency(counts, 2.5, tokenizer.vocab_size))
            for name, one in ((BITS, test), (TYPOS, wrong)):
                yield Found(name, bits_per_byte(training.model, params, one, length, texts.test.num_bytes))

        return run

    def _dropped(self, tokenizer: Tokenizer, texts: list[bytes]) -> TokenStream:
        """The text several times, each time cut anew."""
        assert isinstance(tokenizer, BpeTokenizer)
        draws = np.random.default_rng(0)
        ends = np.array([tokenizer.special(BOS)]), np.array([tokenizer.special(EOS)])
        documents = [
            np.concatenate((ends[0], bpe_dropout.encode(tokenizer, text, self.dropout, draws), ends[1]))
            for _ in range(self.passes)
            for text in texts
        ]
        stops = np.cumsum([len(document) for document in documents])
        starts = np.concatenate([[0], stops[:-1]])
        return TokenStream(np.concatenate(documents).astype(np.uint16), stops, starts + 1)

    def lines(self, found: Results) -> Iterator[Line]:
        of = lambda name, measure: found.of("", name, measure)
        share = lambda new, old: 1 - new / old
        if saved := between(of("super_bpe", "tokens of training text"), of("bpe", "tokens of training text"), share):
            yield Line("SuperBPE, share of BPE's tokens saved on the training text", 0.03, True, saved)
        if fewer := between(of("bpe", "bytes per token"), of("path_piece", "bytes per token")):
            yield Line("BPE over PathPiece, bytes per token", 0.0, False, fewer)
        rise = lambda name: between(of(name, TYPOS), of(name, BITS))
        if less := between(rise(DROPOUT), rise("bpe")):
            yield Line("typos: rise of bits per byte with BPE-dropout over BPE's", 0.0, False, less)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        of = lambda measure: lambda label: found.of(part, label, measure)
        return {name: of(name) for name in (BITS, TYPOS, "bytes per token", "renyi")}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for panel in (BITS, TYPOS):
            for arm in self.arms():
                x, y = (found.of("", arm.label, name) for name in ("bytes per token", panel))
                if y:
                    values = np.array(list(y.values()))[:, None]
                    out.setdefault(panel, {})[arm.label] = ([float(np.median(list(x.values())))], values)
        return out
