"""Processes of tests that see another number of devices, and compile as this one does."""

from __future__ import annotations

import os
import re

COUNT = "--xla_force_host_platform_device_count="


def flags_for(devices: int) -> str:
    """``XLA_FLAGS`` of this process, for so many devices."""
    others = re.sub(rf"{COUNT}\d+", "", os.environ.get("XLA_FLAGS", ""))
    return f"{others} {COUNT}{devices}".strip()
