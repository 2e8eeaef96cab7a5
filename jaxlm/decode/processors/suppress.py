"""Suppression: tokens that are never chosen, such as ids that a tokenizer does not have or reserved markers.

Paper: Radford et al. 2022 (Whisper suppresses non-speech tokens so).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Suppress(Processor):
    """The tokens' logits become -inf.

    Attributes:
      tokens: ids, a tuple or an integer array.
    """

    paper: ClassVar[str] = "Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision"

    tokens: Any = ()

    def check(self, vocab_size: int) -> None:
        tokens = np.asarray(self.tokens, np.int64)
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
        require(not wrong.size, f"suppress: token {wrong[:1]} is outside the vocabulary of {vocab_size}")
        require(len(set(tokens.tolist())) < vocab_size, "suppress: every token of the vocabulary is suppressed")

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        return logits_BV.at[:, jnp.asarray(self.tokens, jnp.int32)].set(-jnp.inf), state
