"""A language model to drive the coders (Lester et al. 2024, Training LLMs over Neurally Compressed Text, M1).

    p(s | prefix) = softmax(logits after head, prefix)[s]  over the symbols,      f = quantise(p, total)

The symbols are the first ids of the vocabulary, ``head`` is what the model reads before a text (its BOS). Learned: the
model's parameters. A text of a checkpoint that was trained on its like takes as many bits as its loss says, and the
0.1 % of the coder.

A code is lost if one frequency differs between the two sides, so both compute the same floats: every prefix is read by
the same compiled program, one symbol at a time, whatever was asked before; there is no pass over many symbols at once,
which would add up in another order. The floats still depend on the device and on the versions of jax and XLA (on a CPU
also on its vector units and the number of threads), and on how many texts go side by side: decode where you encoded,
with as many lanes. `NeuralModel.probe` is a hash of frequencies that two machines can compare before they try.

Speed is that of decoding: a step a symbol, of all lanes together. 2 layers of width 128 code, in a second of one CPU
core, 12 kB with 64 lanes and room for 256 symbols, 4.5 kB with room for 1024, and 1.8 kB with one lane and room for 256
(``python -m experiments.benchmark --suite=tokenize``, the race "coding by a model", has the first).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.compress.range_coder import TOTAL, quantise
from jaxlm.compress.rational import Frequencies
from jaxlm.core import config
from jaxlm.core.config import require, to_dict
from jaxlm.core.types import Params
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec

PROBED = 8  # symbols that a probe reads
REMEMBERED = 1 << 14  # prefixes whose frequencies are kept for the coders that come back to them


class NeuralModel:
    """Frequencies of the next symbol by a causal language model.

    It is a `rational.CoderModel`; its method `batch` is a `range_coder.BatchModel`. The integers of the two may differ,
    as may those of batches of different numbers of texts: encode and decode by the same one.

    Attributes:
      size: V, the number of symbols.
      total: the sum of frequencies. For equal-info windows take a prime below 2^(W - 1) (`context_model.PRIME` for
        W = 16), so that every symbol fits in a window.
      room: symbols that a text may have.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        head: Sequence[int],
        size: int = 256,
        *,
        total: int = TOTAL,
        room: int = 1024,
    ) -> None:
        """``params`` stacked or unstacked; ``head``: at least one token, which stands before every text.

        Raises `ConfigError` for ids outside the vocabulary, more symbols than the total, a model that cannot go on from
        a state, and more room than it has positions.
        """
        vocabulary = model.spec.vocab_size
        require(1 <= size <= vocabulary, f"NeuralModel: {size} symbols, but the model has a vocabulary of {vocabulary}")
        require(size <= total, f"NeuralModel: {size} symbols need a total of at least as many, got {total}")
        require(room >= 1, f"NeuralModel: expected room for at least one symbol, got {room}")
        require(
            len(head) >= 1, "NeuralModel: the model says nothing of a first symbol; give a BOS, or other ids, as head"
        )
        odd = [i for i in head if not 0 <= i < vocabulary]
        require(not odd, f"NeuralModel: token {odd[:1]} of the head is outside the vocabulary of {vocabulary}")
        self.size, self.total, self.room = size, total, room
        self._spec, self._head = model.spec, [int(i) for i in head]
        self._capacity = len(self._head) + room - 1
        decoder.init_state(self._spec, 1, self._capacity, config.make("cache", "full"))  # refuses what cannot be
        stacked = any(isinstance(group, dict) for name, group in params.items() if name.startswith("group_"))
        self._params = _unstack(params) if stacked else params
        self._read = np.zeros((0, 0), np.int32)  # the prefixes [B, t] that the state is behind
        self._state: Any = None
        self._frequencies = np.zeros((0, size), np.int64)
        self._alone = functools.lru_cache(REMEMBERED)(self._after)

    def __call__(self, prefix: Sequence[int]) -> Frequencies:
        """The frequencies after one prefix. Raises as `batch` does."""
        return self._alone(tuple(map(int, prefix)))

    def batch(self, prefixes: ArrayLike) -> NDArray[np.int64]:
        """Frequencies [B, V] after prefixes [B, t]; quick if each goes on by a symbol from the call before.

        Raises `ConfigError` for symbols outside 0..V-1 and for texts beyond the room.
        """
        wanted = np.asarray(prefixes, np.int32)
        require(wanted.ndim == 2, f"NeuralModel.batch: expected prefixes [B, t], got the shape {list(wanted.shape)}")
        lanes, length = wanted.shape
        require(length < self.room, f"a text of more than {length} symbols: the model was given room for {self.room}")
        done = self._read.shape[1]
        if self._state is None or lanes != len(self._read) or not np.array_equal(self._read, wanted[:, :done]):
            self._begin(lanes)
            done = 0
        for t in range(done, length):
            self._next(wanted[:, t])
        self._read = wanted.copy()
        return self._frequencies

    def probe(self, lanes: int) -> str:
        """A hash of the frequencies of fixed texts, ``lanes`` side by side: the same where the same codes are read."""
        texts = np.random.default_rng(0).integers(0, self.size, (lanes, min(PROBED, self.room - 1)))
        found = hashlib.sha256()
        for t in range(texts.shape[1] + 1):
            found.update(self.batch(texts[:, :t]).astype("<i8").tobytes())
        return found.hexdigest()

    def _after(self, prefix: tuple[int, ...]) -> Frequencies:
        return Frequencies(self.batch(np.array([prefix], np.int32).reshape(1, -1))[0].tolist())

    def _begin(self, lanes: int) -> None:
        self._state = _empty(self._spec, lanes, self._capacity)
        for token in self._head:
            self._feed(np.full(lanes, token, np.int32))

    def _next(self, symbols: NDArray[np.int32]) -> None:
        bad = symbols[(symbols < 0) | (symbols >= self.size)]
        require(not bad.size, f"symbol {bad[:1]} is outside the coder's alphabet 0..{self.size - 1}")
        self._feed(symbols)

    def _feed(self, tokens: NDArray[np.int32]) -> None:
        state, self._state = self._state, None  # should the step fail, the next call begins anew
        found, state = _step(self._spec, self.size, self._params, tokens, state=state)
        self._frequencies = quantise(np.asarray(found), self.total)
        self._state = state


def identity(model: LanguageModel, params: Params) -> str:
    """A hash of what a model is and of its parameters (as they are stacked): the same for one that codes alike."""
    found = hashlib.sha256(json.dumps(to_dict(model.spec), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


_unstack = jax.jit(decoder.unstack)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(spec: ModelSpec, lanes: int, capacity: int) -> Any:
    return decoder.init_state(spec, lanes, capacity, config.make("cache", "full"))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="state")
def _step(spec: ModelSpec, size: int, params: Params, tokens_B: jax.Array, *, state: Any) -> tuple[jax.Array, Any]:
    """The probabilities, float32 [B, V], of the symbols after one more token each."""
    output = decoder.forward(spec, params, tokens_B[:, None], state=state, logits=False)
    logits = decoder.unembed(spec, params, output.hidden[:, 0])
    return jax.nn.softmax(logits[:, :size].astype(jnp.float32)), output.state
