"""The small language model of the studies: trained on tokens, read in bits per byte.

Models of different tokenizers are given the same bytes a step: a row has as many tokens as ``row_bytes`` bytes make, so
longer tokens mean shorter rows, and one with a larger vocabulary is neither shown more text nor read on other text.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments import study
from experiments.small_models import Batches, train
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.types import Params
from jaxlm.data.loader import Loader
from jaxlm.data.pack import Padded, TokenStream, rows
from jaxlm.mixer.attention import Attention
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.tokenize import loss
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.step import Trainer

NEXT_TOKEN = NextToken()


@dataclasses.dataclass(frozen=True)
class SmallModel(Spec):
    """A transformer and its training: AdamW with b2 .95 and weight decay .1, cosine to 5 % after 5 % of warm-up.

    Attributes:
      width, layers, heads: of the transformer; its MLPs are 4 times as wide.
      row_bytes: of text in a row, about.
      batch_size: rows a step.
      steps: of training.
      rate: the highest learning rate.
      steps_per_call: training steps fused into one call of the device.
      position: encoding of positions.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    row_bytes: int = 256
    batch_size: int = 16
    steps: int = 600
    rate: float = 3e-3
    steps_per_call: int = 25
    position: Any = slot("position", "rotary")

    def check(self) -> None:
        for name in (field.name for field in dataclasses.fields(self) if "slot" not in field.metadata):
            value = getattr(self, name)
            require(value > 0, f"SmallModel.{name}: expected a positive number, got {value}")
        require(
            self.width % self.heads == 0, f"SmallModel.heads: {self.heads} heads do not divide a width of {self.width}"
        )

    def spec(self, vocab_size: int) -> ModelSpec:
        block = Block(mixer=Attention(heads=self.heads, position=self.position))
        return ModelSpec(
            vocab_size=vocab_size,
            width=self.width,
            layers=(Group((block,), self.layers),),
            tied_head=True,
            remat="none",
        )

    def optimizer(self) -> Optimizer:
        schedule = Schedule("cosine", self.rate, warmup=0.05, final_fraction=0.05)
        return Optimizer(schedule=schedule, b2=0.95, weight_decay=0.1, clip_norm=1.0)

    def row_tokens(self, stream: TokenStream, num_bytes: int) -> int:
        """How many tokens of a stream make a row, in eights, so that sizes are few."""
        return max(8, 8 * round(self.row_bytes * len(stream.tokens) / num_bytes / 8))


class Training:
    """The training of one model; runs with other seeds share what is compiled.

    Args:
      small: the model and its training.
      vocab_size: of its tokens.
      batches: of a seed; `of_text` has those of a text.
      progress: told of steps that are done.
      objective: what is learned.
    """

    def __init__(
        self,
        small: SmallModel,
        vocab_size: int,
        batches: Callable[[int], Batches],
        progress: study.Report | study.Silent,
        objective: Any = NEXT_TOKEN,
    ):
        self.small, self._batches, self._report = small, batches, progress
        self.model = Decoder(small.spec(vocab_size))
        self._trainer = Trainer(self.model, objective, small.optimizer(), small.steps)

    def begin(self, seed: int, params: Params) -> Any:
        """The state before the first step from given parameters, which are copied."""
        return self._trainer.init(params, seed)

    def __call__(self, seed: int, until: int | None = None, state: Any = None) -> tuple[Params, Any]:
        """Parameters after ``until`` steps (all of them if None), and the state to go on from."""
        call, batches = self.small.steps_per_call, self._batches(seed)
        state = train(self._trainer, batches, call, self._report.steps, state=state, until=until)
        return self._trainer.averaged(state), state

    def readings(self, seed: int, number: int) -> Iterator[tuple[int, Params]]:
        """(step, parameters) at so many evenly spaced steps, the last one at the end."""
        state = None
        for reading in range(1, number + 1):
            step = self.small.steps * reading // number
            params, state = self(seed, step, state)
            yield step, params


class OfSeed:
    """What the arms of a study share of a seed, made once; others wait for it."""

    def __init__(self, make: Callable[[int, study.Silent], Any]):
        self._make, self._lock, self._made = make, threading.Lock(), {}

    def __call__(self, seed: int, progress: study.Report) -> Any:
        with self._lock:
            if seed not in self._made:
                self._made[seed] = self._make(seed, study.Silent(progress))
            return self._made[seed]


def of_text(small: SmallModel, stream: TokenStream, length: int) -> Callable[[int], Batches]:
    """Rows of ``length`` tokens packed from a text, in the order of a seed."""
    loader = Loader(rows(stream, length), small.batch_size)
    return lambda seed: dataclasses.replace(loader, seed=seed)


@jax.jit(static_argnums=0)
def _nats(model: Decoder, params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood, and the patches that found no room."""
    out = model(params, batch["tokens"], segment_ids=batch["segment_ids"], ordered=True)
    assert out.logits is not None
    picked = jnp.take_along_axis(out.logits, batch["targets"][..., None], -1)[..., 0]
    nats = jnp.sum(batch["weights"] * (jax.nn.logsumexp(out.logits, -1) - picked))
    return nats, out.aux.get("patch_overflow", jnp.zeros(()))


def nats(model: Decoder, params: Params, stream: TokenStream, length: int, batch_size: int = 16) -> float:
    """The negative log-likelihood of all targets of a stream, each document in rows of its own.

    Raises `ConfigError` if patches of the text found no room in the model.
    """
    loader = Loader(Padded(stream, length), batch_size, shuffle=False, remainder="pad")
    nats, lost = 0.0, 0.0
    for step in range(loader.steps_per_epoch):
        more = _nats(model, params, loader(step))
        nats, lost = nats + float(more[0]), lost + float(more[1])
    require(not lost, f"{lost:.0f} patches of the text found no room; raise the patcher's patches_per_byte")
    return nats


def bits_per_byte(model: Decoder, params: Params, stream: TokenStream, length: int, num_bytes: int) -> float:
    """What a stream of ``num_bytes`` bytes of text costs; the ends of documents count, and have no bytes."""
    return loss.bits_per_byte(nats(model, params, stream, length), num_bytes)


@jax.jit(static_argnums=0)
def _choices(model: Decoder, params: Params, tokens: jax.Array) -> jax.Array:
    logits = model(params, tokens, ordered=True).logits
    assert logits is not None
    return jnp.argmax(logits, -1)


def first_wrong(
    model: Decoder, params: Params, batch: Mapping[str, NDArray], rows_at_a_time: int = 500
) -> NDArray[np.int64]:
    """Which weighted target of each row is the first that is not the model's choice, counted from 0; -1 if none. [B].

    The model reads the true targets; up to its first error those are what it would have written itself.
    """
    tokens, counted = batch["tokens"], batch["weights"] > 0
    parts = [_choices(model, params, tokens[i : i + rows_at_a_time]) for i in range(0, len(tokens), rows_at_a_time)]
    wrong = (np.concatenate(list(map(np.asarray, parts))) != batch["targets"]) & counted
    return np.where(wrong.any(1), wrong.argmax(1) - counted.argmax(1), -1)
