"""Shapes, and the protocols through which rooms see each other.

Glossary of the dimension letters that names carry (``x_BLD``, ``q_BLHK``, ``logits_BLV``):

    B batch    L length (of queries)    T keys held (cache capacity or length of keys)    D model width
    H query heads    G key/value heads    R = H / G queries per key/value head    K head width
    F hidden width of an FFN    V vocabulary    N layers

Positions, angles, softmax, recurrent states and losses are float32 or int32 whatever the model's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax

from jaxlm.core.config import Spec
from jaxlm.core.mask import Mask
from jaxlm.core.versions import check_jax

check_jax()

Params = Mapping[str, Any]
Specs = dict[str, Any]
Side = tuple[jax.Array, jax.Array]  # of queries [B, L, S] and of keys [B, T, S], float32


@dataclasses.dataclass(frozen=True)
class Dims:
    """What a method may know of the model it sits in. ``heads`` and ``head_dim`` are set inside an attention mixer;
    ``out`` is the width of what attention gives where that is not ``width``, the width of what it reads; ``source`` the
    length of what an encoder gives, where a state is made that holds it."""

    width: int
    layers: int = 1
    heads: int = 1
    head_dim: int = 0
    out: int = 0
    source: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What a decoder reads of an encoder.

    Attributes:
      hidden: [B, S, D], after the encoder's final norm.
      segment_ids: int32 [B, S]; a query reads what has its own segment, and 0 is read by nobody. None for one document.
      bias: float32 [B, S], added to the logits of each key (soft deletion); None for nothing.
    """

    hidden: jax.Array
    segment_ids: jax.Array | None = None
    bias: jax.Array | None = None


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
      embedded: [B, L, D], the input of the first layer, for mixers that read it too; None outside a whole model.
      handed: what layers before hand on by name, for mixers that read it (RWKV-7's first values).
      memory: what an encoder gave, for mixers that read it; None where there is none, or where their state holds it.
      key_bias: float32 [B, L], added to the logits of each token as a key in self-attention (soft deletion).
    """

    positions: jax.Array
    segment_ids: jax.Array | None = None
    ordered: bool = True
    slots: bool = False
    train: bool = False
    rng: jax.Array | None = None
    length: jax.Array | None = None
    shared: Params = dataclasses.field(default_factory=dict)
    embedded: jax.Array | None = None
    handed: Params = dataclasses.field(default_factory=dict)
    memory: Memory | None = None
    key_bias: jax.Array | None = None


class TileBias:
    """An additive attention bias that is evaluated where it is needed.

    Subclasses are frozen dataclasses registered as pytrees, holding whatever arrays they need (slopes, a table). They
    give the kernels' form, `numbers` and `at`, and so `tile`; or, where a tile is better had otherwise (a table that is
    looked up), override `tile` as well; or give `tile` alone, and only back ends that gather can serve: then
    ``of_heads`` names the arrays [H, ...] of which a device with some of the heads needs its part. What is not
    ``trainable`` gets no gradient.
    """

    trainable: ClassVar[bool] = True
    of_heads: ClassVar[tuple[str, ...]] = ()

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBias:
    """An additive attention bias that reads queries, keys, or data of each token: evaluated for a block of queries
    against all keys, by back ends that hold such a row.

    Attributes:
      queries: arrays [B, Lq, H, ...]; a block of queries reads its own.
      keys: arrays [B, Lk, G or H, ...].
      heads: arrays [H, ...].
      rule: ``rule(queries, keys, heads, pos_q, pos_k, seen) -> float32 [B, H, l, Lk]``, pure, for int32 positions
        [B or 1, l] and [B or 1, Lk] and boolean ``seen`` [B or 1, H or 1, l, Lk], the pairs that the mask shows.
    """

    queries: Any
    keys: Any
    heads: Any
    rule: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})


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
        """The forward pass; ``jaxlm.model.inputs.Inputs`` has the options. Returns an object with ``hidden``."""
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

    @property
    def says_where(self) -> bool:
        """Tokens learn something of where they are, beyond what the mask tells."""
        return True

    def params(self, dims: Dims) -> Specs:
        """Parameter specs; usually none."""
        return {}

    @property
    def reads_tokens(self) -> bool:
        """`embed_tokens` adds something; such an encoding has scope ``"model"``."""
        return False

    def start(self, batch: int) -> Any:
        """What `embed_tokens` carries before the first token: arrays [batch, ...]."""
        return None

    def embed_tokens(
        self,
        p: Params,
        tokens: jax.Array,
        segment_ids: jax.Array | None,
        carried: Any,
        width: int,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """float32 [B, L, width] to add to the embeddings of tokens [B, L], and what it carries to the next piece.

        ``carried`` None is a full pass; ``key`` is for what is random in training.
        """
        raise NotImplementedError

    def prepare(self, p: Params, dims: Dims) -> Params:
        """What the other hooks may take in place of the parameters, of an encoding of scope ``"model"``: made once in a
        forward pass, not in each layer. Returns what is prepared already as it is."""
        return p

    def max_positions(self) -> int | None:
        """Number of positions the encoding can represent; None if it has no bound."""
        return None

    def draw(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """The positions [B, L] to use in place of the plain ones; random encodings draw them here, once.

        Row b draws by its id ``rows[b]``, by default b.
        """
        return positions

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """The positions to train on in place of the plain ones, where they differ from those of `draw`."""
        return self.draw(key, positions, rows)

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

    def side_width(self, dims: Dims) -> int:
        """How many numbers `side` gives each token; 0 for none."""
        return 0

    def side(
        self, p: Params, x_BLD: jax.Array, segment_ids: jax.Array | None, before: jax.Array | None
    ) -> jax.Array | None:
        """What a token carries beside its key: float32 [B, L, side_width], from the mixer's input and that of the token
        that came last, ``before`` [B, side_width] (None if these are the first). Padding, segment 0, repeats what came
        last.
        """
        return None

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias | RowBias | None:
        """A bias added to the scaled logits, for a view's q [B, L, H, K] and k [B, T, G, K] and what `side` gave for
        queries and keys.
        """
        return None


class RotaryScaling(Spec):
    """How the frequencies of a rotary encoding are changed for contexts longer than those of training.

    ``by_length`` says that they depend on the length of the context, ``scope`` where parameters live, as of a
    `PositionEncoding`.
    """

    paper: ClassVar[str] = ""
    scope: ClassVar[str] = "layer"
    by_length: ClassVar[bool] = False

    def params(self, width: int) -> Specs:
        """Parameter specs for ``width`` rotated channels; usually none."""
        return {}

    def prepare(self, p: Params, base: jax.Array | float, width: int) -> Params:
        """What `frequencies` takes in place of the parameters and has less work with; made once in a forward pass."""
        return p

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """As of a `PositionEncoding`."""
        return positions

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        """float32 radians per position of each pair, [width / 2], or [B, width / 2] for a ``length`` [B].

        ``base`` may be traced; ``width`` is the number of rotated channels; ``length`` None reads as within training.
        """
        raise NotImplementedError

    def amplitude(self) -> float:
        """Factor of cos and sin, and so, squared, of the logits."""
        return 1.0
