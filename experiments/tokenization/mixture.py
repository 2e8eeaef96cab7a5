"""The mixture behind a tokenizer's merges, found again (Hayase et al. 2024, Data Mixture Inference).

Eight kinds of text in shares drawn from a flat Dirichlet distribution make a BPE tokenizer; from its merge list and
other text of the same kinds the shares are inferred. Read: log10 of the mean squared error of the shares, and that of
guessing equal ones. `experiments.mixture_inference` does it for your tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.recovery import recovery
from jaxlm.core.config import require
from jaxlm.data.categories import categories

ERROR, UNIFORM, BYTES = "log10 MSE", "log10 MSE of equal shares", "bytes of a category"
SECONDS = "processor seconds to infer"
TEXTS = {"other text": False, "the training text": True}


@dataclasses.dataclass(frozen=True)
class MixtureRecovery(Study):
    """The study of mixtures.

    Attributes:
      merges: how many of a list are used, each read apart.
    """

    name: ClassVar[str] = "mixture"
    claim: ClassVar[str] = (
        "the merges of a tokenizer say what its training data were made of. Published log10 MSE with five categories: "
        "languages -7.3, programming languages -6.5, domains -3.4, with 30,000 merges (Hayase et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("merges", ERROR)
    log_x: ClassVar[bool] = True

    merges: tuple[int, ...] = (100, 300, 1000)

    def check(self) -> None:
        super().check()
        require(min(self.merges) >= 1, f"MixtureRecovery.merges: expected positive numbers, got {self.merges}")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", text) for text in TEXTS]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        def run(seed: int) -> Iterator[Found]:
            for number, category in enumerate(categories(seed)):
                size = sum(map(len, (*category.train, *category.count)))
                yield Found(BYTES, size, number, f"{category.name}: {category.source}")
            for merges in self.merges:
                row, _ = recovery(seed, merges, same_text=TEXTS[arm.label])
                yield Found(ERROR, row.pairs, merges)
                yield Found(UNIFORM, row.uniform, merges)
                yield Found("widest range of a share", row.width, merges)
                yield Found(SECONDS, row.inference, merges)

        return run

    def lines(self, found: Results) -> Iterator[Line]:
        other, same = TEXTS
        n = min(self.merges, key=lambda merges: abs(merges - 300))
        if errors := found.of("", other, ERROR, n):
            mean = {0: sum(errors.values()) / len(errors)}
            yield Line(f"{n} merges, other text: log10 MSE, mean of seeds", -3.5, False, mean)
            better = between(found.of("", other, UNIFORM, n), errors)
            yield Line("  below equal shares, mean", 1.5, True, {0: sum(better.values()) / len(better)})
            yield Line("  processor seconds to count and infer", 120, False, found.of("", other, SECONDS, n))
            if slow := [merges for merges in self.merges if merges == 1000]:
                seconds = found.of("", other, SECONDS, slow[0])
                yield Line("1000 merges: processor seconds to count and infer", 60, False, seconds)
        if exact := found.of("", same, ERROR, n):
            yield Line(f"{n} merges, the training text itself: log10 MSE", -6.0, False, exact)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        at = lambda measure, n: lambda label: found.of(part, label, measure, n)
        errors = {f"{n} merges": at(ERROR, n) for n in self.merges}
        return {**errors, "equal shares": at(UNIFORM, self.merges[0]), "seconds": at(SECONDS, self.merges[-1])}

    def notes(self, found: Results) -> list[str]:
        """What the categories were: files of the machine, or languages in their place."""
        kinds: dict[tuple[int, str], list[float]] = {}
        for row in found.rows:
            if row.measure == BYTES:
                kinds.setdefault((row.at, row.setting), []).append(row.value)
        lines = [f"  {max(sizes):>9,.0f}  {kind}" for (_, kind), sizes in sorted(kinds.items())]
        return ["categories, bytes of both halves, and their sources:", *lines] if lines else []

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            panels.add(out, "shares of eight kinds of text", arm.label, found.curve("", arm.label, ERROR))
        panels.add(out, "shares of eight kinds of text", "equal shares", found.curve("", "other text", UNIFORM))
        return out
