"""Keeping freed memory, for programs that train on a CPU.

XLA asks the C library for its temporary arrays at every step and gives them back. glibc returns large blocks to the
kernel at once, so each step pays again for page faults and zeroed pages, a visible part of a small training step. A
program that runs the same step a thousand times had better keep them.
"""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tells glibc to serve large blocks from one heap and not to shrink it; does nothing with other C libraries.

    For a whole process, before its threads allocate: call it first.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
