"""Attention under many masks, forward and backward: ours beside dense JAX, `jax.nn` and, on a GPU, PyTorch.

On a GPU: bfloat16, lengths 4k to 64k, head widths 64 and 128, every implementation of ours that serves; FlexAttention
(compiled, with its BlockMask) and SDPA where torch sees the GPU. TFLOP/s count visible scores only (4 d each forward,
10 d backward), so that computing hidden ones earns nothing; beside them the share of the rate that a large matmul
reaches in the same run. On a CPU: float32, 4 heads of 64, a window of 512 with 4 sinks, beside dense and query-chunked
JAX.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.race import Contestant, race
from experiments.race import table as race_table
from jaxlm.attention import patterns
from jaxlm.attention.mask import Causal, Lambda, Segments, dense
from jaxlm.core.mask import Mask
from jaxlm.ops.attention import attention, supports
from jaxlm.ops.block_map import block_map
from jaxlm.ops.landmark import landmark_attention

CPU = {"lengths": (8192, 16384), "widths": (64,), "heads": 4, "dtype": "float32", "longest": 131_072}
GPU = {"lengths": (4096, 16384, 65536), "widths": (64, 128), "tokens": 65536, "model_width": 2048, "dtype": "bfloat16"}
DENSE_SCORES = 2**31  # above so many scores dense attention is left out, or on a CPU given fewer heads
CHUNK = 256  # queries of query-chunked dense attention
LANDMARK_PERIOD = 64
LEAST_SECONDS = 0.5  # of a turn on a CPU


def masks(length: int) -> dict[str, Mask]:
    """The masks by name. Documents are of four lengths, in a random order that is fixed."""
    rng = np.random.default_rng(0)
    sizes = [length // 16, length // 8, length // 4, length - length // 16 - length // 8 - length // 4]
    ids = np.repeat(np.arange(1, 5, dtype=np.int32), rng.permutation(sizes))
    columns, offsets = np.sort(rng.permutation(length)[:64]), np.arange(0, length, length // 16)
    blocks = np.unique(columns // 64)
    crossed = np.arange(length // 64)[:, None] - offsets // 64
    lists = np.concatenate(
        [np.where(crossed >= 0, crossed, -1), np.broadcast_to(blocks, (length // 64, len(blocks)))], 1
    )
    return {
        "causal": Causal(),
        "window 1024 + 4": Lambda(1024, 4),
        "documents": Causal() & Segments(ids),
        "strided": patterns.block_strided(512, 128, 8),
        "BigBird": patterns.bigbird(length, block=128),
        "vertical-slash": Causal() & patterns.Blocks(64, lists.astype(np.int32)),
    }


def visible_pairs(mask: Mask, length: int, block: int = 128) -> int:
    """How many pairs the mask shows, counted through its block map."""
    found = block_map(mask, (length, length), (block, block))
    counts, rows = found.rows.counts[0, 0], np.arange(block)
    whole = partial = 0
    for i in range(len(counts)):
        live = slice(0, int(counts[i]))
        kinds, cols = found.rows.kinds[0, 0, i, live], found.rows.indices[0, 0, i, live]
        whole += int((kinds & 1).sum())
        kinds, cols = kinds[kinds & 1 == 0], cols[kinds & 1 == 0]
        pos_q, pos_k = (i * block + rows)[None, :, None], (cols[:, None] * block + rows)[:, None]
        data_q = tuple(x[None, i * block : (i + 1) * block, None] for x in found.data[0][0, 0])
        data_k = tuple(x.reshape(-1, block)[cols][:, None] for x in found.data[1][0, 0])
        seen = found.see((), pos_q, pos_k, data_q, data_k, kinds[:, None, None])
        partial += int(np.broadcast_to(np.asarray(seen), (len(cols), block, block)).sum())
    return whole * block * block + partial


@dataclasses.dataclass
class Compiled:
    """A jitted function of q, k, v, compiled ahead."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[jax.Array, ...]
    part: float = 1.0  # of the work of the others, where it is too slow to do it all; its figures are divided by this

    def __post_init__(self) -> None:
        self._compiled = jax.jit(self.function).lower(*self.arguments).compile()

    def run(self, steps: int) -> list[Any]:
        return [jax.block_until_ready(self._compiled(*self.arguments)) for _ in range(steps)][-1:]

    def memory(self) -> float | None:
        found = self._compiled.memory_analysis()
        return None if found is None else found.temp_size_in_bytes


def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """sum(out * weights) and its derivatives by q, k, v, the weights being the fourth argument.

    The value is asked for, as every training step does: derivatives alone would let the compiler leave out the last
    product of a forward pass that is written in plain JAX.
    """
    return lambda q, k, v, w: jax.value_and_grad(functools.partial(_loss, function, w), (0, 1, 2))(q, k, v)


def derivatives(function: Callable[..., Any]) -> Callable[..., Any]:
    """`gradient` without the value: what the compiler then leaves out."""
    return lambda q, k, v, w: jax.grad(functools.partial(_loss, function, w), (0, 1, 2))(q, k, v)


def _loss(function: Callable[..., Any], w: jax.Array, *x: jax.Array) -> jax.Array:
    return (function(*x) * w).astype(jnp.float32).sum()


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, start: Any = 0) -> jax.Array:
    """What one writes down first: scores, mask, softmax, values; of queries from ``start`` on."""
    return _dense("blhk,bthk->bhlt", "bhlt,bthk->blhk", q, k, v, mask, start)


def heads_first_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, start: Any = 0) -> jax.Array:
    """The same with all arrays turned beforehand, in which order XLA's gradient takes two thirds of the time."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return _dense("bhlk,bhtk->bhlt", "bhlt,bhtk->bhlk", q, k, v, mask, start, 2).swapaxes(1, 2)


def _dense(
    qk: str, weighted: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, start: Any, axis: int = 1
) -> jax.Array:
    at_q, at_k = start + jnp.arange(q.shape[axis])[None], jnp.arange(k.shape[axis])[None]
    scores = jnp.einsum(qk, q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(dense(mask, at_q, at_k), scores, -1e30), -1)
    return jnp.einsum(weighted, weights.astype(v.dtype), v)


def chunked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """The same for `CHUNK` queries at a time, recomputed in the backward pass: memory O(L)."""
    pieces = q.reshape(q.shape[0], -1, CHUNK, *q.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(piece: tuple[jax.Array, jax.Array]) -> jax.Array:
        return heads_first_attention(piece[1], k, v, mask, piece[0])

    out = jax.lax.map(one, (jnp.arange(len(pieces)) * CHUNK, pieces))
    return out.swapaxes(0, 1).reshape(q.shape)


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """A race for each mask, length, head width and direction."""
    results = _gpu(rounds, steps) if jax.default_backend() == "gpu" else _cpu(rounds, steps)
    return {**results, "device": jax.devices()[0].device_kind, "rounds": rounds, "least_steps_per_round": steps}


def _draw(length: int, heads: int, width: int, dtype: str) -> tuple[jax.Array, ...]:
    return tuple(
        jax.random.normal(key, (1, length, heads, width), dtype) for key in jax.random.split(jax.random.key(0), 4)
    )


def _cpu(rounds: int, steps: int) -> dict[str, Any]:
    races: dict[str, Any] = {}
    heads, width = CPU["heads"], CPU["widths"][0]
    for length in CPU["lengths"]:
        mask = Lambda(512, 4)
        arrays = _draw(length, heads, width, CPU["dtype"])
        pairs = heads * visible_pairs(mask, length)
        few = max(1, min(heads, DENSE_SCORES // 8 // length**2))  # heads that dense attention is given
        directions = [("forward", lambda f: f, 3, 4), ("gradient", gradient, 4, 14)]
        if length == CPU["lengths"][0]:
            directions.append(("derivatives alone", derivatives, 4, 14))
        for direction, wrap, n, flops in directions:
            ours = functools.partial(attention, mask=mask)
            contestants: list[Contestant] = [
                Compiled("jaxlm", wrap(ours), arrays[:n]),
                Compiled("chunked dense", wrap(functools.partial(chunked_attention, mask=mask)), arrays[:n]),
            ]
            contestants += [
                Compiled(
                    name, wrap(functools.partial(f, mask=mask)), tuple(x[:, :, :few] for x in arrays[:n]), few / heads
                )
                for name, f in (("dense", dense_attention), ("dense, heads first", heads_first_attention))
            ]
            races[f"T {length} {direction}"] = _raced(contestants, rounds, steps, flops * width * pairs)
    return {"races": races, "mask": "window 512 + 4 sinks", **CPU, "long": _long(mask)}


def _long(mask: Mask) -> dict[str, Any]:
    """One forward and backward pass of the longest length, and what memory the process peaked at."""
    import resource
    import time

    arrays = _draw(CPU["longest"], CPU["heads"], CPU["widths"][0], CPU["dtype"])
    step = Compiled("jaxlm", gradient(functools.partial(attention, mask=mask)), arrays)
    began = time.perf_counter()
    step.run(1)
    return {
        "length": CPU["longest"],
        "seconds": time.perf_counter() - began,
        "temporary_bytes": step.memory(),
        "arrays_bytes": 7 * arrays[0].nbytes,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _gpu(rounds: int, steps: int) -> dict[str, Any]:
    races: dict[str, Any] = {}
    side = 8192
    left, right = (jnp.ones((side, side), jnp.bfloat16) for _ in range(2))
    matmul = Compiled("matmul", lambda a, b: a @ b, (left, right))
    rate = 2 * side**3 / race([matmul], rounds, 10)[0]["matmul"]["wall_seconds"] * 10
    for length, width in ((n, w) for w in GPU["widths"] for n in GPU["lengths"]):
        heads = GPU["model_width"] // width * GPU["tokens"] // length // 4
        arrays = _draw(length, max(heads, 1), width, GPU["dtype"])
        for name, mask in masks(length).items():
            pairs = arrays[0].shape[2] * visible_pairs(mask, length)
            for direction, wrap, n, flops in (("forward", lambda f: f, 3, 4), ("gradient", gradient, 4, 14)):
                contestants = _ours(mask, wrap, arrays[:n]) + _peers(name, mask, wrap, arrays[:n], direction)
                title = f"{name}, T {length} d {width} {direction}"
                races[title] = _raced(contestants, rounds, steps, flops * width * pairs, rate)
        period = functools.partial(landmark_attention, period=LANDMARK_PERIOD)
        pairs = arrays[0].shape[2] * visible_pairs(Causal(), length)
        for direction, wrap, n, flops in (("forward", lambda f: f, 3, 4), ("gradient", gradient, 4, 14)):
            contestants = [
                Compiled("jaxlm landmark", wrap(period), arrays[:n]),
                Compiled("jaxlm causal", wrap(functools.partial(attention, mask=Causal())), arrays[:n]),
            ]
            title = f"landmark, T {length} d {width} {direction}"
            races[title] = _raced(contestants, rounds, steps, flops * width * pairs, rate)
    return {"races": races, "matmul_tflops": rate / 1e12, **GPU}


def _ours(mask: Mask, wrap: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> list[Contestant]:
    names = [n for n in ("mosaic_gpu", "triton", "xla") if supports(n, *arrays[:3], mask=mask) is None]
    ours = (functools.partial(attention, mask=mask, implementation=name) for name in names)
    return [Compiled(f"jaxlm {name}", wrap(f), arrays) for name, f in zip(names, ours, strict=True)]


def _peers(
    name: str, mask: Mask, wrap: Callable[..., Any], arrays: tuple[jax.Array, ...], direction: str
) -> list[Contestant]:
    from experiments.peers import torch_attention

    length, heads = arrays[0].shape[1:3]
    small = heads * length**2 <= DENSE_SCORES
    found: list[Contestant] = []
    if small:
        found.append(Compiled("dense", wrap(functools.partial(dense_attention, mask=mask)), arrays))
    if name == "causal":
        for backend in ("cudnn", "xla") if small else ("cudnn",):
            fused = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=backend)
            found.append(Compiled(f"jax.nn {backend}", wrap(fused), arrays))
    elif small:
        seen = dense(mask, jnp.arange(length)[None], jnp.arange(length)[None])
        fused = functools.partial(jax.nn.dot_product_attention, mask=seen, implementation="cudnn")
        found.append(Compiled("jax.nn cudnn + mask", wrap(fused), arrays))
    return found + torch_attention.contestants(name, mask, arrays[0].shape, direction)


def _raced(
    contestants: Sequence[Contestant], rounds: int, steps: int, flops: float, rate: float | None = None
) -> dict[str, Any]:
    entries, _ = race(contestants, rounds, steps, LEAST_SECONDS if rate is None else 0.0)
    base = contestants[0].name
    for contestant in contestants:
        entry, part = entries[contestant.name], getattr(contestant, "part", 1.0)
        for key in ("wall_seconds", "cpu_seconds", "temporary_bytes"):
            if entry[key] is not None:
                entry[key] /= part
        entry["part_of_the_heads"] = part
        entry["tflops"] = flops / entry["wall_seconds"] / 1e12
        entry["share_of_matmul"] = None if rate is None else flops / entry["wall_seconds"] / rate
    for entry in entries.values():
        for key in ("wall", "cpu"):
            entry[f"ours_over_this_{key}"] = entries[base][f"{key}_seconds"] / entry[f"{key}_seconds"]
        if entry["temporary_bytes"] is not None:
            entry["memory_over_ours"] = entry["temporary_bytes"] / max(entries[base]["temporary_bytes"], 1)
    return entries


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{results['device']}; TFLOP/s of visible scores"]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "ms": lambda e: f"{1e3 * e['wall_seconds']:.2f}",
        "CPU ms": lambda e: f"{1e3 * e['cpu_seconds']:.1f}",
        "TFLOP/s": lambda e: f"{e['tflops']:.4g}",
        "this/ours wall": lambda e: f"{1 / e['ours_over_this_wall']:.2f}",
        "this/ours CPU": lambda e: f"{1 / e['ours_over_this_cpu']:.2f}",
        "memory MiB": lambda e: "-" if e["temporary_bytes"] is None else f"{e['temporary_bytes'] / 2**20:.1f}",
        "this/ours memory": lambda e: f"{e['memory_over_ours']:.1f}" if "memory_over_ours" in e else "-",
    }
    if "matmul_tflops" in results:
        lines[0] += f"; a large matmul reaches {results['matmul_tflops']:.0f}"
        columns["of matmul"] = lambda e: f"{100 * e['share_of_matmul']:.0f}%"
    for title, entries in results["races"].items():
        lines += race_table(title, entries, columns)
    if "long" in results:
        long = results["long"]
        lines.append(
            f"forward and backward at T {long['length']}: {long['seconds']:.1f} s, temporaries "
            f"{long['temporary_bytes'] / 2**20:.0f} MiB, inputs and outputs {long['arrays_bytes'] / 2**20:.0f} MiB"
        )
    return "\n".join(lines) + "\n"
