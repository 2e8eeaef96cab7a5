"""A finite automaton over tokens in the compiled loop: what no string of a regular language goes on with is ruled out.

Paper: Willard and Louf 2023 (Outlines): masks are looked up by the state of an automaton, not computed at each step.
The text that is generated, without the prompt, is the string. The end token is allowed where a string of the language
ends; it has to be among the tokens that stop generation. What remains is locally normalised: the distribution is not
the model's own given that the text is in the language (that is its chance times what follows, Park et al. 2024).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.decode.grammar.automaton import Dfa
from jaxlm.decode.grammar.vocabulary import Vocabulary, token_table
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton(Processor):
    """Make it with `of`. All fields are data: another automaton of the same number of states compiles nothing.

    After the last state's tokens, and after a token that was not allowed (which another processor must have chosen),
    the text has ended, and only the end token goes on. Ids of the model beyond the vocabulary are not allowed.

    Attributes:
      after: integers [S, C], the next state by class of token, -1 where it is not allowed; the last state is the end.
      classes: integers [V], the class of each token.
      start: the state before the first token.
    """

    paper: ClassVar[str] = "Willard and Louf 2023, Efficient Guided Generation for Large Language Models"

    after: Any = ((0,),)
    classes: Any = (0,)
    start: int = 0

    @classmethod
    def of(cls, dfa: Dfa, vocabulary: Vocabulary) -> Automaton:
        """Of an automaton over bytes. Raises `ConfigError` if the tokens cannot spell what must follow somewhere."""
        table = token_table(dfa, vocabulary)
        return cls(table.after, table.classes, table.start)

    def check(self) -> None:
        for name, rank in (("after", 2), ("classes", 1)):
            array = np.asarray(getattr(self, name))
            require(
                array.ndim == rank and array.size and array.dtype.kind in "iu",
                f"automaton.{name}: expected integers with {rank} axes, got {array.dtype} {list(array.shape)}",
            )
            object.__setattr__(self, name, array.astype(np.int32))
        states, classes = self.after.shape
        after, kinds = np.asarray(self.after), np.asarray(self.classes)
        require(((after >= -1) & (after < states)).all(), f"automaton.after: expected states -1..{states - 1}")
        require(((kinds >= 0) & (kinds < classes)).all(), f"automaton.classes: expected 0..{classes - 1}")
        require(0 <= self.start < states, f"automaton.start: expected a state 0..{states - 1}, got {self.start}")
        stuck = np.flatnonzero(~(after[:, np.unique(kinds)] >= 0).any(1))
        require(not stuck.size, f"automaton.after: no token goes on from state {stuck[:1]}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Automaton) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[Any, ...]:
        arrays = np.asarray(self.after), np.asarray(self.classes)
        return (*((array.shape, array.tobytes()) for array in arrays), int(self.start))

    def check_vocabulary(self, size: int) -> None:
        given = len(self.classes)
        require(given <= size, f"automaton: made for a vocabulary of {given}, the model has {size}")

    def init(self, prompt_BL: jax.Array, real_BL: jax.Array, vocab_size: int) -> jax.Array:
        """The state of each row, int32 [B]."""
        return jnp.full(prompt_BL.shape[0], self.start, jnp.int32)

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: jax.Array) -> Any:
        table, classes = jnp.asarray(self.after), jnp.asarray(self.classes)
        known, ended = len(classes), len(table) - 1
        if token_B is not None:
            after = table[state, classes[jnp.minimum(token_B, known - 1)]]
            state = jnp.where((after >= 0) & (token_B < known), after, ended)
        allowed = table[state][:, classes] >= 0
        beyond = logits_BV.shape[-1] - known
        allowed = jnp.pad(allowed, ((0, 0), (0, beyond)))
        return jnp.where(allowed, logits_BV, -jnp.inf), state
