"""First embeddings of a language model from bit ciphers (Zhao and Williams 2023), and drawn as usual.

One BPE, one small model with tied embeddings, other first tables: drawn; the codes of neighbours summed, and offset by
offset; patterns of as many bits in another order; and, as a control, the summed table with its rows dealt to other
tokens, which has its geometry and none of its knowledge. Read as it learns, in bits a byte of held-out text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, bits_per_byte, of_text
from experiments.tokenization.texts import Texts, make, stream_of
from jaxlm.core.config import require
from jaxlm.core.params import initialize
from jaxlm.model import decoder
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.bit_cipher import BitCipher as Cipher
from jaxlm.tokenize.bit_cipher import table

DRAWN, SUM, CONCAT, SHUFFLED, DEALT = "drawn", "sum", "concat", "sum, patterns shuffled", "sum, rows dealt anew"
BITS = "bits per byte"


@dataclasses.dataclass(frozen=True)
class BitCipher(Study):
    """The study of bit ciphers.

    Attributes:
      vocab_size: of the BPE.
      window: offsets of the cipher; ``concat`` shares the model's width among both sides of it.
      model: the transformer.
      readings: times at which it is read; the claim is about the middle one.
      texts: what is learned and read.
    """

    name: ClassVar[str] = "bit_cipher"
    claim: ClassVar[str] = (
        "a language model that begins with bit-cipher embeddings learns faster than one with drawn ones (Zhao and "
        "Williams 2023)"
    )
    axes: ClassVar[tuple[str, str]] = ("training step", BITS)

    vocab_size: int = 1024
    window: int = 4
    model: SmallModel = SmallModel(steps=400)
    readings: int = 4
    texts: Texts = Texts(most=1_500_000)

    def check(self) -> None:
        super().check()
        require(self.readings > 0, f"BitCipher.readings: expected a positive number, got {self.readings}")
        require(
            self.window > 0 and self.model.width % (2 * self.window) == 0,
            f"BitCipher.window: {self.window} offsets on two sides do not share a width of {self.model.width}",
        )
        bits = self.model.width // (2 * self.window)
        require(
            self.vocab_size < 2**bits,
            f"BitCipher.window: offset by offset leaves {bits} bits of a width of {self.model.width}, too few patterns "
            f"for {self.vocab_size} tokens",
        )

    def cipher(self, label: str) -> Cipher:
        join = CONCAT if label == CONCAT else SUM
        bits = self.model.width // (2 * self.window if label == CONCAT else 1)
        return Cipher(bits, self.window, "shuffled" if label == SHUFFLED else "lexicographic", join=join)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return make("bpe", self.texts.train_texts, self.vocab_size)

    def arms(self) -> Sequence[Arm]:
        return [Arm("", label, self.model.steps) for label in (DRAWN, SUM, CONCAT, SHUFFLED, DEALT)]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        tokenizer, small = self.tokenizer, self.model
        stream, held_out = (stream_of(tokenizer, texts) for texts in (self.texts.train_texts, self.texts.test_texts))
        length = small.row_tokens(stream, self.texts.train.num_bytes)
        training = Training(small, tokenizer.vocab_size, of_text(small, stream, length), progress)
        specs = decoder.param_specs(training.model.spec)
        vectors = None if arm.label == DRAWN else self.vectors(arm.label)

        def run(seed: int) -> Iterator[Found]:
            params = initialize(specs, jax.random.key(seed))
            if vectors is not None:
                first = table(vectors, seed)
                first = np.random.default_rng(seed).permutation(first) if arm.label == DEALT else first
                params["embed"]["table"] = jax.numpy.asarray(first)
            state = training.begin(seed, params)
            for reading in range(1, self.readings + 1):
                step = small.steps * reading // self.readings
                params, state = training(seed, step, state)
                yield Found(
                    BITS, bits_per_byte(training.model, params, held_out, length, self.texts.test.num_bytes), step
                )

        return run

    def vectors(self, label: str) -> NDArray[np.float64]:
        documents = (self.tokenizer.encode(text) for text in self.texts.train_texts)
        return self.cipher(label).vectors(documents, self.tokenizer.vocab_size)

    @property
    def middle(self) -> int:
        return self.model.steps * ((self.readings + 1) // 2) // self.readings

    def lines(self, found: Results) -> Iterator[Line]:
        drawn = found.of("", DRAWN, BITS, self.middle)
        for label in (SUM, CONCAT):
            if drawn and (values := found.of("", label, BITS, self.middle)):
                yield Line(
                    f"{label}: bits per byte under drawn at step {self.middle}", 0.0, True, between(drawn, values)
                )

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        steps = [self.model.steps * i // self.readings for i in range(1, self.readings + 1)]
        return {f"step {at}": lambda label, at=at: found.of("", label, BITS, at) for at in dict.fromkeys(steps)}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            panels.add(out, "", arm.label, found.curve("", arm.label, BITS))
        return out
