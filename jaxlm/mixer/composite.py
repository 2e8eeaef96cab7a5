"""What mixers that are made of mixers have in common: a state of each, and what is true if it is of all or any of them.

The parts are the fields that are slots of mixers, in their order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlm.core.config import Spec
from jaxlm.core.types import Dims


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class States:
    """The states of all parts, in their order."""

    parts: tuple[Any, ...]

    def grow(self, capacity: int) -> States:
        """With room for ``capacity`` tokens in what has a capacity."""
        return States(tuple(one.grow(capacity) if hasattr(one, "grow") else one for one in self.parts))


class Composite(Spec):
    """A mixer of mixers."""

    @property
    def inner(self) -> tuple[Any, ...]:
        """The mixers that this one is made of."""
        fields: Any = dataclasses.fields(self)
        return tuple(getattr(self, field.name) for field in fields if field.metadata.get("slot") == "mixer")

    def widths(self, dims: Dims) -> tuple[Dims, ...]:
        """What each of them is told of the model."""
        return (dims,) * len(self.inner)

    @property
    def streaming(self) -> bool:  # one that looks ahead is refused a state by its own `init_state`
        return all(mixer.streaming for mixer in self.inner)

    @property
    def causal(self) -> bool:
        return all(mixer.causal for mixer in self.inner)

    @property
    def padding_takes_room(self) -> bool:
        return any(getattr(mixer, "padding_takes_room", True) for mixer in self.inner)

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> States:
        """An empty state of each."""
        each = zip(self.inner, self.widths(dims), strict=True)
        return States(tuple(mixer.init_state(own, batch, max_length, dtype, cache) for mixer, own in each))

    def flops(self, dims: Dims, length: int) -> float:
        """Those of all."""
        return sum(mixer.flops(own, length) for mixer, own in zip(self.inner, self.widths(dims), strict=True))
