"""Models of bytes, words, patches and subword tokens of equal size: bytes a second in training and in decoding.

Each is as wide as makes its parameters nearest to those of the transformer of bytes. Training is forward and backward
on the same rows of text. Decoding reads a text token by token through the model's state, choosing a token at each step,
as generation does but for what it goes on with: patches are then those of text, also in a model that is not trained.
Where no row begins a patch, the model's layers do not run.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.race import race
from experiments.race import table as race_table
from experiments.tokenization.language_model import SmallModel
from experiments.tokenization.patched_model import initial, mean_patch, nearest, patcher_of
from experiments.tokenization.texts import Texts, make, stream_of
from jaxlm.cache.full import Full
from jaxlm.core import registry
from jaxlm.core.params import count
from jaxlm.model.decoder import Decoder, init_state, param_specs, unstack
from jaxlm.objective.next_token import NextToken
from jaxlm.tokenize.byte import ByteTokenizer

SMALL = SmallModel(width=256, layers=4, heads=4, row_bytes=512, batch_size=8)
LOCAL_WIDTH, VOCABULARY = 128, 2048
DECODED = 384  # bytes
BATCHES = (1, 8)


class Model:
    """One kind of model, its parameters, and rows of text in its tokens."""

    def __init__(self, name: str, texts: Texts):
        tokenizer = make("bpe" if name == "bpe" else "byte", texts.train_texts, VOCABULARY)
        stream = stream_of(tokenizer, texts.train_texts)
        vocabulary, self.bytes_per_token = tokenizer.vocab_size, texts.train.num_bytes / len(stream.tokens)
        length = SMALL.row_tokens(stream, texts.train.num_bytes)
        rows = jnp.asarray(stream.tokens[: 64 * length].reshape(-1, length), jnp.int32)
        patcher = None
        if name not in ("byte", "bpe"):
            patcher, _ = patcher_of(name, LOCAL_WIDTH, rows, vocabulary, texts)
        parameters = lambda small: count(param_specs(small.spec(vocabulary)))
        aim = count(param_specs(SMALL.spec(ByteTokenizer().vocab_size)))
        small = nearest(SMALL, patcher, parameters, aim)
        self.name, self.spec = name, small.spec(vocabulary)
        self.model, self.params = Decoder(self.spec), initial(self.spec, 0, texts)
        self.rows, self.parameters = rows, parameters(small)
        self.patch = self.bytes_per_token if patcher is None else mean_patch(self.model, self.params, rows)


class Train:
    """The loss and its gradient."""

    def __init__(self, one: Model):
        self.name, self._one = one.name, one
        tokens = one.rows[: SMALL.batch_size]
        self._batch = {
            "tokens": tokens,
            "targets": jnp.roll(tokens, -1, 1),
            "weights": jnp.ones(tokens.shape, jnp.float32),
        }
        self._step = jax.jit(jax.value_and_grad(self._loss, allow_int=True)).lower(one.params).compile()
        self.bytes = tokens.size * one.bytes_per_token

    def _loss(self, params: Any) -> jax.Array:
        return NextToken().loss(self._one.model, params, self._batch, jax.random.key(0))[0]

    def run(self, steps: int) -> list[float]:
        return [float(jax.block_until_ready(self._step(self._one.params))[0]) for _ in range(steps)]

    def memory(self) -> float | None:
        found = self._step.memory_analysis()
        return None if found is None else float(found.temp_size_in_bytes)


class Decode:
    """A text read token by token."""

    def __init__(self, one: Model, batch: int):
        self.name = one.name
        size = max(1, round(DECODED / one.bytes_per_token))
        tokens = jnp.resize(one.rows, (64, one.rows.size // 64))[:batch, :size]
        self._text, self._params = tokens.T[:, :, None], jax.jit(unstack)(one.params)
        self.bytes = batch * size * one.bytes_per_token
        self._run = jax.jit(functools.partial(_read, one.model, batch, size))

    def run(self, steps: int) -> list[Any]:
        return [np.asarray(self._run(self._params, self._text)) for _ in range(steps)]

    def memory(self) -> None:
        return None


def _read(model: Decoder, batch: int, size: int, params: Any, text: jax.Array) -> jax.Array:
    """The model's choice after each of the tokens [size, batch, 1]."""

    def step(state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        out = model(params, tokens, state=state)
        assert out.logits is not None
        return out.state, jnp.argmax(out.logits[:, -1], -1)

    return jax.lax.scan(step, init_state(model.spec, batch, size, Full()), text)[1]


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """A race in training, and one in decoding for each batch size."""
    texts = Texts(most=300_000)
    models = [Model(name, texts) for name in ("byte", "bpe", *sorted(registry.methods("patcher")))]
    races: dict[str, Any] = {}
    for title, kind in (
        ("training", Train),
        *((f"decoding, batch {b}", functools.partial(Decode, batch=b)) for b in BATCHES),
    ):
        contestants: list[Train | Decode] = [kind(one) for one in models]
        entries, _ = race(contestants, rounds, steps)
        for one, made in zip(models, contestants, strict=True):
            entry = entries[one.name]
            entry |= {"parameters": one.parameters, "bytes_per_patch": one.patch}
            entry["bytes_per_second"] = made.bytes / entry["wall_seconds"]
            entry["bytes_per_cpu_second"] = made.bytes / entry["cpu_seconds"]
        races[title] = entries
    return {
        "shape": {"width": SMALL.width, "layers": SMALL.layers, "local_width": LOCAL_WIDTH, "vocabulary": VOCABULARY},
        "row_bytes": SMALL.row_bytes,
        "batch": SMALL.batch_size,
        "decoded_bytes": DECODED,
        "dtype": "float32",
        "rounds": rounds,
        "steps_per_round": steps,
        "device": jax.devices()[0].device_kind,
        "races": races,
    }


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for title, entries in results["races"].items():
        columns = {
            "bytes/s": lambda e: f"{e['bytes_per_second']:.0f}",
            "bytes/CPU s": lambda e: f"{e['bytes_per_cpu_second']:.0f}",
            "bytes/patch": lambda e: f"{e['bytes_per_patch']:.2f}",
            "M parameters": lambda e: f"{e['parameters'] / 1e6:.2f}",
        }
        if title == "training":
            columns["temp MB"] = lambda e: "-" if e["temporary_bytes"] is None else f"{e['temporary_bytes'] / 1e6:.0f}"
        lines += race_table(title, entries, columns)
    return "\n".join(lines) + "\n"
