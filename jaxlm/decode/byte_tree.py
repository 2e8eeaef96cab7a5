r"""Byte-level probabilities inside jit, for tokenizers of plain byte pair encoding: one model step a byte.

Dropping the last token of an encoding leaves the encoding of the shorter text. So the encodings of all beginnings of a
text form a tree: node i, for its first i bytes, hangs from node i - len(its last token), and what the model says behind
node i is one step from the state of that parent. Only the last R nodes matter, R the bytes of the longest token:

    P(x b ..) = sum over nodes j > n - R of  P(j) * sum of P(t | j) over tokens t that may follow and begin with x[j:] b

and all of it has fixed shapes: a ring of R nodes with their log weights, how far into the vocabulary's trie the bytes
since then lead, what may follow (`jaxlm.tokenize.adjacency`), and the probability of every node of the trie
(`jaxlm.tokenize.byte_trie`). Of the R nodes exactly one is such that the text since then is a token that may follow it:
the parent of the next.

Keys and values of all nodes lie in one cache, a slot a byte; a step sees those of its ancestors, told by the cache's
segment ids, at the positions of their depths. States that are no such cache (recurrences; caches whose tokens carry a
sum) are kept for each of the R nodes.

Sums are of float32 probabilities: a byte that is less likely than 1e-38 reads impossible.

Rows of a batch that begin later wait: until then their ring holds nothing but the base, which the prefill has made.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.cache.full import FullCache
from jaxlm.core.types import Params
from jaxlm.decode.byte_model import END, choose
from jaxlm.decode.row_states import empty_states, is_cache
from jaxlm.model import decoder
from jaxlm.model.spec import ModelSpec
from jaxlm.tokenize.adjacency import NEVER, Adjacency
from jaxlm.tokenize.byte_trie import ByteTrie, padded

NEG = -jnp.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """A tokenizer as arrays: what `Adjacency` and `ByteTrie` hold, and the ids that end a text.

    Attributes:
      strict: whether only tokens that may follow are counted; otherwise all are, and nodes are still encodings.
      ring: R. partners: the most merges that one token's right edge has.
    """

    usable: jax.Array
    first_byte: jax.Array
    last_byte: jax.Array
    cut: jax.Array
    edge: jax.Array
    until: jax.Array
    start: jax.Array
    partner: jax.Array
    rank: jax.Array
    order: jax.Array
    row: jax.Array
    child: jax.Array
    token: jax.Array
    blocks: tuple[jax.Array, ...]
    ends: jax.Array
    root: int = dataclasses.field(metadata={"static": True})
    ring: int = dataclasses.field(metadata={"static": True})
    partners: int = dataclasses.field(metadata={"static": True})
    strict: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, adjacency: Adjacency, trie: ByteTrie, ends: tuple[int, ...], strict: bool) -> Tables:
        partners = max(1, int(np.diff(adjacency.start).max()))
        beyond = lambda x, value: np.pad(x, (0, partners), constant_values=value)  # so that a slice never runs out
        arrays = {field.name: getattr(adjacency, field.name) for field in dataclasses.fields(adjacency)}
        arrays |= {
            "first_byte": adjacency.first_byte.astype(np.int32),
            "last_byte": np.append(adjacency.last_byte, 0).astype(np.int32),
            "partner": beyond(adjacency.partner, len(adjacency.usable)),
            "rank": beyond(adjacency.rank, NEVER),
            "order": trie.order,
            "row": trie.row,
            "child": trie.child,
            "token": trie.token,
            "ends": np.array(ends, np.int32),
        }
        return cls(
            **{name: jnp.asarray(array) for name, array in arrays.items()},
            blocks=tuple(map(jnp.asarray, trie.blocks)),
            root=trie.root,
            ring=trie.longest,
            partners=partners,
            strict=strict,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Node:
    """Nodes of a batch: [B, ...], or with an axis in front of the last R of them.

    Attributes:
      weight: float32, log P of the node, relative to the likeliest that is alive; -inf for none.
      at: int32, the node of the trie for the bytes since; `NOWHERE` if no token goes on so.
      depth: int32, its tokens, those of the head included.
      follows: float32 [.., V], log P(t | node) of the tokens that may follow, -inf of the others.
      masses: float32 [.., N], the probability of each node of the trie.
      end: float32, log P(end | node).
      seen: int32 [.., T], 1 for the slots of the node and its ancestors.
      states: a pytree of what layers remember of it, beside the shared caches.
    """

    weight: jax.Array
    at: jax.Array
    depth: jax.Array
    follows: jax.Array
    masses: jax.Array
    end: jax.Array
    seen: jax.Array
    states: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Growth:
    """A batch of texts.

    Attributes:
      step: int32 scalar, bytes so far, waiting included.
      newest: int32 scalar, the place in the ring of the newest node.
      ring: `Node`s [R, B, ...].
      base: the `Node` [B, ...] behind the prefill.
      caches: the shared caches, a tuple.
    """

    step: jax.Array
    newest: jax.Array
    ring: Node
    base: Node
    caches: tuple[FullCache, ...]


def prefill(
    spec: ModelSpec, capacity: int, tables: Tables, params: Params, tokens_BL: jax.Array, lengths_B: jax.Array,
    last_B: jax.Array,
) -> Growth:  # fmt: skip
    """The growth at the base: tokens padded on the right, and room for ``capacity - L`` bytes.

    ``last_B`` is the token of the text that the base ends with, V where its text is empty.
    """
    batch, size = tokens_BL.shape
    real = (jnp.arange(size) < lengths_B[:, None]).astype(jnp.int32)
    state = empty_states(spec, batch, capacity)
    output = decoder.forward(spec, params, tokens_BL, segment_ids=real, state=state, logits=False)
    caches, states = _divided(output.state["layers"], batch)
    hidden = output.hidden[jnp.arange(batch), lengths_B - 1]
    base = Node(
        weight=jnp.zeros(batch),
        at=jnp.full(batch, tables.root),
        depth=lengths_B,
        seen=jnp.pad(real, ((0, 0), (0, capacity - size))),
        states=states,
        **_behind(spec, tables, params, hidden, last_B),
    )
    ring = jax.tree.map(lambda x: jnp.zeros((tables.ring, *x.shape), x.dtype).at[0].set(x), base)
    ring = dataclasses.replace(ring, weight=ring.weight.at[1:].set(NEG), at=ring.at.at[1:].set(0))
    return Growth(jnp.int32(0), jnp.int32(0), ring, base, caches)


def distribution(tables: Tables, growth: Growth) -> jax.Array:
    """Log-probabilities, float32 [B, 257], of the next byte and the end; they sum to one."""
    ring = growth.ring
    children = tables.child[tables.row[ring.at]]  # [R, B, 256]
    peak = ring.weight.max(0)
    weights = jnp.exp(ring.weight - peak)
    masses = (weights[..., None] * jnp.take_along_axis(ring.masses, children, -1)).sum(0)
    end = jnp.exp(ring.weight[growth.newest] - peak + ring.end[growth.newest])
    logs = jnp.log(jnp.concatenate([masses, end[:, None]], -1))
    return logs - jax.nn.logsumexp(logs, axis=-1, keepdims=True)


def advance(spec: ModelSpec, tables: Tables, params: Params, growth: Growth, byte_B: jax.Array) -> Growth:
    """One byte more for each row; a row that got -1 is put back to its base."""
    ring, batch, waits = growth.ring, len(byte_B), byte_B < 0
    at = tables.child[tables.row[ring.at], jnp.maximum(byte_B, 0)]  # [R, B]
    token = tables.token[at]
    chance = jnp.take_along_axis(ring.follows, jnp.maximum(token, 0)[..., None], -1)[..., 0]
    weight = jnp.where(token >= 0, ring.weight + chance, NEG)
    parent, rows = jnp.argmax(weight, 0), jnp.arange(batch)
    token, weight = jnp.maximum(token[parent, rows], 0), weight[parent, rows]
    seen, depth = ring.seen[parent, rows], ring.depth[parent, rows]
    states = jax.tree.map(lambda x: x[parent, rows], ring.states)
    entries = _joined(spec, [dataclasses.replace(cache, segment=seen) for cache in growth.caches], states)
    state = {"layers": entries, "position": depth, "segment": jnp.ones_like(depth)}
    output = decoder.forward(spec, params, token[:, None], positions=depth[:, None], state=state, logits=False)
    caches, states = _divided(output.state["layers"], batch)
    slot = seen.shape[1] if not caches else growth.caches[0].cursor
    new = Node(
        weight=weight,
        at=jnp.full(batch, tables.root),
        depth=depth + 1,
        seen=jnp.where(jnp.arange(seen.shape[1]) == slot, 1, seen),
        states=states,
        **_behind(spec, tables, params, output.hidden[:, 0], token),
    )
    new = jax.tree.map(lambda old, x: jnp.where(_over(waits, x), old, x), growth.base, new)
    alive = jnp.where(waits, NEG, jnp.where(tables.row[at] > 0, ring.weight, NEG))  # tokens go on that far
    peak = jnp.maximum(alive.max(0), new.weight)
    shift = jnp.where(peak == NEG, 0, peak)
    place = (growth.newest + 1) % tables.ring
    ring = dataclasses.replace(ring, weight=alive - shift, at=jnp.where(alive == NEG, 0, at))
    new = dataclasses.replace(new, weight=new.weight - shift)
    write = jax.lax.dynamic_update_index_in_dim  # in place, which a scatter is not
    ring = jax.tree.map(lambda every, one: write(every, one, place, 0), ring, new)
    return Growth(growth.step + 1, place, ring, growth.base, caches)


def _behind(
    spec: ModelSpec, tables: Tables, params: Params, hidden_BD: jax.Array, last_B: jax.Array
) -> dict[str, jax.Array]:
    """What a node knows of what comes next."""
    logs = jax.nn.log_softmax(decoder.unembed(spec, params, hidden_BD))
    size = len(tables.usable)
    ends = jax.nn.logsumexp(logs[:, tables.ends], axis=-1) if tables.ends.size else jnp.full(len(logs), NEG)
    follows = jnp.where(jax.vmap(lambda last: may_follow(tables, last))(last_B), logs[:, :size], NEG)
    counted = jnp.exp((follows if tables.strict else logs)[:, tables.order])
    return {"follows": follows, "masses": sums(tables, counted), "end": ends}


def may_follow(tables: Tables, last: jax.Array) -> jax.Array:
    """bool [V]: the tokens that may stand behind one, V for the beginning of a text; as `Adjacency.after`."""
    size = len(tables.usable)
    near = tables.start[last] + jnp.arange(tables.partners)
    own = near < tables.start[last + 1]
    joined = jnp.full(size + 1, NEVER).at[jnp.where(own, tables.partner[near], size)].min(
        jnp.where(own, tables.rank[near], NEVER)
    )  # fmt: skip
    wrong = jnp.zeros(size, bool)
    for edge, until in zip(tables.edge, tables.until, strict=True):
        met = joined[edge]
        wrong |= (met <= until) & (met < NEVER)
    apart = tables.cut[tables.last_byte[last], tables.first_byte] | (last == size)
    return tables.usable & (~wrong | apart)


def sums(tables: Tables, values_Bn: jax.Array) -> jax.Array:
    """[B, N]: the sum at each node of the trie over the tokens, in its order, that begin so; as `ByteTrie.sums`."""
    batch, size = values_Bn.shape
    levels = [jnp.pad(values_Bn, ((0, 0), (0, padded(size) - size)))]
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1].reshape(batch, -1, 2).sum(-1))
    cells = jnp.concatenate([*levels, jnp.zeros((batch, 1), values_Bn.dtype)], 1)
    return jnp.concatenate([cells[:, block].sum(-1) for block in tables.blocks], 1)


def _over(rows_B: jax.Array, x: jax.Array) -> jax.Array:
    return rows_B.reshape(-1, *(1,) * (x.ndim - 1))


# The state of the layers: caches that all nodes share, and the rest.


def _shared(x: Any) -> bool:
    """Whether all nodes may share it: what a token wrote there depends on the token and its ancestors alone."""
    return isinstance(x, FullCache) and x.side.shape[-1] == 0


def _divided(layers: Any, batch: int) -> tuple[tuple[FullCache, ...], list[Any]]:
    """The shared caches, and what each node has of its own, arrays [B, ...]."""
    leaves = jax.tree.leaves(layers, is_leaf=is_cache)
    own = [
        dataclasses.replace(x, cursor=jnp.broadcast_to(x.cursor, batch)) if isinstance(x, FullCache) else x
        for x in leaves
        if not _shared(x)
    ]
    return tuple(x for x in leaves if _shared(x)), own


def _joined(spec: ModelSpec, caches: list[FullCache], own: list[Any]) -> Any:
    """The layers' state of which `_divided` made these."""
    empty = jax.eval_shape(lambda: empty_states(spec, 1, 1)["layers"])
    leaves, tree = jax.tree.flatten(empty, is_leaf=is_cache)
    shared, others = iter(caches), iter(own)
    return jax.tree.unflatten(tree, [next(shared) if _shared(x) else next(others) for x in leaves])


# Loops.


def feed(
    spec: ModelSpec, tables: Tables, params: Params, growth: Growth, forced_BK: jax.Array, first: jax.Array
) -> tuple[Growth, jax.Array]:
    """Given bytes, from column ``first`` on; and the log-probability that each had, float32 [B, K]."""

    def one(k: Any, carry: tuple[Growth, jax.Array]) -> tuple[Growth, jax.Array]:
        growth, logs = carry
        byte = jax.lax.dynamic_index_in_dim(forced_BK, k, 1, keepdims=False)
        said = jnp.take_along_axis(distribution(tables, growth), jnp.maximum(byte, 0)[:, None], 1)
        byte = jnp.where(said[:, 0] > 0.5, -1, byte)  # never; so that the ring is read before it is written: no copy
        logs = jax.lax.dynamic_update_slice_in_dim(logs, said, k, 1)
        return advance(spec, tables, params, growth, byte), logs

    logs = jnp.zeros(forced_BK.shape, jnp.float32)
    return jax.lax.fori_loop(first, forced_BK.shape[1], one, (growth, logs))


def mixed(members: tuple[tuple[Tables, Growth], ...]) -> jax.Array:
    """The mean of the members' distributions, as log-probabilities [B, 257]."""
    logs = jnp.stack([distribution(tables, growth) for tables, growth in members])
    return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(members))


def sample(
    specs: tuple[ModelSpec, ...],
    new: int,
    tables: tuple[Tables, ...],
    params: tuple[Params, ...],
    growths: tuple[Growth, ...],
    temperature: jax.Array,
    key: jax.Array | None,
    rows_B: jax.Array,
    stop_SK: jax.Array,
) -> jax.Array:
    """int32 [B, new]: bytes of the members' mean, one after another; `END` where a text has ended, -1 behind that.

    ``stop_SK`` holds strings that end a text, on the right, -1 before them.
    """
    batch = len(rows_B)

    def more(carry: Any) -> jax.Array:
        step, _, done, _ = carry
        return (step < new) & ~done.all()

    def one(carry: Any) -> Any:
        step, out, done, growths = carry
        logs = mixed(tuple(zip(tables, growths, strict=True)))
        byte = jnp.where(done, -1, choose(logs, temperature, key, rows_B, step))
        out = jax.lax.dynamic_update_slice_in_dim(out, byte[:, None], step + stop_SK.shape[1], 1)
        last = jax.lax.dynamic_slice_in_dim(out, step + 1, stop_SK.shape[1], 1)
        stopped = ((last[:, None] == stop_SK) | (stop_SK < 0)).all(-1).any(-1)
        byte = jnp.where(byte == END, -1, byte)
        done = done | (byte < 0) | stopped
        members = zip(specs, tables, params, growths, strict=True)
        growths = tuple(advance(spec, table, weights, growth, byte) for spec, table, weights, growth in members)
        return step + 1, out, done, growths

    out = jnp.full((batch, stop_SK.shape[1] + new), -1, jnp.int32)
    start = (jnp.int32(0), out, jnp.zeros(batch, bool), growths)
    return jax.lax.while_loop(more, one, start)[1][:, stop_SK.shape[1] :]
