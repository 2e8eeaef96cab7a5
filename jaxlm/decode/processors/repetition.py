"""Repetition penalty: the logit of each token seen so far is divided by theta if positive, multiplied if negative.

Paper: Keskar et al. 2019, CTRL (section 4.1), in the form that transformers gave it; the paper divides negative logits
too, which would favour them. Seen are the prompt, without its padding, and what was generated.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True)
class Repetition(Processor):
    """The penalty.

    Attributes:
      penalty: theta; 1 changes nothing, more discourages repetition, less encourages it.
    """

    paper: ClassVar[str] = "Keskar et al. 2019, CTRL: A Conditional Transformer Language Model"

    penalty: float = 1.2

    def check(self) -> None:
        require(
            0 < self.penalty < math.inf,
            f"repetition_penalty: expected a positive number (1 is off), got {self.penalty}",
        )

    def init(self, prompt_BL: jax.Array, real_BL: jax.Array, vocab_size: int) -> jax.Array:
        """Which tokens each row has seen, boolean [B, V]."""
        rows = jnp.arange(prompt_BL.shape[0])[:, None]
        return jnp.zeros((prompt_BL.shape[0], vocab_size), bool).at[rows, prompt_BL].max(real_BL)

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: jax.Array) -> Any:
        if token_B is not None:
            state = state | (jnp.arange(logits_BV.shape[-1]) == token_B[:, None])
        penalised = jnp.where(logits_BV < 0, logits_BV * self.penalty, logits_BV / self.penalty)
        return jnp.where(state, penalised, logits_BV), state
