"""LEGO: a chain of signed assignments and a question about one variable: ``a = -1 , b = - a , c = + b ? c`` -> ``+1``.

The task is of Zhang et al. 2022, "Unveiling Transformers with LEGO: a synthetic reasoning task"; the form is that of
McGill-NLP/length-generalization (make_lego_dataset.py): distinct letters in random order, the question uniform over the
later half of the chain, clauses in order of the chain or (``permute``, their ``_perm`` split) shuffled.
Length: the variables. Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
import string
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, encoded_length


@dataclasses.dataclass(frozen=True)
class Lego(Task):
    """``a = -1 , b = - a ? b`` -> ``+1``; ``variables`` letters exist, so no chain is longer."""

    variables: int = 26
    permute: bool = False

    paper: ClassVar[str] = "Zhang et al. 2022, Unveiling Transformers with LEGO: a synthetic reasoning task"

    def check(self) -> None:
        super().check()
        longest = max(self.train_lengths[1], self.eval_lengths[1])
        require(
            longest <= self.variables <= 52,
            f"Lego.variables: allowed {longest} (the longest chain) to 52 (a-z, A-Z), got {self.variables}",
        )

    @property
    def words(self) -> tuple[str, ...]:
        return (*string.ascii_letters[: self.variables], "=", "+", "-", "+1", "-1", ",", "?")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        names = [string.ascii_letters[i] for i in rng.permutation(self.variables)[:length]]
        values = rng.integers(2, size=length).tolist()
        # The later half by their rule, ceil(n / 2) .. n - 1; a lone variable is asked about itself.
        query = int(rng.integers(min((length + 1) // 2, length - 1), length))
        order = rng.permutation(length).tolist() if self.permute else list(range(length))
        return self._spell(names, values, query, order)

    def tokens_bound(self, length: int) -> int:
        names = list(string.ascii_letters[:length])
        return encoded_length(*self._spell(names, [0] * length, 0, list(range(length))))

    def _spell(self, names: list[str], values: list[int], query: int, order: list[int]) -> tuple[list[str], list[str]]:
        signs = ("-1", "+1")
        clauses = [[names[0], "=", signs[values[0]]]]
        for i in range(1, len(names)):
            clauses.append([names[i], "=", "+" if values[i] == values[i - 1] else "-", names[i - 1]])
        prompt = " , ".join(" ".join(clauses[i]) for i in order).split()
        return [*prompt, "?", names[query]], [signs[values[query]]]
