"""Merges of a batch on a trained model: how much shorter is a text, and what do longer tokens cost? (Feher et al. 2024)

A model of prose reads held-out batches in which the most frequent pairs of tokens of a word have become one token each,
from none of the merges that a batch has to all of them. The embeddings of merged tokens are the mean of their pieces',
or what a hypernetwork predicts that was trained for the model as for an exchange of tokenizers; nothing is trained on
the merges. Read in bits per byte, the loss being over the vocabulary and the merged tokens together. Which merges a
batch has is told for nothing, so the bits are too few by what a list of them would take.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run
from experiments.tokenization.language_model import OfSeed, Training, of_text
from experiments.tokenization.texts import Texts, make, stream_of
from experiments.tokenization.transfer import TransferStudy, report_to
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.interop.dynamic import Predict, dynamic_batch, dynamic_score, mean_of_pieces, predicted
from jaxlm.model.language_model import LanguageModel

MEAN, NETWORK = "mean_of_pieces", "hypernetwork"
BITS, SAVED = "bits per byte", "share of tokens saved"
ALL = 1 << 30  # merges: as many as there are


@dataclasses.dataclass(frozen=True)
class Merging(TransferStudy):
    """The study of merges of a batch.

    Attributes:
      vocab_size: of the tokenizer.
      percent: of a batch's merges that are made.
      batch_texts, text_bytes: of a batch, whose merges are its own.
    """

    name: ClassVar[str] = "merging"
    claim: ClassVar[str] = (
        "frequent pairs of a batch can become one token each, at little loss if a hypernetwork makes their embeddings. "
        "Published, Mistral-7B: up to 17 % shorter at minimal loss (Feher et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("percent of a batch's merges", BITS)

    vocab_size: int = 1024
    percent: tuple[int, ...] = (0, 10, 25, 50, 75, 100)
    batch_texts: int = 48
    text_bytes: int = 256

    def check(self) -> None:
        super().check()
        require(min(self.batch_texts, self.text_bytes) > 0, "Merging: batch_texts and text_bytes must be positive")
        good = 0 in self.percent and all(0 <= p <= 100 for p in self.percent)
        require(good, f"Merging.percent: expected 0 and others up to 100, got {self.percent}")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", MEAN), Arm("", NETWORK, self.network_steps)]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        made = _made(self)

        def run(seed: int) -> Iterator[Found]:
            model, params = made.model, made.params(seed, progress)
            predict = mean_of_pieces if arm.label == MEAN else self._network(made, params, seed, progress)
            for percent in self.percent:
                nats, size, after, before = 0.0, 0, 0, 0
                for texts, merges in made.batches:
                    batch = dynamic_batch(made.tokenizer, texts, round(merges * percent / 100), bos=True)
                    losses, sizes = dynamic_score(model, params, batch, predict)
                    nats, size = nats + float(np.asarray(losses, np.float64).sum()), size + int(sizes.sum())
                    after += int(batch.segment_ids.sum()) - len(texts)  # without the begin of each text
                    before += int(batch.before.sum())
                yield Found(SAVED, 1 - after / before, percent)
                yield Found(BITS, nats / size / math.log(2), percent)

        return run

    def _network(self, made: _Made, params: Params, seed: int, progress: frame.Report) -> Predict:
        trained = self.transfer.train(
            made.model.spec, params, made.tokenizer, made.texts.train_texts, seed=seed, report=report_to(progress)
        )
        return predicted(self.network, trained)

    def lines(self, found: Results) -> Iterator[Line]:
        saved = found.curve("", NETWORK, SAVED)
        enough = [int(at) for at, values in saved if min(values.values()) >= 0.15]
        if not enough:
            return
        at = enough[0]
        network, mean = (found.of("", label, BITS, at) for label in (NETWORK, MEAN))
        rise = between(network, found.of("", NETWORK, BITS, 0), lambda new, old: new / old - 1)
        yield Line(f"15 % shorter, at {at} % of merges: hypernetwork's rise of bits", 0.03, False, rise)
        if worse := between(mean, network):
            yield Line("  mean of pieces over the hypernetwork, bits per byte", 0.0, True, worse)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        at = lambda measure, percent: lambda label: found.of(part, label, measure, percent)
        bits = {f"{percent} %": at(BITS, percent) for percent in self.percent}
        return {**bits, **{f"saved, {percent} %": at(SAVED, percent) for percent in self.percent if percent}}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            panels.add(out, "merges of a batch", arm.label, found.curve("", arm.label, BITS))
        return out


class _Made:
    """What the arms of a study share: texts, the tokenizer, held-out batches, and the model of each seed."""

    def __init__(self, study: Merging):
        self.texts = Texts(most=study.train_bytes, held_out=study.test_bytes)
        self.tokenizer = make("bpe", self.texts.train_texts, study.vocab_size)
        size = study.text_bytes
        pieces = [text[i : i + size] for text in self.texts.test_texts for i in range(0, len(text), size)]
        batches = [pieces[i : i + study.batch_texts] for i in range(0, len(pieces), study.batch_texts)]
        self.batches = [(texts, len(dynamic_batch(self.tokenizer, texts, ALL).merges)) for texts in batches]
        self.model = LanguageModel(study.model.spec(self.tokenizer.vocab_size))
        stream = stream_of(self.tokenizer, self.texts.train_texts)
        rows = of_text(study.model, stream, study.model.row_tokens(stream, self.texts.train.num_bytes))
        self.params = OfSeed(lambda seed, told: Training(study.model, self.tokenizer.vocab_size, rows, told)(seed)[0])


@functools.cache
def _made(study: Merging) -> _Made:
    return _Made(study)
