"""Another tokenizer for a trained model: which new embeddings lose least, at once and after a little training?

A model is trained on code with one tokenizer and gets one made for prose (Minixhofer et al. 2024, Zero-Shot Tokenizer
Transfer, and the methods of the slot ``embedding_init``); read on held-out prose, in bits per byte, right after the
exchange and after a short continued training. *normal*, rows drawn around zero, is the control, *random* draws them as
the old rows lie; *trained with it*, a model that had the new tokenizer from the start, and the same training otherwise,
is what an exchange could reach. *k_tokeniser* has a tokenizer of its own: the old one with words of the prose added.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run
from experiments.tokenization.language_model import OfSeed, SmallModel, Training, bits_per_byte, of_text
from experiments.tokenization.texts import Texts, make, stream_of
from experiments.tokenization.transfer import TransferStudy, report_to
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.interop.vocabulary import swap_vocabulary
from jaxlm.model.embedding_hypernetwork import TransferModel
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.k_tokeniser import KTokeniser

NETWORK, WHOLE, BITS = "hypernetwork", "trained with it", "bits per byte"
INITS = ("normal", "random", "covariance", "mean", "mean_of_pieces", "k_tokeniser", "focus", "wechsel", "ofa")
ORDER = ("normal", "random", "mean_of_pieces", "focus")  # each asked to be no worse than the one before


@dataclasses.dataclass(frozen=True)
class Surgery(TransferStudy):
    """The study of exchanged tokenizers.

    Attributes:
      old, new: sizes of the vocabularies.
      tuned: steps of continued training on prose.
      tuning_rate: its highest learning rate.
    The model is trained on code, and the bytes are of either text.
    """

    name: ClassVar[str] = "surgery"
    claim: ClassVar[str] = (
        "a model takes another tokenizer at once if a network trained for it predicts the embeddings; averages of "
        "pieces and of neighbours lose more, random rows all (Minixhofer et al. 2024; Dobler and de Melo 2023)"
    )
    axes: ClassVar[tuple[str, str]] = ("steps after the exchange", BITS)

    old: int = 1024
    new: int = 2048
    tuned: int = 100
    tuning_rate: float = 1e-3

    def check(self) -> None:
        super().check()
        require(self.tuned > 0, f"Surgery.tuned: expected a positive number, got {self.tuned}")

    def arms(self) -> Sequence[Arm]:
        steps = {NETWORK: self.network_steps + self.tuned, WHOLE: self.model.steps + self.tuned}
        return [Arm("", label, steps.get(label, self.tuned)) for label in (*INITS, NETWORK, WHOLE)]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        made = _made(self)
        target = made.target(arm.label)
        stream, test = (stream_of(target, one) for one in (made.prose.train_texts, made.prose.test_texts))
        length = self.model.row_tokens(stream, made.prose.train.num_bytes)
        small = dataclasses.replace(self.model, steps=self.tuned, rate=self.tuning_rate)
        tuning = Training(small, target.vocab_size, of_text(small, stream, length), progress)

        def run(seed: int) -> Iterator[Found]:
            params = self._exchanged(made, arm.label, seed, progress)
            read = lambda params: bits_per_byte(tuning.model, params, test, length, made.prose.test.num_bytes)
            yield Found(BITS, read(params), 0)
            params, _ = tuning(seed, state=tuning.begin(seed, params))
            yield Found(BITS, read(params), self.tuned)

        return run

    def _exchanged(self, made: _Made, label: str, seed: int, progress: frame.Report) -> Params:
        """Parameters of the model with the new tokenizer."""
        target = made.target(label)
        if label == WHOLE:
            return made.trained(self.model, target, seed, progress)
        spec, params = self.model.spec(made.source.vocab_size), made.base(seed, progress)
        if label == NETWORK:
            return self._predicted(made, spec, params, seed, progress)
        texts = made.prose.train_texts if label in ("focus", "wechsel", "ofa") else ()
        model = LanguageModel(spec)
        return swap_vocabulary(model, params, made.source, target, label, texts=texts, seed=seed)[1]

    def _predicted(self, made: _Made, spec: ModelSpec, params: Params, seed: int, progress: frame.Report) -> Params:
        """The model with the embeddings that a network, trained for it on code alone, predicts."""
        target = made.target(NETWORK)
        tables = self.transfer(
            spec, params, made.source, target, made.code.train_texts, seed=seed, report=report_to(progress)
        )
        kept = {name: value for name, value in tables.items() if name in ("table", "kernel")}
        made_whole = TransferModel(spec, self.network).with_tables({"base": params}, kept)
        return {name: value for name, value in made_whole.items() if value}  # a tied model has no head

    def lines(self, found: Results) -> Iterator[Line]:
        of = lambda label, at=0: found.of("", label, BITS, at)
        for when, at in (("at once", 0), (f"after {self.tuned} steps", self.tuned)):
            for worse, arm in (*itertools.pairwise(ORDER), ("mean_of_pieces", NETWORK)):
                if values := between(of(worse, at), of(arm, at)):
                    yield Line(f"{when}: {worse} over {arm}, bits per byte", 0.0, True, values)
        if of(NETWORK) and of(WHOLE) and of("random"):
            gaps = {s: (of("random")[s] - of(NETWORK)[s]) / (of("random")[s] - of(WHOLE)[s]) for s in of(NETWORK)}
            yield Line("share of random's gap to 'trained with it' that the network closes", 0.6, True, gaps)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        at = lambda step: lambda label: found.of(part, label, BITS, step)
        return {"at once": at(0), f"after {self.tuned} steps": at(self.tuned)}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            panels.add(out, "code to prose", arm.label, found.curve("", arm.label, BITS))
        return out


class _Made:
    """What the arms of a study share: texts, tokenizers, and the model of each seed, trained once."""

    def __init__(self, study: Surgery):
        self.code = Texts("stdlib:", study.train_bytes, study.test_bytes)
        self.prose = Texts(most=study.train_bytes, held_out=study.test_bytes)
        self.source = make("bpe", self.code.train_texts, study.old)
        self._target = make("bpe", self.prose.train_texts, study.new)
        self._size = study.new
        self.base = OfSeed(lambda seed, progress: self.trained(study.model, self.source, seed, progress))

    def target(self, label: str) -> Tokenizer:
        """The new tokenizer of an arm, of as many ids in all."""
        return self._typed if label == "k_tokeniser" else self._target

    @functools.cached_property
    def _typed(self) -> Tokenizer:
        return KTokeniser.train(self.prose.train_texts, self._size, base=self.source)

    def trained(
        self, small: SmallModel, tokenizer: Tokenizer, seed: int, progress: frame.Report | frame.Silent
    ) -> Params:
        """A model's parameters after training on code."""
        stream = stream_of(tokenizer, self.code.train_texts)
        length = small.row_tokens(stream, self.code.train.num_bytes)
        return Training(small, tokenizer.vocab_size, of_text(small, stream, length), progress)(seed)[0]


@functools.cache
def _made(study: Surgery) -> _Made:
    return _Made(study)
