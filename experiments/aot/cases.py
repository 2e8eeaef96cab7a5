"""What is compiled: attention under the masks of the benchmark, and recurrences, forward and backward, traced masks and
documents among them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.attention import patterns
from jaxlm.attention.mask import Causal, Lambda
from jaxlm.ops.attention import attention
from jaxlm.ops.landmark import landmark_attention
from jaxlm.ops.scalar_decay import scalar_decay
from jaxlm.ops.segments import rows_of
from jaxlm.ops.selective_scan import selective_scan

WIDTH = 2048  # of the model whose heads these are
REPEATS = 4  # query heads per key head

# By name: (length, segments [1, L], list entries [1, H, blocks, n]) -> keyword arguments of attention.
PATTERNS: dict[str, Callable[[int, jax.Array, jax.Array], dict[str, Any]]] = {
    "causal": lambda length, ids, lists: {"mask": Causal()},
    "window 1024 + 4": lambda length, ids, lists: {"mask": Lambda(1024, 4)},
    "documents (traced)": lambda length, ids, lists: {"mask": Causal(), "segment_ids": ids},
    "strided": lambda length, ids, lists: {"mask": patterns.block_strided(512, 128, 8)},
    "BigBird": lambda length, ids, lists: {"mask": patterns.bigbird(length, block=128)},
    "blocks by head (traced)": lambda length, ids, lists: {"mask": patterns.block_sparse(lists, block=128)},
}
LANDMARK = ("landmark", "landmark, documents (traced)")
SSD = ("Mamba-2", "Mamba-2, documents (traced)", "retention")
SELECTIVE_SCAN = ("Mamba", "Mamba, documents (traced)")
BLOCKS_CHOSEN = 16  # of 128 keys, by each query block of each head


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile.

    Attributes:
      kernel: the operation and its implementation, ``"attention/tpu"``.
      chip: of the platform.
      pattern: of `PATTERNS`, `LANDMARK`, `SSD` or `SELECTIVE_SCAN`.
      length, width: of the sequence and of a head, of its values (SSD), or of a channel's state (selective scan).
      direction: ``"forward"`` or ``"gradient"`` (which contains the forward pass).
      dtype: of q, k and v.
    """

    kernel: str
    chip: str
    pattern: str
    length: int
    width: int
    direction: str
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        parts = self.kernel, self.chip, self.pattern, self.length, self.width, self.direction
        return " ".join(map(str, parts if self.dtype == "bfloat16" else (*parts, self.dtype)))

    @property
    def implementation(self) -> str:
        return self.kernel.partition("/")[2]


def cases_of(
    kernel: str,
    chips: Iterable[str],
    lengths: Iterable[int] = (4096, 16384, 65536),
    widths: Iterable[int] = (64, 128),
    patterns: Iterable[str] = tuple(PATTERNS),
    dtypes: Iterable[str] = ("bfloat16",),
) -> list[Case]:
    """Every pattern, length, head width, direction and dtype for each chip."""
    return [
        Case(kernel, chip, pattern, length, width, direction, dtype)
        for chip in chips
        for dtype in dtypes
        for pattern in patterns
        for length in lengths
        for width in widths
        for direction in ("forward", "gradient")
    ]


def program(case: Case) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """The function of a case, and the shapes of its arguments."""
    return _PROGRAMS[case.kernel.partition("/")[0]](case)


def _attention(case: Case) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    heads, length = WIDTH // case.width, case.length
    q = jax.ShapeDtypeStruct((1, length, heads, case.width), case.dtype)
    k = jax.ShapeDtypeStruct((1, length, heads // REPEATS, case.width), case.dtype)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lists = jax.ShapeDtypeStruct((1, heads, length // 128, BLOCKS_CHOSEN), jnp.int32)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, lists: jax.Array) -> Any:
        if case.pattern in LANDMARK:
            segments = (ids, ids) if "documents" in case.pattern else None
            return landmark_attention(q, k, v, period=64, segment_ids=segments, implementation=case.implementation)
        options = PATTERNS[case.pattern](length, ids, lists)
        return attention(q, k, v, implementation=case.implementation, **options)

    return (forward if case.direction == "forward" else gradient(forward)), [q, k, k, ids, lists]


def _ssd(case: Case) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """Mamba-2: keys of 128, one group of them for the 2 * WIDTH / width heads; retention: each head has its own."""
    mamba = case.pattern.startswith("Mamba-2")
    heads = (2 if mamba else 1) * WIDTH // case.width
    keys = (1, 128 if case.dtype == "bfloat16" else 64) if mamba else (heads, case.width)
    shape = lambda *rest, dtype=case.dtype: jax.ShapeDtypeStruct((1, case.length, *rest), dtype)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, ids: jax.Array) -> jax.Array:
        rows = rows_of(ids) if "documents" in case.pattern else None
        return scalar_decay(q, k, v, decay, rows=rows, implementation=case.implementation)[0]

    shapes = [shape(*keys), shape(*keys), shape(heads, case.width), shape(heads, dtype="float32"), shape(dtype="int32")]
    return (forward if case.direction == "forward" else gradient(forward, 4)), shapes


def _selective_scan(case: Case) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """Mamba: 2 * WIDTH channels in one group."""
    channels = 2 * WIDTH
    shape = lambda *rest, dtype=case.dtype: jax.ShapeDtypeStruct((1, case.length, *rest), dtype)
    a = jax.ShapeDtypeStruct((channels, case.width), jnp.float32)

    def forward(u: jax.Array, delta: jax.Array, a: Any, b: jax.Array, c: jax.Array, ids: jax.Array) -> jax.Array:
        rows = rows_of(ids) if "documents" in case.pattern else None
        return selective_scan(u, delta, a, b, c, rows=rows, implementation=case.implementation)[0]

    shapes = [shape(channels), shape(channels, dtype="float32"), a, *[shape(1, case.width)] * 2, shape(dtype="int32")]
    return (forward if case.direction == "forward" else gradient(forward, 5)), shapes


_PROGRAMS = {"attention": _attention, "landmark": _attention, "ssd": _ssd, "selective_scan": _selective_scan}


def gradient(forward: Callable[..., Any], arguments: int = 3) -> Callable[..., Any]:
    """d sum(forward) / d its first arguments, (q, k, v) of attention."""
    return jax.grad(lambda *args: forward(*args).astype(jnp.float32).sum(), tuple(range(arguments)))


def lowered_for(platform: str, chip: str, cores: int | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which kernels are lowered for a chip though none is there."""
    fields: dict[str, Any] = {"device_kind": chip, "num_cores": cores, "platform": platform}
    known = jax.sharding.AbstractDevice.__dataclass_fields__  # `platform` since 0.11
    device = jax.sharding.AbstractDevice(**{name: x for name, x in fields.items() if name in known})
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
