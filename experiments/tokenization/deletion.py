"""Deletion within an encoder (Kallini et al. 2024, MrT5): which tokens does a gate delete, and what does it cost?

Two tasks for a small encoder-decoder on bytes. Vowels: the source's letters without its vowels, .19 of them; a gate
that may delete .17 should find the vowels, and random deletion at that rate fails. Text: docstrings are to be written
with their typos corrected, at rising target rates; bits of the corrected text, against the same model without a gate,
and against the source of another row, which says what the source is worth. (The paper pretrains on span corruption, to
which models of this size and training hardly need their source.) Models are trained with soft deletion, under the
paper's controller of the rate, and read with hard deletion, where what is deleted is gone; the time of that reading is
measured beside one that deletes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.small_models import train
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.texts import Texts, with_typos
from jaxlm.core.config import Spec, require
from jaxlm.core.types import Params
from jaxlm.data.pairs import pair_batch
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.cross_attention import CrossAttention
from jaxlm.model.delete_gate import DeleteGate
from jaxlm.model.encode import Encoded, encode
from jaxlm.model.encoder_decoder import Transducer
from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.gated_deletion import GatedDeletion, RateController
from jaxlm.objective.sequence_to_sequence import SequenceToSequence
from jaxlm.position.t5_bias import T5Bias
from jaxlm.tokenize.base import BOS, EOS
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.step import Trainer

VOWELS, TEXT = "vowels", "text"
NO_GATE, GATE, RANDOM = "no gate", "gate", "random"
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BYTES = ByteTokenizer()
START, END = BYTES.special(BOS), BYTES.special(EOS)
REPEATS = 9  # of a timing
ROUND = 16  # places of a compiled hard deletion come in multiples of so many


@dataclasses.dataclass(frozen=True)
class SmallPair(Spec):
    """An encoder-decoder and its training, as `SmallModel` is of a decoder.

    Attributes:
      width, heads: of both stacks.
      encoder, decoder: layers of each.
      gate: encoder layers before the gate.
      noise: on its logits in training. Without it, where all of a source's tokens are worth about the same, they come
        to the threshold together and fall together, and the controller swings between none and all.
      length: bytes of a source.
      softmax1: of all attention, as the paper recommends. The gate's number is added to logits, and what all keys have
        in common cancels in a softmax: a gate that closes for all alike costs nothing there, and here attention.
      delay: share of the steps that come before keeping a token costs anything: the gate opens all the way at first,
        and tokens that are used by then resist. The source's diagnostic tasks wait 10,000 steps of 30,000; a task whose
        source comes to be used later has to wait longer, or everything goes.
      batch_size, steps, rate, steps_per_call: as of `SmallModel`.
    """

    width: int = 128
    heads: int = 4
    encoder: int = 2
    decoder: int = 2
    gate: int = 1
    noise: float = 0.0
    length: int = 32
    softmax1: bool = True
    delay: float = 1 / 3
    batch_size: int = 32
    steps: int = 1200
    rate: float = 1e-3
    steps_per_call: int = 20

    def check(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(
                isinstance(value, bool) or value > 0 or (field.name in ("noise", "delay") and value == 0),
                f"SmallPair.{field.name}: expected a positive number, got {value}",
            )
        require(self.delay < 1, f"SmallPair.delay: expected a share of the steps below 1, got {self.delay}")
        require(self.gate < self.encoder, f"SmallPair.gate: expected fewer than {self.encoder} layers, got {self.gate}")

    def spec(self, gated: bool) -> EncoderDecoderSpec:
        ffn = Mlp(activation="gelu")
        attend = functools.partial(Attention, heads=self.heads, softmax1=self.softmax1)
        reads = Block(attend(mask="bidirectional", position=T5Bias(bidirectional=True)), ffn)
        writes = (
            Block(attend(position=T5Bias()), None),
            Block(CrossAttention(heads=self.heads, softmax1=self.softmax1), ffn),
        )
        stack = functools.partial(ModelSpec, BYTES.vocab_size, self.width, tied_head=True, remat="none")
        return EncoderDecoderSpec(
            stack(layers=tuple(Group((reads,), n) for n in (self.gate, self.encoder - self.gate))),
            stack(layers=(Group(writes, self.decoder),)),
            start=START,
            gate=DeleteGate(layer=self.gate, noise=self.noise) if gated else None,
        )


class Vowels(NamedTuple):
    """Strings of letters, and the same without vowels, by seed and step."""

    length: int
    batch_size: int
    seed: int = 0

    def __call__(self, step: int) -> dict[str, NDArray]:
        rng = np.random.default_rng((self.seed, step))
        rows = rng.choice(np.frombuffer(LETTERS, np.uint8), (self.batch_size, self.length)).astype(np.int32)
        targets = [np.append(row[~is_vowel(row)], END) for row in rows]
        return pair_batch(list(rows), targets, self.length, self.length + 1, START)


class Typos(NamedTuple):
    """Pieces of a text with typos, and the same without, by seed and step."""

    text: bytes
    share: float
    length: int
    batch_size: int
    seed: int = 0

    def __call__(self, step: int) -> dict[str, NDArray]:
        rng = np.random.default_rng((self.seed, step))
        starts = rng.integers(0, len(self.text) - self.length + 1, self.batch_size)
        pieces = [self.text[i : i + self.length] for i in starts.tolist()]
        typed = with_typos(pieces, self.share, int(rng.integers(2**31)))
        sources, targets = ([np.frombuffer(x, np.uint8) for x in part] for part in (typed, pieces))
        return pair_batch(sources, [np.append(x, END) for x in targets], self.length, self.length + 1, START)


def written(batch: Mapping[str, NDArray]) -> int:
    """Bytes that a model is to write."""
    return int((batch["weights"] * (batch["targets"] != END)).sum())


def is_vowel(tokens: NDArray) -> NDArray[np.bool_]:
    return np.isin(tokens, np.frombuffer(b"AEIOUaeiou", np.uint8))


@dataclasses.dataclass(frozen=True)
class RandomDeletion(SequenceToSequence):
    """The control: a share of tokens is deleted for good, whichever.

    Attributes:
      rate: the share.
    """

    rate: float = 0.17

    def loss(self, model: Any, params: Params, batch: Mapping[str, Any], rng: Any) -> Any:
        keep = jax.random.bernoulli(jax.random.fold_in(rng, 2), 1 - self.rate, batch["source"].shape)
        encoded = hard(model.spec, params, batch["source"], batch["source"].shape[1], keep)
        return self.inner.loss(_Reading(model, encoded), params, batch, rng)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A model that has read its source."""

    model: Transducer
    encoded: Encoded

    def __call__(self, params: Params, tokens: jax.Array, **options: Any) -> Any:
        return self.model(params, tokens, encoded=self.encoded, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return self.model.unembed(params, hidden)


def hard(spec: EncoderDecoderSpec, params: Params, source: jax.Array, capacity: int, keep: Any = None) -> Encoded:
    return encode(spec, params, source, delete="hard", capacity=capacity, keep=keep)


@dataclasses.dataclass(frozen=True)
class Deletion(Study):
    """The study of deletion.

    Attributes:
      vowels, text: the models of the two parts.
      typos: share of a source's letters that are another.
      vowel_rate: target share of deleted letters.
      rates: target shares of deleted bytes.
      hard_share: of the rows in training that are read as after a hard deletion, as the source allows: a model that has
        only met soft deletion can live by the gates of tokens that are kept, which count no more in the end.
      controller: of the rate; its target is not looked at.
      rows: that are read.
      train_bytes, test_bytes: of text.
    """

    name: ClassVar[str] = "deletion"
    claim: ClassVar[str] = (
        "a gate in the encoder learns which bytes can go: up to three quarters, at the accuracy of ByT5 and in less "
        "time (Kallini et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("share deleted", "bits per byte written")

    vowels: SmallPair = SmallPair(length=16, steps=2500, rate=2e-3)
    text: SmallPair = SmallPair(encoder=4, gate=2, noise=1.0, length=48, delay=0.6, steps=2500, rate=2e-3)
    typos: float = 0.05
    vowel_rate: float = 0.17
    rates: tuple[float, ...] = (0.25, 0.5, 0.75)
    hard_share: float = 0.5
    controller: RateController = RateController(ki=5e-5)
    rows: int = 256
    train_bytes: int = 0
    test_bytes: int = 50_000

    def check(self) -> None:
        super().check()
        for rate in (self.vowel_rate, *self.rates):
            require(0 < rate < 1, f"Deletion.rates: expected shares in (0, 1), got {rate}")
        require(self.rows > 0, f"Deletion.rows: expected a positive number, got {self.rows}")

    def arms(self) -> Sequence[Arm]:
        found = [Arm(VOWELS, name, self.vowels.steps) for name in (NO_GATE, GATE, RANDOM)]
        return [*found, *(Arm(TEXT, name, self.text.steps) for name in (NO_GATE, *map(_percent, self.rates)))]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        small = self.vowels if arm.part == VOWELS else self.text
        rate = {GATE: self.vowel_rate} | {_percent(rate): rate for rate in self.rates}
        model = Transducer(small.spec(arm.label != NO_GATE))
        objective: Any = RandomDeletion(rate=self.vowel_rate) if arm.label == RANDOM else SequenceToSequence()
        if arm.label not in (NO_GATE, RANDOM):
            controller = dataclasses.replace(self.controller, target=rate[arm.label])
            delay = round(small.delay * small.steps)
            objective = GatedDeletion(controller=controller, delay=delay, hard_share=self.hard_share, inner=objective)
        schedule = Schedule("cosine", small.rate, warmup=0.05, final_fraction=0.05)
        trainer = Trainer(
            model,
            objective,
            Optimizer(schedule=schedule, b2=0.95, weight_decay=0.1, clip_norm=1.0),
            small.steps,
        )

        def run(seed: int) -> Iterator[Found]:
            state = train(trainer, self._batches(arm.part, seed, False), small.steps_per_call, progress.steps)
            yield from self._read(arm, model, trainer.averaged(state), seed)

        return run

    def _batches(self, part: str, seed: int, held_out: bool) -> Any:
        number = seed + 10_000 if held_out else seed
        if part == VOWELS:
            return Vowels(self.vowels.length, self.vowels.batch_size, number)
        texts = Texts(most=self.train_bytes, held_out=self.test_bytes)
        text = b"\n\n".join(texts.test_texts if held_out else texts.train_texts)
        return Typos(text, self.typos, self.text.length, self.text.batch_size, number)

    def _read(self, arm: Arm, model: Transducer, params: Params, seed: int) -> Iterator[Found]:
        """What a model does to held-out rows, with hard deletion where it has a gate."""
        spec, batches = model.spec, self._batches(arm.part, seed, True)
        nats, elsewhere, right, deleted, vowels, tokens, bytes_written = (0.0,) * 7
        ratios = []
        steps = -(-self.rows // batches.batch_size)
        for step in range(steps):
            batch = batches(step)
            source = batch["source"]
            kept = np.ones(source.shape, bool)
            if arm.label == RANDOM:
                kept = np.random.default_rng((seed, step)).random(source.shape) >= self.vowel_rate
            elif spec.gate is not None:
                kept = np.asarray(_kept(spec, params, source))
            capacity = min(source.shape[1], ROUND * -(-int(kept.sum(1).max()) // ROUND))
            found = _score(model, capacity, params, batch, kept)
            nats, right = nats + float(found[0]), right + float(found[1])
            if spec.gate is None and arm.part == TEXT:
                other = {**batch, "source": np.roll(source, 1, 0)}
                elsewhere += float(_score(model, None, params, other, kept)[0])
            deleted, tokens = deleted + float((~kept).sum()), tokens + kept.size
            vowels += float((~kept & is_vowel(source)).sum())
            bytes_written += written(batch)
            if spec.gate is not None and step < REPEATS:
                ratios.append(_time(model, capacity, params, batch, kept) / _time(model, None, params, batch, kept))
        yield Found("deleted", deleted / tokens)
        if ratios:
            yield Found("time of reading", statistics.median(ratios))
        if arm.part == VOWELS:
            yield Found("vowels among deleted", vowels / max(deleted, 1))
            yield Found("accuracy", right / (steps * batches.batch_size))
        if elsewhere:
            yield Found("bits from another's source", elsewhere / np.log(2) / bytes_written)
        yield Found("bits per byte", nats / np.log(2) / bytes_written)

    def lines(self, found: Results) -> Iterator[Line]:
        of = lambda part, arm, measure: found.of(part, arm, measure)
        share = lambda new, old: new / max(old, 1e-9)
        if kept := between(of(VOWELS, GATE, "accuracy"), of(VOWELS, NO_GATE, "accuracy"), share):
            yield Line("vowels: accuracy, share of that without a gate", 0.95, True, kept)
        if hit := of(VOWELS, GATE, "vowels among deleted"):
            yield Line("vowels: share of them among what the gate deletes", 0.8, True, hit)
        if fails := between(of(VOWELS, RANDOM, "accuracy"), of(VOWELS, NO_GATE, "accuracy"), share):
            yield Line("vowels: random deletion, share of the accuracy without", 0.5, False, fails)
        if worth := between(of(TEXT, NO_GATE, "bits from another's source"), of(TEXT, NO_GATE, "bits per byte"), share):
            yield Line("text: bits per byte from another's source, over those from its own", 2, True, worth)
        half = _percent(0.5)
        if more := between(of(TEXT, half, "bits per byte"), of(TEXT, NO_GATE, "bits per byte"), lambda a, b: a / b - 1):
            yield Line("text: 50 % deleted, rise of bits per byte", 0.03, False, more)
        if rate := of(TEXT, half, "deleted"):
            yield Line("text: 50 % asked for, share deleted", 0.45, True, rate)
        if faster := of(TEXT, half, "time of reading"):
            yield Line("text: 50 % deleted, time of reading against all", 0.9, False, faster)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        of = lambda measure: lambda label: found.of(part, label, measure)
        own = ("accuracy", "vowels among deleted") if part == VOWELS else ()
        return {name: of(name) for name in ("bits per byte", "deleted", "time of reading", *own)}

    def panels(self, found: Results) -> Panels:
        """A point a seed: runs of one target end at different rates."""
        out: Panels = {}
        for part, measure in ((TEXT, "bits per byte"), (VOWELS, "accuracy"), (TEXT, "time of reading")):
            for arm in (arm for arm in self.arms() if arm.part == part):
                x, y = found.of(part, arm.label, "deleted"), found.of(part, arm.label, measure)
                points = sorted((x[seed], y[seed]) for seed in y)
                if points:
                    curve = [a for a, _ in points], np.array([[b for _, b in points]])
                    out.setdefault(f"{part}: {measure}", {})[arm.label] = curve
        return out


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"


@functools.partial(jax.jit, static_argnums=0)
def _kept(spec: EncoderDecoderSpec, params: Params, source: jax.Array) -> jax.Array:
    assert spec.gate is not None
    gate = encode(spec, params, source, delete="soft").gate
    assert gate is not None
    return spec.gate.keeps(gate)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    model: Transducer, capacity: int | None, params: Params, batch: Mapping[str, jax.Array], keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Nats of the targets, and rows of which every target is the model's choice; capacity None deletes nothing."""
    if model.spec.gate is None or capacity is None:
        encoded = encode(model.spec, params, batch["source"], delete="none")
    else:
        encoded = hard(model.spec, params, batch["source"], capacity, keep)
    logits = model(params, batch["tokens"], encoded=encoded, segment_ids=batch["segment_ids"]).logits
    assert logits is not None
    picked = jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    nats = jnp.sum(batch["weights"] * (jax.nn.logsumexp(logits, -1) - picked))
    wrong = (jnp.argmax(logits, -1) != batch["targets"]) & (batch["weights"] > 0)
    return nats, jnp.sum(~wrong.any(1))


def _time(model: Transducer, capacity: int | None, params: Params, batch: Any, keep: Any) -> float:
    """Seconds of the thread that waits, after a call that compiles."""
    jax.block_until_ready(_score(model, capacity, params, batch, keep))
    began = time.perf_counter()
    jax.block_until_ready(_score(model, capacity, params, batch, keep))
    return time.perf_counter() - began
