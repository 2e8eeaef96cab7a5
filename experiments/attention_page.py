"""The tables of docs/reference/attention.md: masks with their pictures, and which implementation serves what, where.

Nothing is run: each call is asked of the library under `jax.eval_shape`, made for the chip in question, and refused in
one line or not.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.page_parts import table
from jaxlm.attention.combine import Heads, PerHead
from jaxlm.attention.data_mask import Anchor, Blocks, Diagonals, Globals, Segments
from jaxlm.attention.mask import (
    Bidirectional,
    BlockBand,
    Causal,
    Chunked,
    Dilated,
    Lambda,
    Prefix,
    Sinks,
    Strided,
    Window,
)
from jaxlm.attention.show import show
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.mask import Mask
from jaxlm.ops.attention import IMPLEMENTATIONS, attention
from jaxlm.ops.landmark import landmark_attention
from jaxlm.ops.scalar_decay import scalar_decay
from jaxlm.ops.selective_scan import selective_scan
from pallas_kernels.block_sparse_attention.call import aimed_at

PARTS = ("chips", "served", "kernels", "pictures")
DRAWN, LENGTH, BLOCK, HEADS, WIDTH = 16, 2048, 128, 4, 64

# Chips by the names that jax gives them.
CHIPS = {
    "CPU": ("cpu", "cpu"),
    "H100, H200": ("gpu", "NVIDIA H200"),
    "other GPUs": ("gpu", "NVIDIA A100-SXM4-80GB"),
    "TPU v3": ("tpu", "TPU v3"),
    "TPU v5e": ("tpu", "TPU v5 lite"),
    "TPU v6e": ("tpu", "TPU v6 lite"),
    "TPU7x": ("tpu", "TPU7x"),
}
DTYPES = ("float32", "bfloat16", "float16")


def masks(length: int) -> dict[str, Mask]:
    """Every registered mask over ``length`` positions, with arguments that let a drawing of it be told from others."""
    n = length // DRAWN
    ids = tuple(1 + (i >= 6 * n) + (i >= 11 * n) for i in range(length))
    lists = tuple((i, i // 2) for i in range(4))
    return {
        "causal": Causal(),
        "bidirectional": Bidirectional(),
        "window": Window(4 * n),
        "dilated": Dilated(4, 2 * n),
        "strided": Strided(3 * n),
        "chunked": Chunked(4 * n),
        "sinks": Sinks(2 * n),
        "prefix": Prefix(5 * n),
        "lambda": Lambda(2 * n, 4 * n),
        "segments": Segments(ids),
        "anchor": Anchor(tuple(max(0, i - 1) for i in ids)),
        "globals": Globals((0, 7 * n)),
        "diagonals": Diagonals((0, 3 * n, 8 * n)),
        "blocks": Blocks(4 * n, lists),
        "block_band": BlockBand(8, 2 * n, 1, 1),
        "and": Causal() & Strided(3 * n),
        "or": Window(3 * n) | Globals((5 * n,)),
        "not": Causal() & ~Window(6 * n),
        "per_head": PerHead((Heads(2, Causal()), Heads(HEADS - 2, Window(4 * n)))),
    }


def block(name: str, root: Path, beside: Path) -> str:
    """One of `PARTS`; no file is read, for all of it is in the library."""
    del root, beside
    choose("part of the attention's page", name, PARTS)
    odd = set(masks(LENGTH)) ^ {name for name in registry.methods("mask") if _ours("mask", name)}
    require(not odd, f"masks without an example, or without a mask: {', '.join(sorted(odd))}")
    return {"chips": chips, "served": served, "kernels": kernels, "pictures": pictures}[name]()


def refusal(call: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> str:
    """Why a call is refused, in the library's words; ``""`` if it is served."""
    try:
        jax.eval_shape(call, *shapes)
    except ConfigError as error:
        return str(error).partition(": ")[2] or str(error)
    except RuntimeError as error:  # served, by a library that this computer lacks
        if "cuDNN is not detected" not in str(error):
            raise
    return ""


class Notes:
    """Reasons as numbered notes under a table."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def cell(self, reason: str) -> str:
        return f"- ({self.known.setdefault(reason, len(self.known) + 1)})" if reason else "yes"

    def under(self, head: list[str], lines: Iterable[list[str]]) -> str:
        shown = table(head, lines)
        return "\n".join([shown, "", *(f"{n}. {reason}" for reason, n in self.known.items())])


def _attends(name: str, mask: Mask, dtype: str, **options: Any) -> str:
    x = jax.ShapeDtypeStruct((1, LENGTH, HEADS, WIDTH), dtype)
    return refusal(lambda q, k, v: attention(q, k, v, mask=mask, implementation=name, **options), x, x, x)


def by_chip(notes: Notes, first: list[str], ask: Callable[[str], str]) -> list[list[str]]:
    """Lines of a table, one for each set of dtypes that fare alike on every chip: ``ask(dtype)`` says why not."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for dtype in DTYPES:
        cells = []
        for platform, chip in CHIPS.values():
            with aimed_at(platform, chip):
                cells.append(notes.cell(ask(dtype)))
        alike.setdefault(tuple(cells), []).append(dtype)
    return [[*first, ", ".join(dtypes), *cells] for cells, dtypes in alike.items()]


def chips() -> str:
    """Implementation and dtype by chip, for a causal call."""
    notes, lines = Notes(), []
    for name in IMPLEMENTATIONS:
        lines += by_chip(notes, [f"`{name}`"], functools.partial(_attends, name, Causal()))
    return notes.under(["implementation", "dtype", *CHIPS], lines)


# A chip and a dtype on which an implementation serves at all.
HOMES = {"mosaic_gpu": "H100, H200", "triton": "other GPUs", "tpu": "TPU v5e", "cudnn": "H100, H200"}


def served() -> str:
    """Mask by implementation, each on a chip of its own."""
    notes = Notes()

    def cell(name: str, call: Callable[[str], str]) -> str:
        with aimed_at(*CHIPS[HOMES.get(name, "CPU")]):
            return notes.cell(call(name))

    lines = []
    for title, mask in masks(LENGTH).items():
        ask = functools.partial(_attends, mask=mask, dtype="bfloat16")
        lines.append([f"`{title}`", *(cell(name, lambda name, ask=ask: ask(name)) for name in IMPLEMENTATIONS)])
    segments = jnp.ones((1, LENGTH), jnp.int32)
    calls: dict[str, dict[str, Any]] = {
        "causal, documents packed (`segment_ids`)": {"segment_ids": segments},
        "causal, soft cap": {"soft_cap": 30.0},
        "causal, log-sum-exp returned": {"return_lse": True},
    }
    for title, options in calls.items():
        ask = functools.partial(_attends, mask=Causal(), dtype="bfloat16", **options)
        lines.append([title, *(cell(name, lambda name, ask=ask: ask(name)) for name in IMPLEMENTATIONS)])
    return notes.under(["mask", *(f"`{name}`" for name in IMPLEMENTATIONS)], lines)


def kernels() -> str:
    """The other operations with kernels: implementation and dtype by chip."""
    notes = Notes()

    def shapes(*of: tuple[int, ...], dtype: str) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(shape, dtype) for shape in of]

    def landmarks(name: str, dtype: str) -> str:
        call = lambda q, k, v: landmark_attention(q, k, v, period=64, implementation=name)
        return refusal(call, *shapes(*[(1, LENGTH, HEADS, WIDTH)] * 3, dtype=dtype))

    def decays(name: str, dtype: str) -> str:
        call = lambda q, k, v, d: scalar_decay(q, k, v, d, implementation=name)
        row = (1, LENGTH, HEADS, WIDTH)
        return refusal(call, *shapes(row, row, row, dtype=dtype), *shapes((1, LENGTH, HEADS), dtype="float32"))

    def scans(name: str, dtype: str) -> str:
        call = lambda u, delta, a, b, c: selective_scan(u, delta, a, b, c, implementation=name)
        row, states = (1, LENGTH, WIDTH), (1, LENGTH, 1, 16)
        first = [*shapes(row, row, dtype=dtype), *shapes((WIDTH, 16), dtype="float32")]
        return refusal(call, *first, *shapes(states, states, dtype=dtype))

    lines = []
    for title, op, ask in (
        ("landmark attention", landmark_attention, landmarks),
        ("scalar decay (Mamba-2, RetNet, ...)", scalar_decay, decays),
        ("selective scan (Mamba)", selective_scan, scans),
    ):
        for name in sys.modules[op.__module__].IMPLEMENTATIONS:  # type: ignore[attr-defined]
            lines += by_chip(notes, [title, f"`{name}`"], functools.partial(ask, name))
    return notes.under(["operation", "implementation", "dtype", *CHIPS], lines)


def pictures() -> str:
    """Every mask over 16 positions: which key (across) each query (down) sees."""
    found = masks(DRAWN)
    drawn = []
    for name, mask in found.items():
        picture = show(mask, DRAWN).splitlines()[:-1]
        drawn.append([f"{name:<{DRAWN}}", *picture])
    rows = []
    for first in range(0, len(drawn), 4):
        rows.append("\n".join("   ".join(parts).rstrip() for parts in zip(*drawn[first : first + 4], strict=True)))
    code = [f"{name:<14} {_written(mask)}" for name, mask in found.items()]
    return "```text\n" + "\n\n".join(rows) + "\n\n" + "\n".join(code) + "\n```"


def _written(mask: Mask) -> str:
    """As code, long tables cut short."""
    text = re.sub(r"[a-z_]+=", "", repr(mask))
    return text if len(text) < 100 else text[:96] + " ..."


def _ours(slot: str, name: str) -> bool:
    return registry.get(slot, name).__module__.startswith("jaxlm.")
