"""No position encoding (NoPE): the causal mask alone tells a decoder where it is.

Formula: none. Learned: nothing. Claimed: extrapolates better than explicit encodings on many reasoning tasks
(Kazemnejad et al. 2023; Haviv et al. 2022 show that positions are recoverable). Shown by:
experiments.length_generalization.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxlm.core.types import PositionEncoding


@dataclasses.dataclass(frozen=True)
class NoPosition(PositionEncoding):
    """Nothing at all."""

    paper: ClassVar[str] = "Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization"

    @property
    def says_where(self) -> bool:
        return False
