"""A constraint that is asked at every step on the host, by a callback from inside the compiled loop.

For languages with no finite table: context-free grammars of any nesting, and the matchers of other libraries (see
`jaxlm.decode.grammar.constraint`). The state is a number that the host knows the meaning of. What it costs is the trip
to the host and the masks' way back, each step; where a table is small enough, `automaton` does without.

Papers: Ugare et al. 2024 (SynCode); Scholak et al. 2021 (PICARD), who first let an incremental parser choose.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import shown
from jaxlm.decode.grammar.constraint import Constraint
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True, eq=False)
class Constrained(Processor):
    """Rules out what the constraint does not allow. Another constraint compiles again.

    Attributes:
      constraint: None allows everything.
    """

    paper: ClassVar[str] = "Ugare et al. 2024, SynCode: LLM Generation with Grammar Augmentation"

    constraint: Any = dataclasses.field(default=None, metadata={"static": True})

    def check(self) -> None:
        good = self.constraint is None or isinstance(self.constraint, Constraint)
        require(
            good, f"constraint: expected a jaxlm.decode.grammar.constraint.Constraint, got {shown(self.constraint)}"
        )
        if self.constraint is not None:
            self.constraint.allowed(self.constraint.start)  # a text that cannot begin is refused now

    def check_vocabulary(self, size: int) -> None:
        if self.constraint is not None:
            given = len(self.constraint.vocabulary)
            require(given <= size, f"constraint: made for a vocabulary of {given}, the model has {size}")

    def init(self, prompt_BL: jax.Array, real_BL: jax.Array, vocab_size: int) -> Any:
        """The state of each row, int32 [B]."""
        start = 0 if self.constraint is None else self.constraint.start
        return jnp.full(prompt_BL.shape[0], start, jnp.int32)

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: jax.Array) -> Any:
        constraint = self.constraint
        if constraint is None:
            return logits_BV, state
        known = len(constraint.vocabulary)

        def ask(states: Any, tokens: Any = None) -> tuple[np.ndarray, np.ndarray]:
            states = np.asarray(states).tolist()
            if tokens is not None:
                moves = zip(states, np.asarray(tokens).tolist(), strict=True)
                states = [constraint.advance(state, token) for state, token in moves]
            return np.stack([constraint.allowed(state) for state in states]), np.array(states, np.int32)

        shapes = (
            jax.ShapeDtypeStruct((len(state), known), bool),
            jax.ShapeDtypeStruct(state.shape, state.dtype),
        )
        given = (state,) if token_B is None else (state, token_B)
        allowed, state = jax.pure_callback(ask, shapes, *given)
        allowed = jnp.pad(allowed, ((0, 0), (0, logits_BV.shape[-1] - known)))
        return jnp.where(allowed, logits_BV, -jnp.inf), state
