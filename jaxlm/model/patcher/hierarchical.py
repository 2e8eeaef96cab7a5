"""Bytes to words and back (HAT: Neitemeier et al. 2025, Hierarchical Autoregressive Transformers, arXiv 2501.10322).

Words are divided at white space and between letters and punctuation, in the manner of UAX 29, at most 16 bytes long. A
token [W] before each word's bytes, in an encoder that looks both ways within the word, gives the word's z. The decoder
of the next word is causal over [predictive embedding y W_y, its bytes]; here the embedding is added to the word's first
byte, so a step is one token, and a learned vector to a text's first. `jaxlm.model.patcher.words` has the formulae.

Learned: [W], the encoder, the projections, the first vector. Claimed: as good as subword models up to 7B, more robust
to perturbed text; continued pre-training on a new language nearly twice as fast, with less forgotten.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.params import Normal, ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.model.patcher.base import Answer, Reading, Row, Run, projection
from jaxlm.model.patcher.words import Words
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Hierarchical(Words):
    """Words by white space and punctuation, one vector each."""

    paper: ClassVar[str] = "Neitemeier et al. 2025, Hierarchical Autoregressive Transformers"
    marks: ClassVar[bool] = True

    @property
    def vectors(self) -> int:
        return 1

    def params(self, dims: Dims) -> Specs:
        own = {
            "up": projection(dims.width, self.width, up=True),
            "first": ParamSpec((self.width,), (None,), Normal(self.width**-0.5), decay=False),
        }
        return {**super().params(dims), **own}

    def up(self, p: Params, row: Row, reading: Reading, answer: Answer, run: Run) -> jax.Array:
        predictive = answer.of_bytes(dense(answer.y, p["up"]), p["first"])
        x = reading.x + jnp.where(reading.data["starts"][..., None], predictive, 0)
        return run("decoder", x, reading.data["number"])
