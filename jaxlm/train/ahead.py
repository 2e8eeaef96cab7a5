"""How far the host may run ahead of the devices."""

from __future__ import annotations

import jax


def ahead() -> int:
    """Programs that are dispatched before an earlier one is waited for: so many keep a device busy, and clock and
    signals honest. None where a CPU plays several devices: these share their threads, and the collectives of two
    programs can each hold threads that the other's wait for, which XLA ends by aborting the process."""
    return 0 if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else 2
