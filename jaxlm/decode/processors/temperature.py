"""Temperature: logits / T, which sharpens the distribution below T = 1 and flattens it above.

Paper: Ackley et al. 1985 (the softmax of energies at a temperature).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True)
class Temperature(Processor):
    """Divides all logits by ``temperature``."""

    paper: ClassVar[str] = "Ackley et al. 1985, A Learning Algorithm for Boltzmann Machines"

    temperature: float = 1.0

    def check(self) -> None:
        require(0 < self.temperature < math.inf, f"temperature: expected a positive number, got {self.temperature}")

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        return logits_BV / self.temperature, state
