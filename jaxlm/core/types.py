"""Shapes, and the protocols through which rooms see each other.

Glossary of the dimension letters that names carry (``x_BLD``, ``q_BLHK``, ``logits_BLV``):

    B batch    L length (of queries)    T keys held (cache capacity or length of keys)    D model width
    H query heads    G key/value heads    R = H / G queries per key/value head    K head width
    F hidden width of an FFN    V vocabulary    N layers

Positions, angles, softmax, recurrent states and losses are float32 or int32 whatever the model's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from jaxlm.core.config import Spec
from jaxlm.core.mask import Mask

Params = Mapping[str, Any]
Specs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Dims:
    """What a method may know of the model it sits in. ``heads`` and ``head_dim`` are set inside an attention mixer."""

    width: int
    layers: int = 1
    heads: int = 1
    head_dim: int = 0


@dataclasses.dataclass(frozen=True)
class Context:
    """What a mixer is told beside its input.

    Attributes:
      positions: int32 [B or 1, L].
      segment_ids: int32 [B, L], or None for one document per row. 0 marks padding: it is attended by nobody.
      ordered: positions rise along the row within each segment, which lets causal paths skip what lies ahead.
      slots: positions are 0, 1, 2, ... in every row, known before anything is traced: block maps are then static.
      train: dropout and other training-only behaviour on.
      rng: a key when ``train`` needs one.
      length: int32 scalar, the length that dynamic position scalings scale for; None for the longest position seen.
      shared: parameters of model-wide methods by registered name (T5's bias table).
    """

    positions: jax.Array
    segment_ids: jax.Array | None = None
    ordered: bool = True
    slots: bool = False
    train: bool = False
    rng: jax.Array | None = None
    length: jax.Array | None = None
    shared: Params = dataclasses.field(default_factory=dict)


class TileBias:
    """An additive attention bias that is evaluated where it is needed.

    Subclasses are frozen dataclasses registered as pytrees, holding whatever arrays they need (slopes, a table). They
    give the kernels' form, `numbers` and `at`, and so `tile`; or, where a tile is better had otherwise (a table that is
    looked up), override `tile` as well; or give `tile` alone, and only back ends that gather can serve. What is not
    ``trainable`` gets no gradient.
    """

    trainable: ClassVar[bool] = True

    def numbers(self) -> jax.Array | None:
        """What each head needs to know, float32 [H, n]; None if the bias has no such form."""
        return None

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        """The bias of one head from its n numbers: pure, elementwise, of any shapes that broadcast; float32."""
        raise NotImplementedError

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        """The bias of a tile: int32 [B, l] and [B, t] positions -> float32 [B, H, l, t] (B may be 1)."""
        numbers = self.numbers()
        assert numbers is not None
        each = tuple(numbers[:, i, None, None] for i in range(numbers.shape[1]))
        return self.at(each, pos_q[:, None, :, None], pos_k[:, None, None, :])


class Mixer(Protocol):
    """A sequence mixer: attention, a recurrence, a convolution. A frozen dataclass."""

    paper: ClassVar[str]
    streaming: ClassVar[bool]

    @property
    def causal(self) -> bool:
        """No output depends on a later token."""
        ...

    def params(self, dims: Dims) -> Specs: ...

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> Any:
        """The explicit state of one layer, a pytree of fixed shapes; ``cache`` is the policy of what keeps keys."""
        ...

    def flops(self, dims: Dims, length: int) -> float:
        """Forward FLOPs per token at ``length`` beyond the matmuls with the parameters."""
        ...

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context, state: Any = None) -> tuple[jax.Array, Any]: ...


class ModelFn(Protocol):
    """A model as objectives see it: a pure function of parameters and tokens, and its vocabulary head."""

    def __call__(self, params: Params, tokens: jax.Array, **options: Any) -> Any:
        """The forward pass; ``jaxlm.model.decoder.forward`` has the options. Returns an object with ``hidden``."""
        ...

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]."""
        ...


class PositionEncoding(Spec):
    """A position encoding: hooks on explicit integer positions, so packing, padding, edits and random positions need no
    special case. The defaults do nothing; a method overrides what it needs.

    ``scope`` says where parameters live: ``"layer"`` or ``"model"`` (once, under ``params["position"]``).
    """

    paper: ClassVar[str] = ""
    scope: ClassVar[str] = "layer"

    @property
    def pre_rotate(self) -> bool:
        """`rotate` of a key depends on its own position alone, so a cache may hold rotated keys."""
        return True

    @property
    def by_length(self) -> bool:
        """What `rotate` does depends on the length of the context, declared by the caller or the current one."""
        return False

    def params(self, dims: Dims) -> Specs:
        """Parameter specs; usually none."""
        return {}

    def max_positions(self) -> int | None:
        """Number of positions the encoding can represent; None if it has no bound."""
        return None

    def draw(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """The positions [B, L] to use in place of the plain ones; random encodings draw them here, once.

        Row b draws by its id ``rows[b]``, by default b.
        """
        return positions

    def embed(self, p: Params, positions: jax.Array, width: int) -> jax.Array | None:
        """float32 [B, L, width] to add to the token embeddings."""
        return None

    def rotate(self, p: Params, x_BLHK: jax.Array, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        """Queries or keys turned by their positions [B or 1, L]; same shape and dtype."""
        return x_BLHK

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        """One (q, k, region) per attention call whose results are merged; region None means everywhere."""
        return [(self.rotate(p, q, pos_q, length), self.rotate(p, k, pos_k, length), None)]

    def bias(self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array) -> TileBias | None:
        """A bias added to the scaled logits."""
        return None


class RotaryScaling(Spec):
    """How the frequencies of a rotary encoding are changed for contexts longer than those of training.

    ``by_length`` says that they depend on the length of the context.
    """

    paper: ClassVar[str] = ""
    by_length: ClassVar[bool] = False

    def frequencies(self, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        """float32 radians per position of each pair, [width / 2], or [B, width / 2] for a ``length`` [B].

        ``base`` may be traced; ``width`` is the number of rotated channels; ``length`` None reads as within training.
        """
        raise NotImplementedError

    def amplitude(self) -> float:
        """Factor of cos and sin, and so, squared, of the logits."""
        return 1.0
