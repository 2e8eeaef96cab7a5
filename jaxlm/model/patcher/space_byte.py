"""The model's layers run at the beginnings of words (SpaceByte, Slagle 2024, arXiv 2404.14408).

    h = encoder(e(b))        local, causal, with an attention window
    z_j = norm(h_t) W_z,  h_t += y_j W_y    at a spacelike byte after one that is not, at specials and at the first
    x = decoder(h)           local, likewise

Spacelike is a byte that is neither an ASCII letter or digit nor a UTF-8 continuation byte. The other bytes know of y by
the decoder's attention, so its window should hold a word. The published code pads h with zeros to the model's width and
cuts y; here both are learned projections.

Learned: W_z, W_y, the norm. Claimed: at equal compute below other byte models and roughly at subword models, in English
text, LaTeX and code. Published sizes (793M + 184M): context 8192 with 1344 global steps, widths 1536 and 768, 28 + 26
layers, window 768.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.types import Dims, Params, Specs
from jaxlm.model.patcher.base import Answer, Reading, Row, Run, Slots, WithEncoder, at, local_layers, projection
from jaxlm.model.patcher.boundaries import global_positions
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class SpaceByte(WithEncoder):
    """Patches by the spacelike rule, for which English text needs room for about one byte in six."""

    paper: ClassVar[str] = "Slagle 2024, SpaceByte: Towards Deleting Tokenization from Large Language Modeling"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "977m": {
            "width": 768,
            "patches_per_byte": 1344 / 8192,
            "encoder": local_layers(13, 768, 12),
            "decoder": local_layers(13, 768, 12),
        }
    }

    @property
    def history(self) -> int:
        return 1

    def params(self, dims: Dims) -> Specs:
        return {
            "norm": self.norm.params(self.width),
            "down": projection(self.width, dims.width),
            "up": projection(dims.width, self.width, up=True),
        }

    def read(self, p: Params, row: Row, state: dict[str, jax.Array], run: Run) -> Reading:
        events = row.real & global_positions(row.tokens, row.back(1), row.first)
        return Reading(run("encoder", row.embedded[:, 1:], row.documents), events, {}, {}, {})

    def down(self, p: Params, row: Row, reading: Reading, slots: Slots, run: Run) -> jax.Array:
        return dense(self.norm(p["norm"], at(reading.x, slots.place)), p["down"])

    def up(self, p: Params, row: Row, reading: Reading, answer: Answer, run: Run) -> jax.Array:
        added = at(dense(answer.y, p["up"]), answer.index)
        return run("decoder", reading.x + jnp.where(answer.events[..., None], added, 0), row.documents)
