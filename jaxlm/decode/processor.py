"""The contract of logits processors: what stands between a model's logits and the choice of a token.

A processor is a pure function of the logits and of a state of its own, in and out. Penalties, temperatures, grammar
masks, momentum or mixtures with other models are all written so; the decode loop knows none of them by name, and a
verifier of drafted tokens may call the same ones on the target and on the draft.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import jax
import numpy as np

from jaxlm.core import config
from jaxlm.core.config import Spec


@dataclasses.dataclass(frozen=True)
class Processor(Spec):
    """Base of the processors: a checked, frozen dataclass that is also a pytree.

    Its fields are arguments of the compiled loop: another value of a number compiles nothing, and a tuple of numbers
    arrives as one array. A field that shapes the computation (the k of top-k) is marked static:
    ``dataclasses.field(metadata={"static": True})``.
    """

    paper: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(cls, _flatten, cls._unflatten)

    @classmethod
    def _unflatten(cls, static: tuple[Any, ...], data: Iterable[Any]) -> Self:
        self = object.__new__(cls)  # as it is: what jax puts into the fields need not be numbers
        static_names, names = _fields(cls)
        for name, value in (*zip(static_names, static, strict=True), *zip(names, data, strict=True)):
            object.__setattr__(self, name, value)
        return self

    def check_vocabulary(self, size: int) -> None:
        """Raises `ConfigError` for fields that do not fit a vocabulary of ``size`` tokens."""

    def init(self, prompt_BL: jax.Array, real_BL: jax.Array, vocab_size: int) -> Any:
        """The state after the prompt: tokens [B, L], of which those where ``real_BL`` is False are padding."""
        return ()

    def __call__(
        self, logits_BV: jax.Array, token_B: jax.Array | None, step: jax.Array | int, state: Any
    ) -> tuple[jax.Array, Any]:
        """The logits of the next token, float32 [B, V], and the new state, of the same structure and shapes.

        Args:
          logits_BV: of the model or the processor before; -inf rules a token out.
          token_B: the tokens chosen last, which the state does not know yet; None for the first, after the prompt.
          step: how many tokens were chosen before.
          state: what `init` or the call before returned.
        """
        raise NotImplementedError


Processors = tuple[Processor, ...]


def init_all(processors: Processors, prompt_BL: jax.Array, real_BL: jax.Array, vocab_size: int) -> tuple[Any, ...]:
    """The state of each processor after the prompt."""
    return tuple(processor.init(prompt_BL, real_BL, vocab_size) for processor in processors)


def apply_all(
    processors: Processors, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, states: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The logits after all processors, first to last, and their new states."""
    after = []
    for processor, state in zip(processors, states, strict=True):
        logits_BV, state = processor(logits_BV, token_B, step, state)
        after.append(state)
    return logits_BV, tuple(after)


def make_all(values: Iterable[Any], vocab_size: int) -> Processors:
    """Processors from objects, registered names or ``{"name", "args"}`` mappings, each held against the vocabulary.

    Raises `ConfigError` for one that does not exist or does not fit the vocabulary.
    """
    processors = tuple(
        value if isinstance(value, Processor) else config.make("processor", value, where="processors")
        for value in values
    )
    for processor in processors:
        processor.check_vocabulary(vocab_size)
    return processors


def _fields(cls: type[Processor]) -> tuple[list[str], list[str]]:
    """The names of the static fields and of the others."""
    fields = dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    return static, [field.name for field in fields if field.name not in static]


def _flatten(processor: Processor) -> tuple[list[Any], tuple[Any, ...]]:
    static, names = _fields(type(processor))
    values = [getattr(processor, name) for name in names]
    data = [np.asarray(value, np.int32) if isinstance(value, tuple) else value for value in values]
    return data, tuple(getattr(processor, name) for name in static)
