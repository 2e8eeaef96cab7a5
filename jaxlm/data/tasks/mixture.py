"""Several tasks in one: each training example is of one of them, drawn by weight; evaluation is of the first alone.

So an auxiliary task can hint at how the main one is done (Awasthi and Gupta 2023, Improving Length-Generalization in
Transformers via Task Hinting). A weight of 0 keeps a task's words in the vocabulary, and its examples out: the baseline
is then the same model. Seed, size and lengths are those of the mixture; those of its parts are not read.

Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxlm.core.config import Spec, require, slot
from jaxlm.data.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Part(Spec):
    """A task, and its share of the training examples relative to the others'."""

    task: Any = slot("task", "sort_multi")
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Mixture(Task):
    """Tasks by weight."""

    paper: ClassVar[str] = "Awasthi and Gupta 2023, Improving Length-Generalization in Transformers via Task Hinting"

    parts: tuple[Part, ...] = (Part("sort_multi"), Part("successor"))

    def check(self) -> None:
        super().check()
        require(self.parts, "Mixture.parts: expected at least one task")
        weights = [part.weight for part in self.parts]
        require(
            min(weights) >= 0 < weights[0], f"Mixture: weights must be 0 or more, the first above it, got {weights}"
        )
        require(
            not any(getattr(part.task, "coupled", False) for part in self.parts),
            "Mixture.parts: a task that gives positions cannot be mixed; set coupled=False",
        )

    @functools.cached_property
    def tasks(self) -> tuple[Task, ...]:
        """Those of the parts, with the lengths of the mixture."""
        lengths = {"train_lengths": self.train_lengths, "eval_lengths": self.eval_lengths}
        return tuple(dataclasses.replace(part.task, **lengths) for part in self.parts)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for task in self.tasks for word in task.words))

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self.tasks[0].sample(rng, length)

    def sample_training(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        shares = np.cumsum([part.weight for part in self.parts])
        chosen = int(np.searchsorted(shares / shares[-1], rng.random(), side="right"))
        return self.tasks[chosen].sample(rng, length)

    def tokens_bound(self, length: int) -> int:
        return max(task.tokens_bound(length) for task in self.tasks)
