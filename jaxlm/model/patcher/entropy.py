"""Patches end where the next byte is hard to tell (Byte Latent Transformer, Pagnoni et al. 2024, arXiv 2412.09871).

    e_t = (e(b_t) + sum_n E_n[hash(b_(t-n+1) .. b_t)]) / (number of n + 1)
    h = encoder(e)                                               local, causal, with an attention window
    z_j = max_pool(h) W_m + cross(norm(max_pool(h)) -> norm(h))  over the bytes of patch j
    x = decoder(h + cross(norm(h) -> k vectors of y_j))          j the last complete patch at byte t

The entropy H_t of the byte after t, in nats, from a small model of bytes, ends a patch at t by one of three rules
(`boundaries.entropy_ends`): H_t > threshold; H_t - H_(t-1) > threshold_add; both. Patches longer than ``max_bytes`` are
cut, and the cuts counted (``long_patches``). The small model is a language model, as in the paper, or counts of the
last k bytes (`entropy_table`), which cost nothing to look up. Either is data that training leaves alone, in float32
unless the model says otherwise, so patches are the same in training and in generation.

Learned: E_n, the projections and cross-attentions. Not learned: the entropies, which `install` puts in; before that
those of a table are all 0, and patches have ``max_bytes``. Claimed: matches Llama 3 at 8B and 4T bytes with up to half
the FLOPs of inference.
Published: threshold 1.3354 (patches of 4.5 bytes); not verified: n = 3..8, window 512.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import Normal, ParamSpec, flatten, zeros
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.model.patcher.base import Answer, Reading, Row, Run, Slots, WithEncoder, at, local_layers, projection
from jaxlm.model.patcher.boundaries import RULES, entropy_ends, run_index
from jaxlm.model.patcher.cross import cross, cross_params, read_patches
from jaxlm.model.patcher.entropy_table import bucket, look_up
from jaxlm.model.spec import ModelSpec
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class EntropyPatcher(WithEncoder):
    """Patches by the entropy of the next byte.

    Attributes:
      rule: ``"global"``, ``"monotonic"`` or ``"combined"``.
      threshold: nats; threshold_add: nats, of a rise.
      max_bytes: the longest patch.
      model: the small language model; None for the table of counts.
      order: k, how many bytes the entropies know; buckets: entries of their table for each order up to k.
      ngrams: the n of hashed embeddings; ngram_buckets: rows of each.
      heads: of the cross-attentions; pieces: k, the vectors that bytes read of a patch.
    """

    paper: ClassVar[str] = "Pagnoni et al. 2024, Byte Latent Transformer: Patches Scale Better Than Tokens"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "blt": {
            "ngrams": (3, 4, 5, 6, 7, 8),
            "ngram_buckets": 500_000,
            "encoder": local_layers(1, 512, 16),
            "decoder": local_layers(9, 512, 16),
            "width": 1024,
        }
    }

    rule: str = "global"
    threshold: float = 1.3354
    threshold_add: float = 0.0
    max_bytes: int = 16
    model: ModelSpec | None = None
    order: int = 3
    buckets: int = 65536
    ngrams: tuple[int, ...] = (3, 4, 5)
    ngram_buckets: int = 4096
    heads: int = 4
    pieces: int = 2

    def check(self) -> None:
        super().check()
        choose("EntropyPatcher.rule", self.rule, RULES)
        self.check_bound(self.max_bytes)
        for field in ("buckets", "ngram_buckets", "heads", "pieces"):
            value = getattr(self, field)
            require(value > 0, f"EntropyPatcher.{field}: expected a positive integer, got {value}")
        require(self.order >= 0, f"EntropyPatcher.order: expected 0 or more, got {self.order}")
        require(min(self.ngrams, default=1) > 0, f"EntropyPatcher.ngrams: expected positive sizes, got {self.ngrams}")

    def check_model(self, spec: ModelSpec) -> None:
        super().check_model(spec)
        if self.model is None:
            return
        require(
            self.model.vocab_size == spec.vocab_size,
            f"EntropyPatcher.model.vocab_size: expected that of the whole model, {spec.vocab_size}, got "
            f"{self.model.vocab_size}",
        )
        require(self.model.patcher is None, "EntropyPatcher.model.patcher: expected none, a model of bytes alone")

    @property
    def history(self) -> int:
        return max(self.order, *self.ngrams, 1) - 1

    def models(self) -> dict[str, ModelSpec]:
        return {} if self.model is None else {"entropies": self.model}

    def params(self, dims: Dims) -> Specs:
        width = self.width
        table = ParamSpec((self.ngram_buckets, width), (None, "embed"), Normal(width**-0.5), (1,))
        counts = ParamSpec((self.order + 1, self.buckets), (None, None), zeros, decay=False)
        return {
            **({"entropies": counts} if self.model is None else {}),
            **{f"ngram_{n}": table for n in self.ngrams},
            "pool_norm": self.norm.params(width),
            "pool": cross_params(width, self.heads, dims.width),
            "down": projection(width, dims.width),
            "read_norm": self.norm.params(width),
            "read": cross_params(width, self.heads, width),
            "up": ParamSpec((dims.width, self.pieces, width), ("embed", None, None)),
        }

    def start(self, dims: Dims, batch: int, dtype: Any) -> dict[str, jax.Array]:
        return {
            "since": jnp.full((batch,), -1, jnp.int32),  # the last byte's index in its patch, before cuts
            "ended": jnp.zeros((batch,), bool),  # whether the patch ended with it, by its entropy
            "entropy": jnp.zeros((batch,), jnp.float32),
            "open": jnp.zeros((batch, self.max_bytes, self.width), dtype),  # the last local states
        }

    def _embed(self, p: Params, row: Row) -> jax.Array:
        x = row.embedded[:, self.history :]
        for n in self.ngrams:
            known = row.positions >= n - 1
            rows = p[f"ngram_{n}"][bucket([row.back(i) for i in range(n)], self.ngram_buckets)]
            x = x + jnp.where(known[..., None], rows, 0).astype(x.dtype)
        return x / (len(self.ngrams) + 1)

    def _after(self, p: Params, row: Row, run: Run) -> jax.Array:
        """Nats after each byte, float32 [B, L]."""
        if self.model is None:
            table = jax.lax.stop_gradient(p["entropies"])
            return look_up(table, [row.back(i) for i in range(self.order)], row.positions)
        return entropy(run("entropies", row.tokens, row.documents))

    def read(self, p: Params, row: Row, state: dict[str, jax.Array], run: Run) -> Reading:
        after = self._after(p, row, run)
        ends = row.real & entropy_ends(
            self.rule,
            after,
            row.shifted(after, state["entropy"]),
            row.positions,
            self.threshold,
            self.threshold_add,
        )
        since = run_index(row.first | row.shifted(ends, state["ended"]), state["since"])
        starts = row.real & (since % self.max_bytes == 0)
        events = row.real & (ends | (since % self.max_bytes == self.max_bytes - 1))
        h = run("encoder", self._embed(p, row), row.documents)
        held = jnp.arange(-self.max_bytes, 0)
        open_bytes = jnp.where(state["since"] < 0, 0, state["since"] % self.max_bytes + 1)[:, None]
        number = jnp.where(row.real, 1 + jnp.cumsum(starts, 1), 0)
        known = jnp.concatenate([state["open"].astype(h.dtype), h], 1)
        data = {"known": known, "numbers": jnp.concatenate([(held >= -open_bytes).astype(jnp.int32), number], 1)}
        new = {
            "since": row.last(since, state["since"]),
            "ended": row.last(ends, state["ended"]),
            "entropy": row.last(after, state["entropy"]),
            "open": row.tail(known, self.max_bytes).astype(state["open"].dtype),
        }
        aux = {"long_patches": (events & ~ends).sum().astype(jnp.float32)}
        return Reading(h, events, new, data, aux)

    def down(self, p: Params, row: Row, reading: Reading, slots: Slots, run: Run) -> jax.Array:
        known, numbers = reading.data["known"], reading.data["numbers"]
        place = self.max_bytes + slots.place
        most = at(_running_max(known, numbers), place)
        ids = jnp.where(slots.filled, at(numbers, place), 0)
        keys = self.norm(p["pool_norm"], known)
        return dense(most, p["down"]) + cross(p["pool"], self.norm(p["pool_norm"], most), keys, ids, numbers)

    def up(self, p: Params, row: Row, reading: Reading, answer: Answer, run: Run) -> jax.Array:
        asked = self.norm(p["read_norm"], reading.x)
        x = reading.x + read_patches(p["read"], asked, dense(answer.y, p["up"]), answer)
        return run("decoder", x, row.documents)


def entropy(logits: jax.Array) -> jax.Array:
    """Nats, float32 [...], of logits [..., V]."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0), -1)


def install(params: Params, entropies: NDArray[np.float32] | Params) -> dict[str, Any]:
    """Parameters of a model with an `EntropyPatcher`, with the entropies of a table (`entropy_table`), or of a language
    model, by its parameters as `jaxlm.load_checkpoint` gives them.

    Raises `ConfigError` for a table of another order or number of buckets, and for parameters of another model.
    """
    patcher = params.get("patcher", {})
    require("entropies" in patcher, "install: the model's patcher has no entropies")
    held = patcher["entropies"]
    shapes = lambda one: {path: leaf.shape for path, leaf in flatten(one if isinstance(one, Mapping) else {"": one})}
    ours, theirs = shapes(held), shapes(entropies)
    if isinstance(held, Mapping):
        odd = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
        require(not odd, f"install: not the parameters of EntropyPatcher.model: {', '.join(odd[:3])} differ")
        taken = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), entropies, held)
        return {**params, "patcher": {**patcher, "entropies": taken}}
    require(
        ours == theirs,
        f"install: expected a table of order {held.shape[0] - 1} and {held.shape[1]} buckets, got "
        + ("a model" if isinstance(entropies, Mapping) else f"order {len(entropies) - 1} and {entropies.shape[-1]}"),
    )
    return {**params, "patcher": {**patcher, "entropies": jnp.asarray(entropies)}}


def _running_max(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """The greatest so far, [B, T, d], of each channel over the bytes of one number."""

    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return a[0] | b[0], jnp.where(b[0], b[1], jnp.maximum(a[1], b[1]))

    anew = jnp.pad(numbers[:, 1:] != numbers[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    flags = jnp.broadcast_to(anew[..., None], x.shape)
    return jax.lax.associative_scan(join, (flags, x), axis=1)[1]
