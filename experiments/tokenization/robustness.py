"""Models of bytes, of words and of patches against one of subword tokens: what do typos and capitals cost them?

Every model is trained on the same bytes a step and has as many FLOPs a byte as the transformer of bytes: those of
longer tokens or patches are wider, and the table says how many parameters that makes. Local layers of patchers are the
same for all. Read: bits per byte of held-out text, and how many more it takes with letters exchanged for others, with
neighbouring letters swapped, and in capitals. The changed text has surprises of its own, so all models pay; what a
tokenizer pays beyond is what it cuts differently.

Entropy patches have the mean length of SpaceByte's, by a threshold that is found on the training text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, bits_per_byte, of_text
from experiments.tokenization.patched_model import initial, mean_patch, nearest, patcher_of
from experiments.tokenization.texts import Texts, in_capitals, make, stream_of, with_swaps, with_typos
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import count
from jaxlm.model.decoder import param_specs
from jaxlm.model.describe import forward_flops
from jaxlm.tokenize.byte import ByteTokenizer

PLAIN, CHANGED = "bits per byte", ("letters exchanged", "letters swapped", "in capitals")
BYTE, SUBWORD = "byte", "bpe"


@dataclasses.dataclass(frozen=True)
class Robustness(Study):
    """The study of changed text.

    Attributes:
      models: ``"byte"``, ``"bpe"``, and registered patchers.
      vocab_size: of BPE.
      model: the transformer of bytes.
      local_width: of patchers' local layers, one before the model's and one after.
      share: of letters that are exchanged, or swapped with the next.
      train_bytes, test_bytes: of text; 0 for all.
    """

    name: ClassVar[str] = "robustness"
    claim: ClassVar[str] = (
        "models of words made of bytes lose less on perturbed text than models of subword tokens (Neitemeier et al. "
        "2025), at equal compute patches at words or where the next byte is hard beat patches of fixed length (Slagle "
        "2024; Pagnoni et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = (PLAIN, "more bits per byte")

    models: tuple[str, ...] = (
        BYTE, SUBWORD, "fixed_stride", "space_byte", "entropy", "routing", "word_pooled", "hierarchical",
    )  # fmt: skip
    vocab_size: int = 2048
    model: SmallModel = SmallModel()
    local_width: int = 64
    share: float = 0.1
    train_bytes: int = 0
    test_bytes: int = 50_000

    def check(self) -> None:
        super().check()
        for name in self.models:
            choose(f"{type(self).__name__}.models", name, (BYTE, SUBWORD, *registry.methods("patcher")))
        require(0 < self.share < 1, f"Robustness.share: expected a share, got {self.share}")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", name, self.model.steps) for name in self.models]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        texts = Texts(most=self.train_bytes, held_out=self.test_bytes)
        tokenizer = make("bpe" if arm.label == SUBWORD else "byte", texts.train_texts, self.vocab_size)
        stream = stream_of(tokenizer, texts.train_texts)
        length = self.model.row_tokens(stream, texts.train.num_bytes)
        bytes_per_token = texts.train.num_bytes / len(stream.tokens)
        aim = forward_flops(self.model.spec(ByteTokenizer().vocab_size), self.model.row_bytes)
        rows = jnp.asarray(stream.tokens[: 64 * length].reshape(-1, length), jnp.int32)
        patcher, patch = None, bytes_per_token
        if arm.label not in (BYTE, SUBWORD):
            patcher, patch = patcher_of(arm.label, self.local_width, rows, tokenizer.vocab_size, texts)
        flops = lambda small: _flops(small, tokenizer.vocab_size, length, patch) / bytes_per_token
        small = nearest(self.model, patcher, flops, aim)
        spec = small.spec(tokenizer.vocab_size)
        training = Training(small, tokenizer.vocab_size, of_text(small, stream, length), progress)

        def run(seed: int) -> Iterator[Found]:
            params, _ = training(seed, state=training.begin(seed, initial(spec, seed, texts)))
            learned = patch if patcher is None else mean_patch(training.model, params, rows)
            yield Found("bytes per patch", learned)
            yield Found("kFLOPs per byte", flops(small) / 1e3)
            yield Found("million parameters", count(param_specs(spec)) / 1e6)
            changed = (
                with_typos(texts.test_texts, self.share, seed),
                with_swaps(texts.test_texts, self.share, seed),
                in_capitals(texts.test_texts),
            )
            for name, one in zip((PLAIN, *CHANGED), (texts.test_texts, *changed), strict=True):
                held_out = stream_of(tokenizer, one)
                yield Found(name, bits_per_byte(training.model, params, held_out, length, texts.test.num_bytes))

        return run

    def lines(self, found: Results) -> Iterator[Line]:
        of = lambda name, measure: found.of("", name, measure)
        rise = lambda name, change: between(of(name, change), of(name, PLAIN))
        for name in ("hierarchical", "word_pooled"):
            for change in CHANGED:
                if less := between(rise(name, change), rise(SUBWORD, change)):
                    yield Line(f"{name}: rise over BPE's, {change}", 0.0, False, less)
        for name in ("space_byte", "entropy"):
            if below := between(of(name, PLAIN), of("fixed_stride", PLAIN)):
                yield Line(f"{name} over fixed_stride, bits per byte", 0.0, False, below)
        if above := between(of("hierarchical", PLAIN), of(BYTE, PLAIN)):
            yield Line("hierarchical over bytes, bits per byte", 0.0, False, above)
        if length := of("routing", "bytes per patch"):
            ratio = registry.get("patcher", "routing")().ratio
            away = {seed: abs(value / ratio - 1) for seed, value in length.items()}
            yield Line(f"routing: mean patch from the {ratio:g} bytes asked for, share", 0.15, False, away)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        of = lambda measure: lambda label: found.of(part, label, measure)
        rise = lambda label, change: between(found.of(part, label, change), found.of(part, label, PLAIN))
        more = lambda change: lambda label: rise(label, change)
        sizes = ("bytes per patch", "kFLOPs per byte", "million parameters")
        return {PLAIN: of(PLAIN), **{f"+ {change}": more(change) for change in CHANGED}, **{s: of(s) for s in sizes}}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for change in CHANGED:
            for name in self.models:
                x, y = found.of("", name, PLAIN), found.of("", name, change)
                if y:
                    rise = np.array([y[seed] - x[seed] for seed in y])[:, None]
                    out.setdefault(change, {})[name] = ([float(np.median(list(x.values())))], rise)
        return out


def _flops(small: SmallModel, vocab_size: int, length: int, patch: float) -> float:
    """Forward FLOPs a token, of as many patches as there are and not as there is room for."""
    spec = small.spec(vocab_size)
    if spec.patcher is not None:
        spec = dataclasses.replace(spec, patcher=dataclasses.replace(spec.patcher, patches_per_byte=1 / patch))
    return forward_flops(spec, length)
