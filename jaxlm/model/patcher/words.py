"""What models of words have in common: an encoder within each word, and a decoder within each word.

Bytes are divided into words by a rule on a byte and the one before it; leading white space belongs to the word that
follows. Words longer than W bytes are cut, and the cuts counted (``long_patches`` of `Output.aux`).

    z_j = concat(encoder([v_1 .. v_n, e(b) of word j])_(1..n)) W_z      n learned vectors v, attention both ways
    y = layers(z)                                                       causal over words
    decoder: bytes of word j + 1 see those before them in the word, and y_j

The end of a word needs no symbol. That a word ends is said by the byte that begins the next one, so the decoder of a
word predicts its further bytes *and* that byte, which ends it: p(row) is the plain product of p(b_(t+1) | b_(<=t)) over
the bytes. (The published models add an end-of-word symbol, and then predict the next word's first byte anew from y. As
which bytes can begin a word is known, that first byte and the symbol say the same thing twice.) What is given up: a
word's first byte, mostly a space, is predicted before the word's own y is known. A text's end is a special, which is a
word by itself.

Events: the first byte of each word but a text's first; then the word before is complete.

Cost: the encoder runs once over the row's L bytes and n N vectors, words told apart by segment, so its attention is
quadratic in L + n N where the back end does not skip tiles of other words (none does yet by segment alone).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import Normal, ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.attention import Attention
from jaxlm.model.patcher.base import Patcher, Reading, Row, Run, Slots, at
from jaxlm.model.patcher.boundaries import run_index, word_starts
from jaxlm.model.spec import Block, Group
from jaxlm.ops.dense import dense


def word_layers(repeats: int = 1, heads: int = 4, *, causal: bool) -> tuple[Group, ...]:
    """Blocks with attention to the whole word, the default of its layers."""
    mixer = Attention(heads=heads, mask="causal" if causal else "bidirectional")
    return (Group((Block(mixer=mixer),), repeats),)


@dataclasses.dataclass(frozen=True)
class Words(Patcher):
    """Base of patchers by words.

    Attributes:
      max_bytes: W, the longest word; longer runs are cut.
      encoder: layers within a word, which look both ways.
    """

    marks: ClassVar[bool]  # whether punctuation makes words

    decoder: tuple[Group, ...] = word_layers(causal=True)
    max_bytes: int = 16
    encoder: tuple[Group, ...] = word_layers(causal=False)

    @property
    def vectors(self) -> int:
        """n, the learned vectors that stand before a word's bytes."""
        raise NotImplementedError

    def check(self) -> None:
        super().check()
        self.check_bound(self.max_bytes)
        require(self.encoder, f"{type(self).__name__}.encoder: expected at least one Group")

    @property
    def history(self) -> int:
        return self.max_bytes

    def stacks(self) -> dict[str, tuple[Group, ...]]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def reach(self, name: str, length: int) -> int:
        return min(self.max_bytes, length) + (self.vectors if name == "encoder" else 0)

    def load(self, name: str) -> float:
        return 1 + self.vectors * self.patches_per_byte if name == "encoder" else 1.0

    def params(self, dims: Dims) -> Specs:
        n, width = self.vectors, self.width
        return {
            "vectors": ParamSpec((n, width), (None, None), Normal(width**-0.5), (1,), decay=False),
            "norm": self.norm.params(width),
            "down": ParamSpec((n, width, dims.width), (None, None, "embed"), fan_in=(0, 1)),
        }

    def start(self, dims: Dims, batch: int, dtype: Any) -> dict[str, jax.Array]:
        return {"number": jnp.zeros((batch,), jnp.int32), "since": jnp.full((batch,), -1, jnp.int32)}

    def read(self, p: Params, row: Row, state: dict[str, jax.Array], run: Run) -> Reading:
        """``data``: of the bytes, ``starts``; ``number``, their words counted along the row; of history and bytes
        [B, W + L], ``numbers`` (0 for what is not of the open word) and ``offsets`` within the word."""
        natural = row.real & word_starts(row.tokens, row.back(1), row.first, marks=self.marks)
        since = run_index(natural, state["since"])
        starts = row.real & (since % self.max_bytes == 0)
        number = state["number"][:, None] + jnp.cumsum(starts, 1)
        held = jnp.arange(-self.max_bytes, 0)
        open_bytes = jnp.where(state["since"] < 0, 0, state["since"] % self.max_bytes + 1)[:, None]
        numbers = jnp.where(held >= -open_bytes, state["number"][:, None], 0)
        data = {
            "starts": starts,
            "number": jnp.where(row.real, number, 0),
            "numbers": jnp.concatenate([numbers, jnp.where(row.real, number, 0)], 1),
            "offsets": jnp.concatenate([jnp.maximum(open_bytes + held, 0), since % self.max_bytes], 1),
        }
        after = {"number": row.last(number, state["number"]), "since": row.last(since, state["since"])}
        aux = {"long_patches": (starts & ~natural).sum().astype(jnp.float32)}
        return Reading(row.embedded[:, self.history :], starts & ~row.first, after, data, aux)

    def down(self, p: Params, row: Row, reading: Reading, slots: Slots, run: Run) -> jax.Array:
        (batch, size), n = slots.place.shape, self.vectors
        numbers = jnp.where(slots.filled, at(reading.data["number"], slots.place) - 1, 0)
        heads = jnp.broadcast_to(p["vectors"].astype(row.embedded.dtype), (batch, size, n, self.width))
        x = jnp.concatenate([heads.reshape(batch, size * n, -1), row.embedded], 1)
        ids = jnp.concatenate([jnp.repeat(numbers, n, 1), reading.data["numbers"]], 1)
        places = jnp.broadcast_to(jnp.tile(jnp.arange(n), size), (batch, size * n))
        h = run("encoder", x, ids, jnp.concatenate([places, n + reading.data["offsets"]], 1))
        pooled = self.norm(p["norm"], h[:, : size * n].reshape(batch, size, n, -1))
        return dense(pooled, p["down"], inputs=2)
