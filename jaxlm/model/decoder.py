"""The decoder as pure functions of (spec, params, tokens): the forward pass, its output, random positions.

What it is made of has a file each: parameters (`declaration`), state (`state`), the first layer's input (`inputs`),
blocks and the scan over them (`layers`). `unstack` turns stacked parameters into a list per repeat, the form in which
a decode loop wants them; every function here takes either. With a tied head there may be a table for each row of the
batch, [B, V, D] (`jaxlm.ops.drawn_table`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm.core.config import require
from jaxlm.core.types import Memory, Params, Specs
from jaxlm.ffn.base import Aux
from jaxlm.model.declaration import check_length, patched_model
from jaxlm.model.declaration import dims_of as dims_of
from jaxlm.model.declaration import max_positions as max_positions
from jaxlm.model.declaration import param_specs as param_specs
from jaxlm.model.declaration import position_encodings as position_encodings
from jaxlm.model.head import pool
from jaxlm.model.inputs import Inputs, begin
from jaxlm.model.layers import apply_block as apply_block
from jaxlm.model.layers import apply_layers
from jaxlm.model.layers import unstack as unstack
from jaxlm.model.spec import ModelSpec
from jaxlm.model.state import advance
from jaxlm.model.state import init_state as init_state
from jaxlm.model.state import rooms as rooms
from jaxlm.ops.dense import dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
      hidden: [B, L, D], after the final norm, in the model's dtype.
      logits: float32 [B, L, V], or None if not asked for.
      state: the state after these tokens, or None if none was given.
      aux: what the layers report beside their outputs, float32 scalars by name (`jaxlm.ffn.base`).
      pooled: [B, D] of each row's first token, in the model's dtype, or None if the model has no pooler.
    """

    hidden: jax.Array
    logits: jax.Array | None = None
    state: Any = None
    aux: Aux = dataclasses.field(default_factory=dict)
    pooled: jax.Array | None = None


def unembed(spec: ModelSpec, params: Params, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D]."""
    if spec.head_transform is not None:
        hidden = spec.head_transform(params["head"]["transform"], hidden)
    if spec.embed_width:
        hidden = dense(hidden, params["head"]["down"])
    kernel = jnp.swapaxes(params["embed"]["table"], -1, -2) if spec.tied_head else params["head"]["kernel"]
    product = jnp.matmul if kernel.ndim == 2 else functools.partial(jnp.einsum, "b...d,bdv->b...v")
    logits = product(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if spec.head_bias:
        logits = logits + params["head"]["bias"]
    if spec.logit_multiplier != 1:
        logits = logits * spec.logit_multiplier
    if spec.logit_soft_cap:
        logits = spec.logit_soft_cap * jnp.tanh(logits / spec.logit_soft_cap)
    return logits


def forward(
    spec: ModelSpec,
    params: Params,
    tokens: jax.Array | None = None,
    *,
    memory: Memory | None = None,
    logits: bool = True,
    **given: Any,
) -> Output:
    """The whole model. Tokens that it adds to its input by itself (``spec.edit``) show nowhere in what it returns.

    Args:
      spec, params: the model; ``params`` stacked or unstacked.
      tokens: int32 [B, L]; ids outside the vocabulary read NaN.
      memory: what an encoder gave, for models that read one; with a state, needed in the first call alone.
      logits: whether to compute them; `unembed` makes them from ``hidden`` in pieces.
      given: the fields of `jaxlm.model.inputs.Inputs`: positions, segment_ids, state, ...

    Raises:
      ConfigError: neither or both of tokens and inputs_embeds, the latter or token types where the model edits its
        tokens, token types where it has none, position ids where no encoding adds to the embeddings, a length no
        position encoding can represent, or no memory where the model reads one.
    """
    if spec.patcher is not None:
        require(memory is None, "memory: a model with a patcher reads none")
        return patched_model().forward(spec, params, tokens, **given, logits=logits)
    inputs = Inputs(**given)
    state = inputs.state
    x, ctx, rest = begin(spec, params, tokens, inputs)
    ctx = ctx if memory is None else dataclasses.replace(ctx, memory=memory)
    x, entries, aux = apply_layers(spec, params, x, ctx, None if state is None else state["layers"])
    if spec.norm is not None:
        x = spec.norm(params["final_norm"], x)
    if state is not None:
        state = {"layers": entries, **advance(state, ctx.positions, ctx.segment_ids, x.shape[0], x.shape[1])}
        state |= {"encodings": rest.carried} if rest.carried else {}
    if spec.edit is not None and rest.edited is not None:
        x = spec.edit.strip(x, rest.edited.places)
        state = None if state is None else {**state, "text": rest.edited.count}
    return Output(
        hidden=x,
        logits=unembed(spec, params, x) if logits else None,
        state=state,
        aux=aux,
        pooled=pool(params["pooler"], x) if spec.pooler else None,
    )


def prepare_positions(spec: ModelSpec, shared: Params) -> dict[str, Any]:
    """``params["position"]`` as the encodings make it of their parameters once in a forward pass (a table of CLEX), for
    loops of many passes; `forward` takes either form."""
    encodings = position_encodings(spec)
    return {name: encodings[name][0].prepare(p, encodings[name][1]) for name, p in shared.items()}


def draw_positions(
    spec: ModelSpec, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None, *, train: bool = False
) -> jax.Array | None:
    """The positions [B, L] that the model's random encoding draws in place of the plain ones; None if it has none.

    Row b draws by its id ``rows[b]``, by default b. ``train`` asks for positions to train on.

    Raises `ConfigError` if known positions are beyond what the model's encodings can represent.
    """
    if not isinstance(positions, Tracer):
        check_length(spec, int(np.asarray(positions).max()) + 1)
    for encoding, _ in position_encodings(spec).values():
        drawn = (encoding.draw_training if train else encoding.draw)(key, positions, rows)
        if drawn is not positions:
            return drawn
    return None


class Prompt(NamedTuple):
    """What generation begins with.

    Attributes:
      tokens: int32 [B, L], padded on the right, and ``lengths`` int32 [B], what is real of each row.
      params: of the stack that writes.
      memory: what that stack reads, or None.
    """

    tokens: Any
    lengths: Any
    params: Params
    memory: Memory | None = None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The pure functions of one spec: the model as objectives, trainers and decoders take it.

    `jaxlm.model.encoder_decoder.Transducer` is another of the same kind. `stacks` are the models it is made of by
    name, `reader` is the one that a prompt is for, `writer` the one that new tokens come of.
    """

    spec: ModelSpec

    @property
    def stacks(self) -> dict[str, ModelSpec]:
        return {"": self.spec}

    @property
    def reader(self) -> ModelSpec:
        return self.spec

    @property
    def writer(self) -> ModelSpec:
        return self.spec

    @property
    def causal(self) -> bool:
        """No output depends on a later token."""
        return all(block.mixer.causal for group in self.spec.layers for block in group.pattern)

    def param_specs(self) -> Specs:
        return param_specs(self.spec)

    def prompt(self, params: Params, tokens: Any, lengths: Any) -> Prompt:
        """What generation begins with after a prompt [B, L] that is padded on the right."""
        return Prompt(tokens, lengths, params)

    def __call__(self, params: Params, tokens: jax.Array | None = None, **options: Any) -> Output:
        return forward(self.spec, params, tokens, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return unembed(self.spec, params, hidden)

    def draw(self, key: jax.Array, positions: jax.Array, *, train: bool = False) -> jax.Array | None:
        return draw_positions(self.spec, key, positions, train=train)
