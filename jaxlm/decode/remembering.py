"""A language model as a token model that remembers: what goes on from a sequence of late costs its own tokens alone.

Byte-level views ask behind one token sequence after another, each mostly an earlier one and a token more. The states
after the latest sequences are kept, each by itself; a new sequence goes on from that of the longest one that begins it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.cache.full import FullCache
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.decode.loop import grow
from jaxlm.decode.row_states import empty_states, is_cache, why_not
from jaxlm.decode.token_model import FullPass, Ids, TokenModel, bucket
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec

KEPT = 32  # sequences whose states are kept
_AT_ONCE = 16  # sequences that are run side by side
_SHARED = 8  # tokens that sequences must have in common for these to be run once


def token_model(model: LanguageModel, params: Params) -> TokenModel:
    """The faster token model that serves: `Remembering`, or `FullPass` where states cannot be kept text by text."""
    return FullPass(model, params) if why_not(model.spec) else Remembering(model, params)


class Remembering(FullPass):
    """A `LanguageModel` as a token model, from the states of sequences that it was asked about before.

    Args:
      model, params: of the model.
      kept: how many states; the one that was not used for the longest time goes first.

    Raises `ConfigError` for a model whose states cannot be kept text by text.
    """

    def __init__(self, model: LanguageModel, params: Params, kept: int = KEPT) -> None:
        super().__init__(model, params)
        reason = why_not(model.spec)
        require(not reason, f"Remembering: {reason}")
        require(kept > 0, f"Remembering: expected a positive number of states to keep, got {kept}")
        self._states: OrderedDict[Ids, Any] = OrderedDict()  # the one used last is the last
        self._kept, self._room, self._empty = kept, 0, None

    def __call__(self, sequences: Sequence[Ids]) -> NDArray[np.floating]:
        """float64 [n, V]. Raises `ConfigError` for an empty sequence, or one the model has no positions for."""
        self._make_room(self._check(sequences))
        answers: dict[Ids, NDArray[np.floating]] = {}
        for level in _levels([*sequences, *self._common(sequences)]):
            level.sort(key=lambda one: len(one) - len(self._begun(one)))  # those of about one length at a time
            for start in range(0, len(level), _AT_ONCE):
                some = level[start : start + _AT_ONCE]
                answers |= dict(zip(some, self._run(some), strict=True))
        return np.stack([answers[one] for one in sequences]).astype(np.float64)

    def _begun(self, sequence: Ids) -> Ids:
        """The longest known sequence that this one goes on from; () for none."""
        return next(
            (sequence[:stop] for stop in range(len(sequence) - 1, 0, -1) if sequence[:stop] in self._states), ()
        )

    def _common(self, sequences: Iterable[Ids]) -> list[Ids]:
        """Beginnings that sequences share, where they are much longer than the known ones."""
        found = []
        for one, two in itertools.pairwise(sorted(set(sequences))):
            differ = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
            same = next(differ, min(len(one), len(two)))
            if same - max(len(self._begun(one)), len(self._begun(two))) >= _SHARED:
                found.append(one[:same])
        return found

    def _run(self, sequences: list[Ids]) -> NDArray[np.floating]:
        """Log-probabilities [n, V] behind each, whose state is known then."""
        begun = [self._begun(one) for one in sequences]
        rest = [one[len(start) :] for one, start in zip(sequences, begun, strict=True)]
        batch, size = bucket(len(rest), 1), bucket(max(map(len, rest)), 1)
        tokens, counts = np.zeros((batch, size), np.int32), np.zeros(batch, np.int32)
        states = [self._empty] * batch
        for i, (start, own) in enumerate(zip(begun, rest, strict=True)):
            tokens[i, : len(own)], counts[i] = own, len(own)
            if start:
                states[i] = self._states[start]
                self._states.move_to_end(start)
        logs, after = _step(self._spec, self._params, tuple(states), tokens, counts)
        for one, state in zip(sequences, after, strict=False):
            self._states[one] = state
            self._states.move_to_end(one)
        while len(self._states) > self._kept:
            self._states.popitem(last=False)
        return np.asarray(logs)[: len(sequences)]

    def _make_room(self, longest: int) -> None:
        """For sequences of so many tokens, and the padding that may be written behind them."""
        room = 2 * bucket(longest)
        if room > self._room:
            self._room, self._empty = room, _cursors(empty_states(self._spec, 1, room), _each)
            for one, state in self._states.items():
                self._states[one] = grow(self._spec, room, state)


def _levels(sequences: Iterable[Ids]) -> list[list[Ids]]:
    """The sequences without repeats, in the order in which they may be run: each behind those that begin it."""
    levels: list[list[Ids]] = []
    begun: list[Ids] = []
    for one in sorted(set(sequences)):
        while begun and one[: len(begun[-1])] != begun[-1]:
            begun.pop()
        if len(begun) == len(levels):
            levels.append([])
        levels[len(begun)].append(one)
        begun.append(one)
    return levels


def _cursors(states: Any, change: Callable[[FullCache], jax.Array]) -> Any:
    """The states with other cursors."""
    one = lambda x: dataclasses.replace(x, cursor=change(x)) if is_cache(x) else x
    return jax.tree.map(one, states, is_leaf=is_cache)


def _each(cache: FullCache) -> jax.Array:
    """A cursor for each row."""
    return jnp.broadcast_to(cache.cursor, len(cache.k))


@functools.partial(jax.jit, static_argnums=0)
def _step(
    spec: ModelSpec, params: Params, states: tuple[Any, ...], tokens_BL: jax.Array, counts_B: jax.Array
) -> tuple[jax.Array, list[Any]]:
    """Log-probabilities [B, V] behind tokens that go on from B states of a row each, and the states then."""
    size = tokens_BL.shape[1]
    own = jax.tree.map(lambda *rows: jnp.concatenate(rows), *states)
    real = (jnp.arange(size) < counts_B[:, None]).astype(jnp.int32)
    out = decoder.forward(spec, params, tokens_BL, segment_ids=real, state=own, logits=False)
    after = _cursors(out.state, lambda cache: cache.cursor - size + counts_B)  # what comes is written over padding
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], after) for i in range(len(states))]
    last = out.hidden[jnp.arange(len(counts_B)), jnp.maximum(counts_B - 1, 0)]
    return jax.nn.log_softmax(decoder.unembed(spec, params, last).astype(jnp.float32)), rows
