"""What a byte-level view of a token model can do: the next byte, the bits of a text, sampling; one byte at a time.

A view gives, for texts that it is told byte by byte, the log-probabilities of 256 bytes and, in the last place, of the
end of the text. Everything here is written on that alone, so it serves every view, and ensembles of them.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.decode.byte_prompt import Prompt
from jaxlm.decode.sample import gumbel
from jaxlm.tokenize.base import as_bytes

END = 256  # the place of the end of the text among the log-probabilities of bytes
SIZE = 257
EPSILON = 1e-7  # added to probabilities before they are raised to 1 / temperature

Text = str | bytes | Prompt


class ByteSession(abc.ABC):
    """A batch of texts that grow byte by byte."""

    @abc.abstractmethod
    def log_probs(self) -> NDArray[np.floating]:
        """Natural log-probabilities [B, 257] of each text's next byte, and of its end; they sum to one."""

    @abc.abstractmethod
    def advance(self, following: Sequence[int] | NDArray[np.integer]) -> None:
        """Adds a byte 0..255 to each text; a text that got -1 is done with, and what it gives from then on is void."""


class ByteModel(abc.ABC):
    """A byte-level view."""

    @abc.abstractmethod
    def start(self, prompts: Sequence[Text], room: int = 0) -> ByteSession:
        """Texts that begin with ``prompts``, of different lengths, and will get up to ``room`` bytes more.

        Raises `ConfigError` for a prompt that does not fit.
        """

    def next_byte(self, prompts: Sequence[Text], *, end: bool = True) -> NDArray[np.floating]:
        """Natural log-probabilities [B, 257] of what follows each prompt: bytes 0..255 and, last, the end of the text.

        With ``end`` False the end is left out: it gets -inf, and the bytes sum to one.
        """
        found = self.start(prompts).log_probs()
        if end:
            return found
        rest = found[:, :END]
        peak = rest.max(1, keepdims=True)
        total = peak + np.log(np.exp(rest - peak).sum(1, keepdims=True))
        return np.concatenate([rest - total, np.full((len(found), 1), -np.inf)], 1)

    def score(self, texts: Sequence[str | bytes], prompts: Sequence[Text] | None = None) -> list[NDArray[np.float64]]:
        """Bits of each byte of ``texts``, float64 [n], each given ``prompts`` and the bytes before it.

        The end of the text is among what might have come at every byte, and is not scored itself.
        """
        data, prompts = checked_texts(texts, prompts)
        session = self.start(prompts, max(map(len, data)))
        bits = [np.zeros(len(one)) for one in data]
        for step in range(max(map(len, data))):
            found = session.log_probs()
            following = np.array([one[step] if step < len(one) else -1 for one in data])
            for row, byte in enumerate(following.tolist()):
                if byte >= 0:
                    bits[row][step] = -found[row, byte] / np.log(2)
            session.advance(following)
        return bits

    def generate(
        self,
        prompts: Sequence[Text],
        max_new_bytes: int = 64,
        temperature: float = 0.0,
        key: jax.Array | None = None,
        stop: Sequence[str | bytes] = (),
        rows: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Continues prompts byte by byte.

        Args:
          prompts: texts, bytes or `Prompt`s.
          max_new_bytes: the most that each gets.
          temperature: 0 takes the likeliest byte (or the end); otherwise they are drawn in proportion to
            (p + 1e-7)^(1 / temperature), those that are possible at all, and ``key`` is needed.
          key: of the noise, which depends on (key, row id, step) only.
          stop: byte strings that end a row, which keeps them.
          rows: ids of the rows; None counts them.

        Returns the new bytes of each row; shorter than ``max_new_bytes`` where the text has ended.

        Raises `ConfigError` for an argument that does not fit.
        """
        ids, stops = checked_request(prompts, max_new_bytes, temperature, key, stop, rows)
        session, texts = self.start(prompts, max_new_bytes), [bytearray() for _ in prompts]
        done = np.zeros(len(texts), bool)
        for step in range(max_new_bytes):
            logs = jnp.asarray(session.log_probs(), jnp.float32)
            chosen = np.array(choose(logs, temperature, key if temperature else None, jnp.asarray(ids), step))
            chosen = np.where(done | (chosen == END), -1, chosen)
            done |= chosen < 0
            for row in np.flatnonzero(~done):
                texts[row].append(chosen[row])
                done[row] = texts[row].endswith(stops)
            if done.all():
                break
            if step + 1 < max_new_bytes:
                session.advance(np.where(done, -1, chosen))
        return [bytes(text) for text in texts]


@jax.jit
def choose(
    logs: jax.Array, temperature: jax.Array | float, key: jax.Array | None, rows: jax.Array, step: jax.Array | int
) -> jax.Array:
    """A byte or the end for each row, int32 [B], from log-probabilities [B, 257]; the likeliest if ``key`` is None."""
    if key is not None:
        warm = jnp.log(jnp.exp(logs) + EPSILON) / temperature
        logs = jnp.where(logs == -jnp.inf, -jnp.inf, warm) + gumbel(key, rows, step, SIZE)
    return jnp.argmax(logs, axis=-1).astype(jnp.int32)


def checked_texts(texts: Sequence[str | bytes], prompts: Sequence[Text] | None) -> tuple[list[bytes], Sequence[Text]]:
    """The bytes of ``texts``, and a prompt for each. Raises `ConfigError` where they do not fit."""
    prompts = [b""] * len(texts) if prompts is None else prompts
    require(
        len(texts) == len(prompts) and len(texts),
        f"texts: expected one for each prompt, got {len(texts)}, {len(prompts)}",
    )
    data = [as_bytes(text) for text in texts]
    require(any(data), "texts: all are empty")
    return data, prompts


def checked_request(
    prompts: Sequence[Text],
    max_new_bytes: int,
    temperature: float,
    key: jax.Array | None,
    stop: Sequence[str | bytes],
    rows: Sequence[int] | None,
) -> tuple[NDArray[np.int32], tuple[bytes, ...]]:
    """Ids of rows, int32 [B], and the strings that end one. Raises `ConfigError` for an argument that does not fit."""
    require(max_new_bytes >= 1, f"max_new_bytes: expected at least 1, got {max_new_bytes}")
    require(0 <= temperature < np.inf, f"temperature: expected 0 (greedy) or a positive number, got {temperature}")
    require(
        temperature == 0 or key is not None, f"temperature {temperature} samples, so it needs key=jax.random.key(n)"
    )
    require(not isinstance(stop, (str, bytes)), f"stop: expected a sequence of strings, got {stop!r}")
    stops = tuple(as_bytes(one) for one in stop)
    require(all(stops), "stop: an empty string would end every row")
    ids = np.arange(len(prompts)) if rows is None else np.asarray(rows)
    require(
        ids.shape == (len(prompts),) and ids.dtype.kind in "iu" and (ids >= 0).all(),
        f"rows: expected {len(prompts)} ids, integers from 0 on, got {rows}",
    )
    return ids.astype(np.int32), stops
