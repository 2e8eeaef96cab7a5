"""The contract of a patcher: how the bytes of a row become patches for the model's layers, and bytes again.

The model's own layers see patches of width D; a patcher has its own local layers, of width d, which see bytes. Every
patcher works by *events*, at most one a byte: at an event a patch is complete, the layers take it in, and their output
is there for that byte and those after it, up to the next event:

    read    bytes [B, L] -> local states [B, L, d], and which bytes are events
    down    the patches of the events -> z [B, N, D], for the model's layers
    up      what the layers make of them, y [B, N, D], and the local states -> x [B, L, d], which the head reads

An event at byte t depends on bytes up to t alone, and z on what came up to then, so logits are there at every byte and
see nothing ahead; a row is a proper distribution over its bytes, by the chain rule, as for any decoder. What a call
does follows from the row's state: a full pass, pieces and single steps patch alike.

N is a static bound, `Patcher.capacity`. Events beyond it are counted (`Output.aux`, the state's ``overflow``) and make
no patch: their bytes, which are predicted and learned as all others, read the last patch there is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, Group, ModelSpec

MOST_TOKENS = 384  # bytes and some specials: the vocabulary of ByT5


class Row(NamedTuple):
    """The bytes of a call, real ones first, and what came before them.

    Attributes:
      tokens: int32 [B, L]; padding, if any, is at the end.
      segment_ids: int32 [B, L], 0 for padding.
      positions: int32 [B, L], of each byte in its text.
      history: int32 [B, K], the real bytes before, the last one last; they may be of other texts.
      count: int32 [B], the real bytes of this call.
      plain: nothing is padded or packed.
      embedded: [B, K + L, d], embeddings of ``history`` and ``tokens``.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    history: jax.Array
    count: jax.Array
    plain: bool
    embedded: jax.Array

    @property
    def real(self) -> jax.Array:
        return self.segment_ids != 0

    @property
    def first(self) -> jax.Array:
        """Boolean [B, L]: the first bytes of texts."""
        return self.real & (self.positions == 0)

    @property
    def documents(self) -> jax.Array | None:
        """Segments for layers that see whole texts; None for one text a row."""
        return None if self.plain else self.segment_ids

    def back(self, k: int) -> jax.Array:
        """The bytes ``k`` before each one, [B, L]; of its own text where its position is at least k."""
        size, held = self.tokens.shape[1], self.history.shape[1]
        assert k <= held
        return jnp.concatenate([self.history, self.tokens], 1)[:, held - k : held - k + size]

    def shifted(self, x: jax.Array, before: jax.Array) -> jax.Array:
        """x [B, L, ...] of the byte before each one; ``before`` [B, ...] for the first."""
        return jnp.concatenate([before[:, None].astype(x.dtype), x[:, :-1]], 1)

    def last(self, x: jax.Array, before: jax.Array) -> jax.Array:
        """x [B, L, ...] at each row's last real byte; ``before`` [B, ...] where there is none."""
        return at(jnp.concatenate([before[:, None].astype(x.dtype), x], 1), self.count[:, None])[:, 0]

    def tail(self, x: jax.Array, size: int) -> jax.Array:
        """Of x [B, size + L, ...], which begins ``size`` bytes before this call, the last ``size`` real bytes."""
        return at(x, self.count[:, None] + jnp.arange(size))


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, T, ...] at index [B, N] -> [B, N, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)


class Reading(NamedTuple):
    """What `Patcher.read` says of the bytes.

    Attributes:
      x: [B, L, d], local states.
      events: boolean [B, L], false at padding.
      state: the patcher's own state after these bytes.
      data: whatever `Patcher.down` and `Patcher.up` need beside.
      aux: reports, float32 scalars by name.
    """

    x: jax.Array
    events: jax.Array
    state: dict[str, jax.Array]
    data: dict[str, jax.Array]
    aux: dict[str, jax.Array]


class Slots(NamedTuple):
    """The patches of a call.

    Attributes:
      place: int32 [B, N], the byte of each one's event, rising; 0 for an empty slot.
      filled: boolean [B, N]; filled slots come first.
      segment_ids: int32 [B, N], 0 for an empty slot.
    """

    place: jax.Array
    filled: jax.Array
    segment_ids: jax.Array


class Answer(NamedTuple):
    """What the model's layers say to the bytes of a call.

    Attributes:
      y: [B, N + 1, D], of the patch before this call and those of it.
      index: int32 [B, L], the latest patch at each byte, as an index into y.
      known: boolean [B, L], there is one in the byte's own text.
      events: boolean [B, L], events that had room.
    """

    y: jax.Array
    index: jax.Array
    known: jax.Array
    events: jax.Array

    def of_bytes(self, x: jax.Array, none: jax.Array) -> jax.Array:
        """x [B, N + 1, ...], made of y, at each byte, [B, L, ...]; ``none`` where no patch is known."""
        known = self.known.reshape(*self.known.shape, *(1,) * (x.ndim - 2))
        return jnp.where(known, at(x, self.index), none.astype(x.dtype))


class Run(Protocol):
    """Runs one of the patcher's stacks of local layers on x [B, T, d], or one of its `models` on bytes, int32 [B, T],
    which gives logits [B, T, V]."""

    def __call__(
        self, name: str, x: jax.Array, segment_ids: jax.Array | None, positions: jax.Array | None = None
    ) -> jax.Array: ...


def local_layers(repeats: int = 1, window: int = 128, heads: int = 4) -> tuple[Group, ...]:
    """Blocks with attention to a window of bytes, the default of local layers; window 0 is the whole text."""
    mask = {"name": "window", "args": {"size": window}} if window else "causal"
    return (Group((Block(mixer=Attention(heads=heads, mask=mask)),), repeats),)


@dataclasses.dataclass(frozen=True)
class Patcher(Spec):
    """Base of all patchers.

    Attributes:
      width: d, of embeddings, local layers and the head.
      patches_per_byte: room for patches: a row of L bytes has ceil(L patches_per_byte) slots.
      decoder: local layers after the model's.
      norm: of what local layers hand to others.
    """

    paper: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # published sizes, as fields

    width: int = 64
    patches_per_byte: float = 0.5
    decoder: tuple[Group, ...] = local_layers()
    norm: Any = slot("norm", "rms")

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Any:
        """The patcher with the fields of a named preset, and others. Raises `ConfigError` for an unknown name."""
        choose(f"{cls.__name__}.preset", name, cls.presets)
        return cls(**{**cls.presets[name], **fields})

    def check(self) -> None:
        name = type(self).__name__
        require(self.width > 0, f"{name}.width: expected a positive integer, got {self.width}")
        require(
            0 < self.patches_per_byte <= 1,
            f"{name}.patches_per_byte: expected a number above 0 and up to 1, got {self.patches_per_byte}",
        )
        require(self.decoder, f"{name}.decoder: expected at least one Group")

    def check_bound(self, longest: int) -> None:
        """Raises `ConfigError` if patches of at most ``longest`` bytes cannot fit the room there is."""
        name = type(self).__name__
        require(longest > 0, f"{name}.max_bytes: expected a positive integer, got {longest}")
        require(
            self.patches_per_byte * longest >= 1,
            f"{name}.patches_per_byte: patches of at most {longest} bytes need room for at least {1 / longest:.4g} a "
            f"byte, got {self.patches_per_byte}",
        )

    def check_model(self, spec: ModelSpec) -> None:
        """Raises `ConfigError` for a model that it does not fit."""
        name = type(self).__name__
        require(
            spec.vocab_size <= MOST_TOKENS,
            f"ModelSpec.patcher: {name} makes patches of bytes; a vocabulary of {spec.vocab_size} tokens is not one of "
            f"bytes and a few specials (at most {MOST_TOKENS})",
        )
        default = {field.name: field.default for field in dataclasses.fields(ModelSpec)}
        for field in ("edit", "embed_norm", "embed_width", "token_types", "head_transform", "pooler"):
            require(
                getattr(spec, field) == default[field],
                f"ModelSpec.{field}: a model with a patcher has none, got {getattr(spec, field)!r}",
            )

    def capacity(self, length: int) -> int:
        """N, the patches that a row of ``length`` bytes has room for."""
        return max(1, math.ceil(length * self.patches_per_byte))

    @property
    def history(self) -> int:
        """K, how many of the bytes before a call it needs to know."""
        return 0

    def stacks(self) -> dict[str, tuple[Group, ...]]:
        """Local layers by name; ``streams`` has those that see the bytes as they come, the others are run in `down`."""
        return {"decoder": self.decoder}

    @property
    def streams(self) -> tuple[str, ...]:
        """The stacks that have a state."""
        return ("decoder",)

    def models(self) -> dict[str, ModelSpec]:
        """Whole language models by name, which see the bytes as they come, too, and which training leaves alone."""
        return {}

    def reach(self, name: str, length: int) -> int:
        """How many bytes a stack sees at once in a text of ``length``, to count FLOPs."""
        return length

    def load(self, name: str) -> float:
        """How many tokens a stack sees for each byte, to count FLOPs."""
        return 1.0

    def params(self, dims: Dims) -> Specs:
        """Its arrays beside those of its stacks; ``dims.width`` is D."""
        raise NotImplementedError

    def start(self, dims: Dims, batch: int, dtype: Any) -> dict[str, jax.Array]:
        """Its own state before the first byte, arrays [batch, ...]."""
        return {}

    def read(self, p: Params, row: Row, state: dict[str, jax.Array], run: Run) -> Reading:
        raise NotImplementedError

    def down(self, p: Params, row: Row, reading: Reading, slots: Slots, run: Run) -> jax.Array:
        """z [B, N, D]; what empty slots hold does not matter, but is finite. ``run`` here knows no state."""
        raise NotImplementedError

    def settle(self, y: jax.Array, reading: Reading, slots: Slots, before: tuple[jax.Array, jax.Array]) -> jax.Array:
        """y as bytes are to read it, given that of the patch ``before``, [B, D], and its segment [B] (0 for none)."""
        return y

    def up(self, p: Params, row: Row, reading: Reading, answer: Answer, run: Run) -> jax.Array:
        raise NotImplementedError


def projection(rows: int, columns: int, *, up: bool = False) -> ParamSpec:
    """A matrix between the local width and the model's."""
    return ParamSpec((rows, columns), ("embed", None) if up else (None, "embed"))


@dataclasses.dataclass(frozen=True)
class WithEncoder(Patcher):
    """A patcher whose events and patches are read from causal local layers.

    Attributes:
      encoder: local layers before the model's.
    """

    encoder: tuple[Group, ...] = local_layers()

    def stacks(self) -> dict[str, tuple[Group, ...]]:
        return {"encoder": self.encoder, "decoder": self.decoder} if self.encoder else {"decoder": self.decoder}

    @property
    def streams(self) -> tuple[str, ...]:
        return ("encoder", "decoder")
