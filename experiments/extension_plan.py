"""What `experiments.context_extension` compares: models trained from scratch, methods, fine-tuned arms."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import choose
from jaxlm.model import decoder, extend
from jaxlm.model.spec import ModelSpec
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer

TAIL = 32  # last positions, whose loss is reported by itself


@dataclasses.dataclass(frozen=True)
class Base(Spec):
    """A model trained from scratch at L.

    Attributes:
      label: its name in tables, figures and results.csv.
      model: what is trained.
    """

    label: str = "rotary"
    model: ModelSpec = ModelSpec(vocab_size=ByteTokenizer().vocab_size)


@dataclasses.dataclass(frozen=True)
class Tuned(Spec):
    """The first base, trained further with another position encoding, and read with it.

    Attributes:
      label: its name.
      position: the encoding; what it learns starts fresh.
      lengths: of rows, in stages of equally many steps, the tokens of a step being the same: a curriculum if several.
      optimizer: of these steps; the study's ``tune_optimizer`` if None.
    """

    label: str = "naive"
    position: Any = slot("position", "rotary")
    lengths: tuple[int, ...] = (64,)
    optimizer: Optimizer | None = None

    def check(self) -> None:
        require(self.lengths and min(self.lengths) > 1, f"Tuned.lengths: expected positive lengths, got {self.lengths}")


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """The whole study.

    Attributes:
      bases: models trained from scratch; the first is the one that is extended, and has rotary positions.
      methods: training-free ways to a longer context, of `jaxlm.model.extend`; empty for all.
      tuned: fine-tuned ways.
      checkpoint: a folder to read the methods on instead of training; then there are no bases and no tuned arms.
      source: text, see `jaxlm.data.text`; training reads its train part and the tests its validation part.
      original: L.
      multiples: of L, at which models are read.
      seeds: of initial values and data order.
      steps, batch_tokens, optimizer: of the bases; ``tune_steps`` and ``tune_optimizer`` of the tuned arms.
      needles: the share of training rows that hide a passkey and ask for it at the end.
      windows: of text per length; fewer at lengths where ``eval_tokens`` tokens are fewer.
      passkeys: rows per length and depth, with ``depths`` depths.
      decode_steps: timed steps of decoding, at the shortest and the longest length; 0 for none.
      stream: multiple of L up to which StreamingLLM and a plain window read one token at a time through their caches,
        ``stream_rows`` texts together; 0 for none.
      workers: bases trained at the same time; 0 for one per core on a CPU and one elsewhere.
    """

    bases: tuple[Base, ...] = (Base(),)
    methods: tuple[str, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    checkpoint: str = ""
    source: str = "stdlib:"
    original: int = 64
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    seeds: tuple[int, ...] = (0,)
    steps: int = 1000
    batch_tokens: int = 1024
    optimizer: Optimizer = Optimizer()
    tune_steps: int = 300
    tune_optimizer: Optimizer = Optimizer()
    needles: float = 0.0
    windows: int = 64
    eval_tokens: int = 65_536
    passkeys: int = 32
    depths: int = 5
    decode_steps: int = 64
    stream: int = 0
    stream_rows: int = 16
    workers: int = 0

    def check(self) -> None:
        arms = [base.label for base in self.bases] + [arm.label for arm in self.tuned] + list(self.ways)
        require(len(set(arms)) == len(arms), f"RunConfig: labels of bases, tuned arms and methods must differ: {arms}")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"RunConfig.seeds: expected distinct seeds, got {self.seeds}"
        )
        require(self.original >= TAIL, f"RunConfig.original: expected at least {TAIL} tokens, got {self.original}")
        require(self.multiples[:1] == (1,), f"RunConfig.multiples: expected 1 first, got {self.multiples}")
        require(0 <= self.needles <= 1, f"RunConfig.needles: expected a share in [0, 1], got {self.needles}")
        sizes = (self.steps, self.tune_steps, self.windows, self.passkeys, self.depths, *self.multiples)
        require(min(sizes) > 0, "RunConfig: sizes must be positive")
        for method in self.methods:
            choose("extension method", method, extend.METHODS)
        for base in () if self.checkpoint else self.bases:
            decoder.param_specs(base.model)
            limit = decoder.max_positions(base.model)
            require(
                limit is None or limit >= max(self.lengths) + self.decode_steps + 1,
                f"base {base.label!r} represents {limit} positions; the longest window has {max(self.lengths)}",
            )

    @property
    def ways(self) -> tuple[str, ...]:
        """The training-free methods, without the model as it is."""
        return tuple(m for m in self.methods or extend.METHODS if m != "none")

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.original * n for n in self.multiples)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is read: a model for each length, and its parameters.

    Attributes:
      label: its name.
      model: of a multiple of L.
      params: for all of these; None where only the cost is asked for.
      method: the training-free method it is, which chooses the cache.
    """

    label: str
    model: Any
    params: Any
    method: str = "none"
