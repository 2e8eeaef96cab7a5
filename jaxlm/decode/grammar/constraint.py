"""A constraint that is asked token by token on the host: of the grammars here, or of another library's matcher.

States are numbers, so that the decode loop can carry them: `Constraint.allowed` and `Constraint.advance` are pure
functions of them, whatever lies behind. `jaxlm.decode.processors.constraint` calls them from inside the compiled loop.
Masks, and other libraries' matchers, are kept for a bounded number of states and made again when they are asked for
later; several threads may ask.
"""

from __future__ import annotations

import abc
import threading

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.errors import ConfigError, shown
from jaxlm.decode.grammar import automaton
from jaxlm.decode.grammar.automaton import DEAD, Dfa, States
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.earley import Recogniser
from jaxlm.decode.grammar.vocabulary import Vocabulary, token_table

ENDED = -2  # after the end token, and after one that was not allowed: only the end token goes on
KEPT = 1024  # masks, and matchers; a mask has a byte for each token of the vocabulary


class Constraint(abc.ABC):
    """Base of the constraints. A method defines `start`, `_allowed` and `_advance`; one thread enters at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._lock = threading.RLock()
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._ended = np.zeros(len(vocabulary), bool)
        self._ended[list(vocabulary.end)] = True

    @property
    @abc.abstractmethod
    def start(self) -> int:
        """The state before the first token."""

    @abc.abstractmethod
    def _allowed(self, state: int) -> NDArray[np.bool_]:
        """The tokens that may come next, boolean [V], the end token among them."""

    @abc.abstractmethod
    def _advance(self, state: int, token: int) -> int:
        """The state after a token that is allowed and does not end the text."""

    def allowed(self, state: int) -> NDArray[np.bool_]:
        """The tokens that may come next, boolean [V], the end token among them; never none.

        Raises `ConfigError` where the vocabulary has no token for what must follow.
        """
        if state == ENDED:
            return self._ended
        with self._lock:
            mask = self._masks.get(state)
            if mask is None:
                mask = self._allowed(state)
                if not mask.any():
                    hint = self._hint(state)
                    raise ConfigError(f"no token of the vocabulary goes on with what the constraint allows{hint}")
                mask.setflags(write=False)
                if len(self._masks) >= KEPT:
                    self._masks.clear()
                self._masks[state] = mask
            return mask

    def advance(self, state: int, token: int) -> int:
        """The state after a token; `ENDED` after the end, or if the token was not allowed."""
        with self._lock:
            inside = token < len(self.vocabulary) and self.allowed(state)[token]
            return self._advance(state, token) if inside and token not in self.vocabulary.end else ENDED

    def _hint(self, state: int) -> str:
        """What would go on, where that is known, for the message."""
        return ""

    def may_end(self, state: int) -> bool:
        """Whether the text may end here."""
        return bool(self.allowed(state)[self.vocabulary.end[0]])

    def run(self, tokens: list[int]) -> int:
        """The state after some tokens."""
        state = self.start
        for token in tokens:
            state = self.advance(state, token)
        return state


class Masks(Constraint):
    """The constraint of a language of this library, exact: context-free of any nesting, or regular.

    Args:
      language: a grammar, an automaton, or other states over bytes.
      vocabulary: of the model.

    Raises `ConfigError` for an automaton that the tokens cannot spell to its end from somewhere, as `Automaton.of`
    does. Of a grammar that is not looked into so far: with a vocabulary that lacks bytes of it, a text may come where
    no token goes on, and `allowed` (and generation) says so then.
    """

    def __init__(self, language: Grammar | States, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self.states: States = Recogniser(language) if isinstance(language, Grammar) else language
        if isinstance(self.states, Dfa):
            self.states = automaton.reduced(self.states, "automaton")  # so that what goes on also comes to an end
            token_table(self.states, vocabulary)

    @property
    def start(self) -> int:
        return self.states.start

    def _allowed(self, state: int) -> NDArray[np.bool_]:
        return self.vocabulary.allowed(self.states, state)

    def _hint(self, state: int) -> str:
        wanted = bytes(byte for byte in range(256) if self.states.step(state, byte) != DEAD)
        return f"; next is one of {shown(wanted)}"

    def _advance(self, state: int, token: int) -> int:
        after = automaton.run(self.states, self.vocabulary.token_bytes[token], state)
        assert after != DEAD
        return after


class Matched(Constraint):
    """Base of the adapters: another library's matcher of a whole text, one for each prefix that was met.

    Prefixes are numbered as they come, and each is the one before and a token; a matcher that is no longer kept reads
    again from the nearest prefix that is.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: object) -> None:
        super().__init__(vocabulary)
        self._first = matcher
        self._matchers: dict[int, object] = {}
        self._prefixes: list[tuple[int, int]] = [(DEAD, DEAD)]  # of each number but 0, the prefix before and its token
        self._numbers: dict[tuple[int, int], int] = {}

    @property
    def start(self) -> int:
        return 0

    @abc.abstractmethod
    def _consumed(self, matcher: object, token: int) -> object:
        """A matcher that has read one more token; the one given stays as it is."""

    @abc.abstractmethod
    def _mask(self, matcher: object) -> NDArray[np.bool_]:
        """The tokens that the matcher allows, boolean [V]."""

    def _allowed(self, state: int) -> NDArray[np.bool_]:
        return self._mask(self._matcher(state))

    def _advance(self, state: int, token: int) -> int:
        if (state, token) not in self._numbers:
            after = self._consumed(self._matcher(state), token)
            self._prefixes.append((state, token))
            self._numbers[state, token] = len(self._prefixes) - 1
            self._keep(len(self._prefixes) - 1, after)
        return self._numbers[state, token]

    def _matcher(self, state: int) -> object:
        """The matcher of a prefix."""
        tokens, at = [], state
        while at and at not in self._matchers:
            at, token = self._prefixes[at]
            tokens.append(token)
        matcher = self._matchers[at] if at else self._first
        for token in reversed(tokens):
            matcher = self._consumed(matcher, token)
        if tokens:
            self._keep(state, matcher)
        return matcher

    def _keep(self, state: int, matcher: object) -> None:
        if len(self._matchers) >= KEPT:
            self._matchers.clear()
        self._matchers[state] = matcher
