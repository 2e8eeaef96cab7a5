"""Scaled dot-product attention: one function, several implementations tried in order."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import registry
from jaxlm.core.config import to_dict
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.mask import Mask
from jaxlm.core.types import RowBias, TileBias
from jaxlm.ops import row_bias
from jaxlm.ops.block_map import block_map
from pallas_kernels.attention import reference
from pallas_kernels.attention import xla as dense_xla
from pallas_kernels.block_sparse_attention import call
from pallas_kernels.block_sparse_attention import xla as sparse_xla
from pallas_kernels.block_sparse_attention.core import Bias, Options, Request
from pallas_kernels.block_sparse_attention.tuned import lookup

# In the order in which they are tried.
IMPLEMENTATIONS = ("mosaic_gpu", "triton", "tpu", "cudnn", "xla", "reference")

# Up to here XLA's dense schedule is as fast as the one by blocks.
FEW_KEYS = 1024
FEW_QUERIES = 16


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask,
    positions: tuple[jax.Array, jax.Array] | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | jax.Array | None = None,
    bias: TileBias | RowBias | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    sink_logits: jax.Array | None = None,
    ordered: bool | None = None,
    block_sizes: tuple[int, int] | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v over the keys that ``mask`` shows, per segment.

    Args:
      q: [B, Lq, H, K], floating point.
      k, v: [B, Lk, G, K] and [B, Lk, G, V] with G dividing H (grouped-query attention), in q's dtype.
      mask: which key positions a query position sees (`jaxlm.attention.mask`).
      positions: int32 [B or 1, Lq] and [B or 1, Lk]; None counts both from 0, the last query on the last key.
      segment_ids: int32 [B, Lq] and [B, Lk], or one for both; attention stays within a segment; 0 is padding.
      bias: an additive bias, evaluated per tile; one that reads queries and keys is evaluated per block of rows.
      scale: factor of the logits; None means 1 / sqrt(K).
      soft_cap: if positive, ``cap * tanh(logits / cap)`` before the bias.
      sink_logits: float [H], a logit for each head that joins the softmax's denominator and carries no value.
      ordered: a promise that Lq == Lk and positions rise along the row within each segment, so that a mask of order
        alone (causal) is found without reading them; None infers it (true where positions are None and Lq == Lk).
      block_sizes: of a tile, queries by keys; None leaves it to the implementation.
      implementation: one of `IMPLEMENTATIONS`, or None for the first that serves.
      return_lse: also return the log-sum-exp of the logits (and sink), float32 [B, H, Lq]; it is differentiable.

    Returns:
      [B, Lq, H, V] in v's dtype; a query that sees no key gives 0 (and log-sum-exp -inf).

    Raises:
      ConfigError: shapes or dtypes that do not fit; an implementation that is unknown or cannot serve, with its reason.
    """
    _check(q, k, v, sink_logits, segment_ids, positions, block_sizes)
    if implementation is not None:
        choose("attention implementation", implementation, IMPLEMENTATIONS)
    if segment_ids is not None and not isinstance(segment_ids, tuple):
        segment_ids = segment_ids, segment_ids
    if isinstance(bias, TileBias) and not bias.trainable:  # whichever implementation serves
        bias = jax.tree.map(jax.lax.stop_gradient, bias)
    request = _Call(
        mask=mask,
        positions=positions,
        segment_ids=segment_ids,
        bias=bias,
        options=Options(q.shape[-1] ** -0.5 if scale is None else scale, soft_cap or 0.0, call.target().interpret),
        ordered=q.shape[1] == k.shape[1] and positions is None if ordered is None else ordered,
        block_sizes=block_sizes,
        needs_lse=return_lse or sink_logits is not None,
    )
    out, lse = _by_head(request, q, k, v, implementation)
    if sink_logits is not None:
        out, lse = with_sinks(out, lse, sink_logits)
    return (out, lse) if return_lse else out


def with_sinks(out: jax.Array, lse: jax.Array, sink_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention [B, L, H, V] and log-sum-exp [B, H, L] once a logit [H] has joined each head's denominator."""
    sink = sink_logits.astype(jnp.float32)[:, None]
    kept = jax.nn.sigmoid(lse - sink)  # the share that is not the sink's
    return (out * kept.transpose(0, 2, 1)[..., None]).astype(out.dtype), jnp.logaddexp(lse, sink)


def merge(o1: jax.Array, lse1: jax.Array, o2: jax.Array, lse2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over the union of two disjoint key sets, from the results of each.

    Args:
      o1, o2: [B, L, H, K].
      lse1, lse2: float32 [B, H, L]; -inf where that set holds no visible key.

    Returns:
      The merged output and log-sum-exp; 0 and -inf where both sets are empty, with finite gradients.
    """
    top = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(lse1, lse2), -1e30))
    w1, w2 = jnp.exp(lse1 - top), jnp.exp(lse2 - top)
    total = w1 + w2
    safe = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, jnp.log(safe) + top, -jnp.inf)
    a, b = ((w / safe).transpose(0, 2, 1)[..., None] for w in (w1, w2))
    return (a * o1.astype(jnp.float32) + b * o2.astype(jnp.float32)).astype(o1.dtype), lse


def supports(name: str, q: Any, k: Any, v: Any, *, mask: Mask, **options: Any) -> str | None:
    """Why the implementation ``name`` cannot serve a call of `attention` with these arguments; None if it can.

    The arrays may be shapes (`jax.ShapeDtypeStruct`).
    """
    choose("attention implementation", name, IMPLEMENTATIONS)

    def first(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
        attention(q, k, v, mask=mask, implementation=name, **options)

    try:
        jax.eval_shape(first, q, k, v)
    except Unsupported as error:
        return error.reason
    return None


class Unsupported(ConfigError):
    """An implementation asked for by name that cannot serve; ``reason`` is the line of it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"attention implementation {name!r} cannot serve this call: {reason}")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class _Call:
    """The arguments of one call beside its arrays."""

    mask: Mask
    positions: tuple[jax.Array, jax.Array] | None
    segment_ids: tuple[jax.Array, jax.Array] | None
    bias: TileBias | RowBias | None
    options: Options
    ordered: bool
    block_sizes: tuple[int, int] | None
    needs_lse: bool


def _check(
    q: jax.Array, k: jax.Array, v: jax.Array, sinks: Any, segments: Any, positions: Any, sizes: tuple[int, int] | None
) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ConfigError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} are not [B,Lq,H,K], [B,Lk,G,K], [B,Lk,G,V]"
        )
    if q.shape[2] % k.shape[2]:
        raise ConfigError(f"attention: {q.shape[2]} query heads are not divisible by {k.shape[2]} key/value heads")
    if q.shape[3] != k.shape[3]:
        raise ConfigError(f"attention: queries are {q.shape[3]} wide and keys {k.shape[3]}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ConfigError(f"attention: {name} has dtype {x.dtype}; expected a floating-point one")
    if sinks is not None and sinks.shape != (q.shape[2],):
        raise ConfigError(f"attention: sink_logits {sinks.shape} is not [{q.shape[2]}], one for each query head")
    for name, pair in (("segment_ids", segments), ("positions", positions)):
        if pair is None:
            continue
        for x, (side, length) in zip(
            pair if isinstance(pair, tuple) else (pair, pair),
            (("queries", q.shape[1]), ("keys", k.shape[1])),
            strict=True,
        ):
            if x.ndim != 2 or x.shape[1] != length or x.shape[0] not in (1, q.shape[0]):
                raise ConfigError(f"attention: {name} {x.shape} of {side} is not [{q.shape[0]} or 1, {length}]")
    if sizes is not None and (len(sizes) != 2 or min(sizes) < 1):
        raise ConfigError(f"attention: block_sizes must be two positive integers, got {sizes}")


def _by_head(
    request: _Call, q: jax.Array, k: jax.Array, v: jax.Array, implementation: str | None
) -> tuple[jax.Array, jax.Array]:
    """One call for each distinct mask of a mask that differs by head."""
    heads, groups = q.shape[2], k.shape[2]
    if not any(m.heads for m in request.mask.masks()):
        return _serve(request, q, k, v, implementation)
    masks = [_at_head(request.mask, h, heads) for h in range(heads)]
    if request.bias is not None:
        raise ConfigError("attention: a bias together with masks that differ by head is not served")
    kinds: list[tuple[Mask, list[int]]] = []
    for h, mask in enumerate(masks):
        for known, members in kinds:
            if known == mask:
                members.append(h)
                break
        else:
            kinds.append((mask, [h]))
    parts, order = [], []
    for mask, members in kinds:
        at = np.asarray(members)
        keys = at // (heads // groups)
        same = len(set(keys.tolist())) * (heads // groups) == len(members)  # whole groups: keys need no copies
        keys = np.unique(keys) if same else keys
        part = dataclasses.replace(request, mask=mask)
        parts.append(_serve(part, q[:, :, at], k[:, :, keys], v[:, :, keys], implementation))
        order += members
    back = np.argsort(np.asarray(order))
    out = jnp.concatenate([o for o, _ in parts], 2)[:, :, back]
    return out, jnp.concatenate([lse for _, lse in parts], 1)[:, back]


def _at_head(mask: Mask, head: int, heads: int) -> Mask:
    """``mask`` with each part that differs by head replaced by what it is at ``head``."""
    if mask.heads:
        if mask.heads != heads:
            raise ConfigError(f"PerHead.parts: masks of {mask.heads} heads for attention of {heads}")
        return mask.head(head)
    inner = {
        f.name: _at_head(value, head, heads)
        for f in dataclasses.fields(mask)
        if isinstance(value := getattr(mask, f.name), Mask)
    }
    return dataclasses.replace(mask, **inner) if inner else mask


def _serve(
    request: _Call, q: jax.Array, k: jax.Array, v: jax.Array, implementation: str | None
) -> tuple[jax.Array, jax.Array]:
    for name in (implementation,) if implementation else IMPLEMENTATIONS:
        found = _ATTEMPTS[name](request, q, k, v)
        if not isinstance(found, str):
            return found
        if implementation:
            raise Unsupported(name, found)
    raise AssertionError("the reference serves every call")


def _reference(request: _Call, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array] | str:
    return _dense(reference.attention, request, q, k, v)


def _dense(
    run: Callable[..., Any], request: _Call, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    pos_q, pos_k = request.positions or (None, None)
    if pos_q is None or pos_k is None:
        pos_k = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
        pos_q = pos_k[:, -1:] + 1 - q.shape[1] + jnp.arange(q.shape[1], dtype=jnp.int32)
    seg_q, seg_k = request.segment_ids or (None, None)
    arguments: dict[str, Any] = {
        "mask": request.mask.pointwise,
        "pos_q": pos_q,
        "pos_k": pos_k,
        "seg_q": seg_q,
        "seg_k": seg_k,
        "bias": request.bias,
        "scale": request.options.scale,
        "soft_cap": request.options.soft_cap,
    }
    if isinstance(request.bias, RowBias):
        return row_bias.attention(run, q, k, v, **arguments, whole=run is reference.attention)
    skip_future = request.ordered and request.mask.causal and q.shape[1] == k.shape[1]
    return run(q, k, v, **arguments, skip_future=skip_future)


def _xla(request: _Call, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array] | str:
    few = k.shape[1] <= FEW_KEYS or q.shape[1] <= FEW_QUERIES
    if isinstance(request.bias, RowBias) or (request.block_sizes is None and few):
        return _dense(dense_xla.attention, request, q, k, v)
    return _sparse(sparse_xla, request, q, k, v)


def _sparse(
    backend: ModuleType, request: _Call, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array] | str:
    """The call by block lists, or why ``backend`` cannot serve it."""
    if isinstance(request.bias, RowBias):
        return "the bias reads queries and keys, and takes whole rows"
    bias = None if request.bias is None else _bias(request.bias, backend)
    target, lengths = call.target(), (q.shape[1], k.shape[1])
    asked = Request(
        platform=target.platform,
        chip=target.chip,
        dtype=str(q.dtype),
        batch=q.shape[0],
        heads=q.shape[2],
        groups=k.shape[2],
        width=q.shape[3],
        value_width=v.shape[3],
        length_q=lengths[0],
        length_k=lengths[1],
        block_q=0,
        block_k=0,
        grain=request.mask.grain,
        bias=None if bias is None else "tile" if bias.at is None else "trainable" if bias.trainable else "fixed",
        interpret=target.interpret,
    )
    tuned = lookup(
        backend.__name__.rpartition(".")[2],
        asked.chip,
        asked.dtype,
        asked.width,
        registry.name_of("mask", request.mask),
    )
    options = request.options
    if request.block_sizes is None and tuned is not None:
        sizes = tuned["block_q"], tuned["block_k"]
        options = dataclasses.replace(options, tuning=tuple(sorted(tuned.get("settings", {}).items())))
    else:
        sizes = request.block_sizes or backend.blocks(asked)
    asked = dataclasses.replace(asked, block_q=sizes[0], block_k=sizes[1])
    if reason := backend.supports(asked):
        return reason
    by_slot = request.ordered and lengths[0] == lengths[1] and request.mask.by_order
    found = block_map(
        request.mask,
        lengths,
        sizes,
        positions=None if by_slot else request.positions,
        segment_ids=request.segment_ids,
    )
    asked = dataclasses.replace(
        asked,
        traced=not isinstance(found.rows.counts, np.ndarray),
        tiles=int(found.rows.counts.sum(-1).max()) if isinstance(found.rows.counts, np.ndarray) else 0,
        list_width=found.rows.indices.shape[-1],
        column_width=found.columns.indices.shape[-1],
        data_q=found.data[0].shape[2],
        data_k=found.data[1].shape[2],
        own_lists=found.rows.counts.shape[1] > 1,
        tables=any(jnp.ndim(x) > 0 for x in found.numbers),
    )
    return backend.supports(asked) or call.attention(q, k, v, found, bias, options, backend)


def _bias(bias: TileBias, backend: ModuleType) -> Bias:
    """The bias as ``backend`` evaluates it: by its own `tile` where it can gather, else by the numbers of each head."""
    numbers = None if backend is sparse_xla else bias.numbers()
    tile = lambda bias, pos_q, pos_k: bias.tile(pos_q, pos_k)
    if numbers is None:
        return Bias(bias, tile, None, bias.trainable)
    return Bias(numbers, tile, bias.at, bias.trainable)


def _cudnn(request: _Call, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array] | str:
    """NVIDIA's fused attention, where it computes exactly this and needs no mask array."""
    mask, target = request.mask, call.target()
    if target.platform != "gpu" or target.interpret:
        return f"cuDNN is for GPUs, not {target.platform}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN takes bfloat16 and float16, not {q.dtype}"
    if request.needs_lse:
        return "cuDNN's log-sum-exp takes no cotangent"
    if request.bias is not None or request.options.soft_cap or request.segment_ids is not None:
        return "a bias, a soft cap or segments would become a dense array"
    if request.positions is not None and not (request.ordered and mask.by_order):
        return "it counts positions by slot"
    if q.shape[3] % 8 or q.shape[3] > 128 or q.shape[3] != v.shape[3]:
        return f"head width {q.shape[3]} is not a multiple of 8 up to 128, the same for values"
    window = _cudnn_window(mask)
    if window is None or (mask.causal and q.shape[1] != k.shape[1]):
        return "only causal, bidirectional and causal-window masks over equal lengths need no mask array"
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=request.options.scale,
        is_causal=mask.causal,
        local_window_size=window or None,
        implementation="cudnn",
    )
    return out, jnp.zeros((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _cudnn_window(mask: Mask) -> tuple[int, int] | tuple[()] | None:
    """cuDNN's window (left, right) for ``mask``: () for none at all, None if there is no such form."""
    data = registry.name_of("mask", mask), to_dict(mask)
    if data in (("causal", {}), ("bidirectional", {})):
        return ()
    if data[0] == "window" and mask.causal and isinstance(data[1]["size"], int):
        return data[1]["size"] - 1, 0
    return None


def _kernel(name: str, request: _Call, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array] | str:
    """A Pallas kernel; its module is imported only where it could run."""
    target = call.target()
    if target.platform != PLATFORMS[name] and not target.interpret:
        return f"it is for {PLATFORMS[name]} and this is {target.platform}"
    if q.shape[1] <= FEW_QUERIES and not target.interpret:
        return f"{q.shape[1]} queries would leave most of its tile empty; more than {FEW_QUERIES} are worth it"
    return _sparse(importlib.import_module(f"pallas_kernels.block_sparse_attention.{name}"), request, q, k, v)


PLATFORMS = {"mosaic_gpu": "gpu", "triton": "gpu", "tpu": "tpu"}
_ATTEMPTS: dict[str, Callable[..., tuple[jax.Array, jax.Array] | str]] = {
    **{name: functools.partial(_kernel, name) for name in PLATFORMS},
    "cudnn": _cudnn,
    "xla": _xla,
    "reference": _reference,
}
