"""The unified scratchpad: worked steps before the answer, each of five parts that can be switched off.

Format and markers are those of McGill-NLP/length-generalization (data_instance_processor.py, "stripped" template; its
names ``ufs__i1_c1_o1_v1_r1`` list the five switches):

    in INPUT comp COMPUTATION out OUTPUT [ VARIABLES ] re REMAINING INPUT # in ... # in ... ans ANSWER

Differences: ``ans`` stands for the authors' ". Thus, The answer is", and there is no opening phrase.
Claim (Kazemnejad et al. 2023, section 6): only addition and parity gain clearly, and the best format differs per task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxlm.core.config import Spec, require
from jaxlm.data.tasks.base import Task

ANSWER = "ans"
MARKERS = ("in", "comp", "out", "[", "]", "re", "#", ANSWER)


@dataclasses.dataclass(frozen=True)
class Step:
    """One worked step, as words; ``variables`` is None for tasks that keep none."""

    input: Sequence[str]
    computation: Sequence[str]
    output: Sequence[str]
    remaining: Sequence[str]
    variables: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Scratchpad(Spec):
    """Which parts of each step are written; nothing at all unless ``enabled``."""

    enabled: bool = False
    input: bool = True
    computation: bool = True
    output: bool = True
    variables: bool = True
    remaining: bool = True

    def check(self) -> None:
        parts = (self.input, self.computation, self.output, self.variables, self.remaining)
        require(
            not self.enabled or any(parts),
            "Scratchpad: enabled with every part off; turn on one of input, computation, output, variables, remaining",
        )

    def write(self, steps: Iterable[Step], answer: Sequence[str]) -> list[str]:
        """The target: the steps and the marked answer; when not enabled the bare answer (``steps`` is not consumed)."""
        if not self.enabled:
            return list(answer)
        words: list[str] = []
        for step in steps:
            if words:
                words.append("#")
            if self.input:
                words += ["in", *step.input]
            if self.computation:
                words += ["comp", *step.computation]
            if self.output:
                words += ["out", *step.output]
            if self.variables and step.variables is not None:
                words += ["[", *step.variables, "]"]
            if self.remaining:
                words += ["re", *step.remaining]
        return [*words, ANSWER, *answer]


@dataclasses.dataclass(frozen=True)
class ScratchpadTask(Task):
    """A task that can show its work. Its ``words`` hold the markers whatever the switches: formats differ in no id."""

    scratchpad: Scratchpad = Scratchpad()

    def answer(self, output_ids: Iterable[int]) -> list[str]:
        """The words after the last ``ans`` (empty if a scratchpad never reaches its answer), else as `Task.answer`."""
        words = super().answer(output_ids)
        if not self.scratchpad.enabled:
            return words
        return words[len(words) - words[::-1].index(ANSWER) :] if ANSWER in words else []


def digits(number: int) -> list[str]:
    """A non-negative integer as digit words, most significant first."""
    return list(str(number))
