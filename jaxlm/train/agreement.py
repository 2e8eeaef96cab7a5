"""What several processes agree on, through `jax.experimental.multihost_utils`; one process alone never communicates.

Every process makes these calls, in the same order. Errors on one process only (a full disk, a file that is gone) are
turned into a value all of them see, so that none waits for ever in a collective the others never enter.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def everywhere(flag: bool) -> bool:
    """Whether ``flag`` holds on every process."""
    return flag if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` holds on some process."""
    return not everywhere(not flag)


def from_first(number: int) -> int:
    """The ``number`` (32 bits) that the first process holds."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))
