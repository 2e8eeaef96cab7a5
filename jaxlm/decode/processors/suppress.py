"""Suppression: tokens that are never chosen, such as ids that a tokenizer does not have or reserved markers.

Paper: Radford et al. 2022 (Whisper suppresses non-speech tokens so).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True)
class Suppress(Processor):
    """The tokens' logits become -inf.

    Attributes:
      tokens: ids.
    """

    paper: ClassVar[str] = "Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision"

    tokens: tuple[int, ...] = ()

    def check(self) -> None:
        wrong = [token for token in self.tokens if token < 0]
        require(not wrong, f"suppress: expected token ids, got {wrong[:1]}")

    def check_vocabulary(self, size: int) -> None:
        wrong = [token for token in self.tokens if token >= size]
        require(not wrong, f"suppress: token {wrong[:1]} is outside the vocabulary of {size}")
        require(len(set(self.tokens)) < size, "suppress: every token of the vocabulary is suppressed")

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        return logits_BV.at[:, jnp.asarray(self.tokens, jnp.int32)].set(-jnp.inf), state
