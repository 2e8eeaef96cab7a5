"""Measures the tile sizes of block-sparse attention on the hardware at hand and writes the tuning table.

    python -m experiments.tune_kernels --implementation=xla --length=8192 --widths=64
    python -m experiments.tune_kernels --implementation=mosaic_gpu --dtypes=bfloat16 --widths=64,128

For each dtype, head width and pattern every candidate tile runs forward and backward, in turns; the one with the least
median is written to pallas_kernels/block_sparse_attention/tuning/<implementation>.json (other entries stay), which
`jaxlm.ops.attention` reads at call time. Candidates that a kernel refuses or cannot compile are left out and named.
"""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Any

import jax
from absl import flags

from experiments import command, provenance
from experiments.race import race
from experiments.suites.attention import Compiled, gradient
from jaxlm.attention.mask import Causal, Lambda, Window
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.mask import Mask
from jaxlm.ops.attention import IMPLEMENTATIONS, attention, supports
from pallas_kernels.block_sparse_attention import tuned

PATTERNS: dict[str, Mask] = {"causal": Causal(), "window": Window(1024), "lambda": Lambda(1024, 4)}
TUNABLE = tuple(name for name in IMPLEMENTATIONS if name not in ("cudnn", "reference"))
DTYPE_NAMES = ("float32", "bfloat16", "float16")

FLAGS = flags.FlagValues()
IMPLEMENTATION = flags.DEFINE_string("implementation", "xla", f"whose table: {', '.join(TUNABLE)}", flag_values=FLAGS)
BLOCKS = flags.DEFINE_list(
    "blocks", ["64", "128", "256"], "candidate block lengths of queries and of keys", flag_values=FLAGS
)
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "dtypes of q, k and v", flag_values=FLAGS)
WIDTHS = flags.DEFINE_list("widths", ["64"], "head widths", flag_values=FLAGS)
SEEN = flags.DEFINE_list("patterns", list(PATTERNS), f"masks: {', '.join(PATTERNS)}", flag_values=FLAGS)
LENGTH = flags.DEFINE_integer("length", 8192, "tokens of the row", lower_bound=128, flag_values=FLAGS)
HEADS = flags.DEFINE_integer("heads", 4, "heads", lower_bound=1, flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds; each candidate runs once a round", lower_bound=1, flag_values=FLAGS)


def main() -> int:
    name = choose("implementation", IMPLEMENTATION.value, TUNABLE)
    masks = {p: PATTERNS[choose("pattern", p, PATTERNS)] for p in SEEN.value}
    for value in (*BLOCKS.value, *WIDTHS.value):
        if not value.isdigit() or not int(value):
            raise ConfigError(f"--blocks and --widths take positive integers, got {value!r}")
    for dtype in DTYPES.value:
        choose("dtype", dtype, DTYPE_NAMES)
    sizes = [(int(rows), int(cols)) for rows, cols in itertools.product(BLOCKS.value, repeat=2)]
    record = provenance.collect()
    found = [
        best(name, mask, sizes, dtype, int(width))
        for (_, mask), dtype, width in itertools.product(masks.items(), DTYPES.value, WIDTHS.value)
    ]
    print(f"wrote {tuned.write(name, found, record)}")
    return 0


def best(name: str, mask: Mask, sizes: list[tuple[int, int]], dtype: str, width: int) -> dict[str, Any]:
    """The table's entry of one pattern, dtype and width. Raises `ConfigError` if no candidate serves."""
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = tuple(jax.random.normal(key, (1, LENGTH.value, HEADS.value, width), dtype) for key in keys)
    contestants, by_name = [], {}
    left_out: dict[str, list[str]] = {}  # candidates by the reason
    for size in sizes:
        call = functools.partial(attention, mask=mask, implementation=name, block_sizes=size)
        label = f"{size[0]} x {size[1]}"
        reason = supports(name, *arrays[:3], mask=mask, block_sizes=size)
        if reason is None:
            try:
                contestants.append(Compiled(label, gradient(call), arrays))
                by_name[label] = size
                continue
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0][:120]
        left_out.setdefault(reason, []).append(label)
    pattern = registry.name_of("mask", mask)
    if not contestants:
        raise ConfigError(
            f"no candidate tile serves {pattern}, {dtype}, width {width} with {name!r}: {'; '.join(left_out)}"
        )
    for reason, labels in left_out.items():
        print(f"left out: {', '.join(labels)}: {reason}", file=sys.stderr)
    entries, _ = race(contestants, ROUNDS.value, 1)
    key = "cpu_seconds" if jax.default_backend() == "cpu" else "wall_seconds"
    label = min(entries, key=lambda n: entries[n][key])
    print(
        f"{pattern} {dtype} width {width}: " + ", ".join(f"{n} {1e3 * e[key]:.1f}" for n, e in entries.items()) + " ms"
    )
    return {
        "chip": jax.devices()[0].device_kind,
        "dtype": dtype,
        "width": width,
        "pattern": pattern,
        "block_q": by_name[label][0],
        "block_k": by_name[label][1],
        "settings": {},
        "milliseconds": {n: round(1e3 * e[key], 3) for n, e in entries.items()},
        "measured": key,
        "length": LENGTH.value,
        "heads": HEADS.value,
    }


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__, compile_cache=False))
