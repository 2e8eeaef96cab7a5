"""What is compiled: attention under the masks of the benchmark, forward and backward, traced masks among them."""

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
BLOCKS_CHOSEN = 16  # of 128 keys, by each query block of each head


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile.

    Attributes:
      kernel: the operation and its implementation, ``"attention/tpu"``.
      chip: of the platform.
      pattern: of `PATTERNS` or `LANDMARK`.
      length, width: of the sequence and of a head.
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


def attention_cases(
    kernel: str,
    chips: Iterable[str],
    lengths: Iterable[int] = (4096, 16384, 65536),
    widths: Iterable[int] = (64, 128),
    patterns: Iterable[str] = tuple(PATTERNS),
    dtypes: Iterable[str] = ("bfloat16",),
) -> list[Case]:
    """Every mask, length, head width, direction and dtype for each chip."""
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


def gradient(forward: Callable[..., Any]) -> Callable[..., Any]:
    """d sum(forward) / d (q, k, v)."""
    return jax.grad(lambda *args: forward(*args).astype(jnp.float32).sum(), (0, 1, 2))


def lowered_for(platform: str, chip: str, cores: int | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which kernels are lowered for a chip though none is there."""
    fields: dict[str, Any] = {"device_kind": chip, "num_cores": cores, "platform": platform}
    known = jax.sharding.AbstractDevice.__dataclass_fields__  # `platform` since 0.11
    device = jax.sharding.AbstractDevice(**{name: x for name, x in fields.items() if name in known})
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
