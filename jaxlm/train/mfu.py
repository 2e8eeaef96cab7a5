"""Model FLOP utilisation: what the model needs over what the chips could do (Chowdhery et al., "PaLM", 2022, app. B).

Peaks are dense bfloat16 (no sparsity) per jax device, in FLOP/s, from the vendors' pages: cloud.google.com/tpu/docs for
TPUs (v2 and v4i: jax's own table), the data sheet of each product at nvidia.com for GPUs, which often quote twice as
much, with 2:4 sparsity. TPU v2, v3 and 7x show two jax devices per chip, so theirs is half a chip's figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

# A part of `device_kind`, in lower case; the first that occurs in it counts, so longer names come first.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("tpu v2", 46e12 / 2),
    ("tpu v3", 123e12 / 2),
    ("tpu v4 lite", 138e12),  # v4i
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),  # v5e
    ("tpu v5e", 197e12),
    ("tpu v5", 459e12),  # v5p
    ("tpu v6", 918e12),  # v6e, "TPU v6 lite"
    ("tpu7", 2307e12 / 2),  # "TPU7x"
    ("tpu v7", 2307e12 / 2),
    ("gb300", 2500e12),
    ("gb200", 2500e12),
    ("b300", 2250e12),
    ("b200", 2250e12),
    ("h200", 989e12),
    ("h100 nvl", 835e12),
    ("h100 pcie", 756e12),
    ("h100", 989e12),
    ("h800", 989e12),
    ("a100", 312e12),
    ("a800", 312e12),
    ("l40s", 362e12),
    ("l40", 181e12),
    ("l4", 121e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device with this `jax.Device.device_kind`; None if not known (CPUs, MIG slices)."""
    kind = device_kind.lower()
    if " mig " in kind:
        return None
    return next((peak for part, peak in PEAK_FLOPS if part in kind), None)


def mfu(flops_per_token: float, tokens_per_second: float, devices: Sequence[Any] | None = None) -> float | None:
    """The fraction of the devices' peak that the model's arithmetic amounts to; None if the peak is not known.

    Args:
      flops_per_token: of training: 6 per parameter and what attention adds; recomputation does not count.
      tokens_per_second: over all devices.
      devices: the jax devices of the run; all by default.
    """
    peaks = [peak_flops(device.device_kind) for device in devices or jax.devices()]
    known = [peak for peak in peaks if peak is not None]
    return flops_per_token * tokens_per_second / sum(known) if len(known) == len(peaks) else None
