"""The next byte at random cuts of a text: naive, healed, exact (Phan et al. 2024, Exact Byte-Level Probabilities).

A prompt ends where its user stopped typing, mostly inside of what would have been a token. Three answers from the same
token model to what comes next: tokenize the prompt and sum over tokens (*naive*); take its last token back and ask for
tokens that begin like it (*healing*); sum over all encodings the text may turn out to have (*covers*, exact). Two
models: a trigram of token counts, and a transformer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, of_text
from experiments.tokenization.texts import Texts, make, stream_of
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.decode.byte_level import byte_view, naive_next_byte
from jaxlm.decode.token_healing import healed_next_byte
from jaxlm.decode.token_model import FullPass, Ids
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import Tokenizer

METHODS = ("naive", "healing", "covers")
PLACES = ("all", "inside a token", "at its end")
MODELS = ("counts", "transformer")
FLOOR = 1e-12  # of a probability, so that one impossible byte does not decide a mean


class Trigrams:
    """Counts of tokens after two others, backing off to one and none (Witten and Bell 1991).

        p(t | h) = (c(h t) + T(h) p(t | h')) / (c(h) + T(h))        T(h): kinds of tokens seen after h

    A `jaxlm.decode.token_model.TokenModel`.
    """

    context: int | None = 2

    def __init__(self, documents: Sequence[NDArray[np.int32]], vocab_size: int):
        self._uniform = np.full(vocab_size, 1 / vocab_size)
        self._after: list[dict[Ids, Counter[int]]] = [defaultdict(Counter) for _ in range(3)]
        for document in documents:
            ids = document.tolist()
            for order, after in enumerate(self._after):
                for i in range(max(order, 1), len(ids)):
                    after[tuple(ids[i - order : i])][ids[i]] += 1

    def __call__(self, sequences: Sequence[Ids]) -> NDArray[np.float64]:
        return np.log(np.stack([self._row(tuple(ids[-2:])) for ids in sequences]))

    def _row(self, history: Ids) -> NDArray[np.float64]:
        row = self._row(history[1:]) if history else self._uniform
        seen = self._after[len(history)].get(history)
        if seen is None:
            return row
        row = row * len(seen)
        row[list(seen)] += list(seen.values())
        return row / (len(seen) + seen.total())


@dataclasses.dataclass(frozen=True)
class Cuts(Study):
    """The study of cuts.

    Attributes:
      vocab_size: of the BPE.
      model: the transformer.
      cuts: how many.
      longest: bytes before a cut at most.
      train_bytes, test_bytes: of text; 0 for all.
    """

    name: ClassVar[str] = "cuts"
    claim: ClassVar[str] = (
        "asked at any byte, a token model whose prompt is simply tokenized is wrong about the next byte; healing its "
        "last token helps, summing over cover encodings is exact (Phan et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("0 all cuts, 1 inside a token, 2 at its end", "bits of the next byte")

    vocab_size: int = 1024
    model: SmallModel = SmallModel()
    cuts: int = 500
    longest: int = 200
    train_bytes: int = 0
    test_bytes: int = 200_000

    def check(self) -> None:
        super().check()
        require(min(self.cuts, self.longest) > 0, "Cuts: cuts and longest must be positive")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", "counts"), Arm("", "transformer", self.model.steps)]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        texts = Texts(most=self.train_bytes, held_out=self.test_bytes)
        tokenizer = make("bpe", texts.train_texts, self.vocab_size)
        if arm.label == "counts":
            documents = [tokenizer.encode(text, bos=True, eos=True) for text in texts.train_texts]
            counts = Trigrams(documents, tokenizer.vocab_size)
            return lambda seed: self._read(tokenizer, counts, texts, seed)
        stream = stream_of(tokenizer, texts.train_texts)
        length = self.model.row_tokens(stream, texts.train.num_bytes)
        training = Training(self.model, tokenizer.vocab_size, of_text(self.model, stream, length), progress)
        model = LanguageModel(training.model.spec)
        return lambda seed: self._read(tokenizer, (model, training(seed)[0]), texts, seed)

    def _read(
        self, tokenizer: Tokenizer, model: Trigrams | tuple[LanguageModel, Params], texts: Texts, seed: int
    ) -> Iterator[Found]:
        draws = np.random.default_rng(seed)
        long = [text for text in texts.test_texts if len(text) > 1]
        prompts, following, inside = [], [], []
        for text in (long[i] for i in draws.integers(0, len(long), self.cuts)):
            cut = int(draws.integers(1, min(len(text), self.longest + 1)))
            prompts.append(text[:cut])
            following.append(text[cut])
            inside.append(cut not in tokenizer.spans(tokenizer.encode(text))[:, 1])
        tokens = model if isinstance(model, Trigrams) else FullPass(*model)
        view = byte_view(tokens, None, tokenizer) if isinstance(model, Trigrams) else byte_view(*model, tokenizer)
        found = {
            "naive": naive_next_byte(tokens, tokenizer, prompts),
            "healing": healed_next_byte(tokens, tokenizer, prompts),
            "covers": np.asarray(view.next_byte(prompts)),
        }
        for name, logs in found.items():
            picked = logs[np.arange(len(prompts)), following]
            bits = -np.log2(np.maximum(np.exp(picked), FLOOR))
            where = (np.ones(len(prompts), bool), np.array(inside), ~np.array(inside))
            for at, (place, chosen) in enumerate(zip(PLACES, where, strict=True)):
                yield Found(name, float(bits[chosen].mean()), at, place)

    def lines(self, found: Results) -> Iterator[Line]:
        for model, over_naive, over_healing in (("counts", 2.0, 0.5), ("transformer", 0.0, 0.0)):
            naive, healing, covers = (found.of("", model, name, 0, PLACES[0]) for name in METHODS)
            if covers:
                yield Line(f"{model}: bits of naive over covers", over_naive, True, between(naive, covers))
                yield Line(f"{model}: bits of healing over covers", over_healing, True, between(healing, covers))
                yield Line(f"{model}: bits of naive over healing", 0.0, True, between(naive, healing))

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        of = lambda name, at: lambda label: found.of(part, label, name, at, PLACES[at])
        return {f"{name}, {PLACES[at]}": of(name, at) for at in range(len(PLACES)) for name in METHODS}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for model in MODELS:
            for name in METHODS:
                points = [(at, found.of("", model, name, at, place)) for at, place in enumerate(PLACES)]
                panels.add(out, model, name, [(float(at), values) for at, values in points])
        return out
