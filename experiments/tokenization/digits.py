"""Groups of digits from the left or from the right, and addition (Singh and Strouse 2024, Tokenization counts).

One model, trained from scratch on a+b=c, three tokenizations of the digits: groups of three from the left (as GPT-3.5
and GPT-4 cut numbers), from the right, and single digits. Read apart where the answer has as many digits as the longer
addend and where it has one more: only there do groups from the left change their place values between question and
answer. An answer is right if every token is, the end included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, first_wrong
from jaxlm.core.config import require
from jaxlm.tokenize.digits import group_digits

GROUP = 3
SPLITS = ("equal", "longer")
PAD, PLUS, EQUALS, END = range(4)  # before the groups
CUTS: dict[str, Callable[[str], list[str]]] = {
    "left to right": lambda number: group_digits(number, GROUP, "l2r"),
    "right to left": lambda number: group_digits(number, GROUP, "r2l"),
    "single digits": list,
}
# Groups of one, two and three digits, each its own token.
IDS = {
    text: END + 1 + i for i, text in enumerate(f"{n:0{size}}" for size in range(1, GROUP + 1) for n in range(10**size))
}


class Problems(NamedTuple):
    """Additions as tokens.

    Attributes:
      tokens: int32 [B, L + 1], padded.
      answer: boolean [B, L + 1]: the tokens of the answer, its end included.
      longer: boolean [B]: the answer has a digit more than the longer addend.
      digits: int [B], of the answer.
    """

    tokens: NDArray[np.int32]
    answer: NDArray[np.bool_]
    longer: NDArray[np.bool_]
    digits: NDArray[np.int64]

    def batch(self) -> dict[str, NDArray]:
        return {
            "tokens": self.tokens[:, :-1],
            "targets": self.tokens[:, 1:],
            "weights": self.answer[:, 1:].astype(np.float32),
        }


@dataclasses.dataclass(frozen=True)
class Additions:
    """Fresh problems at every step.

    Attributes:
      digits: an addend has 1 to so many, each number of digits as likely.
      batch_size: problems a step.
      cut: a number as tokens.
      seed: of the draws.
    """

    digits: int
    batch_size: int
    cut: str
    seed: int = 0

    def __call__(self, step: int) -> dict[str, NDArray]:
        return self.draw(np.random.default_rng((self.seed, 0, step)), self.batch_size).batch()

    @property
    def length(self) -> int:
        """Of the longest problem, in tokens."""
        addend, answer = (len(CUTS[self.cut]("9" * n)) for n in (self.digits, self.digits + 1))
        return 2 * addend + answer + 3

    def draw(self, draws: np.random.Generator, number: int) -> Problems:
        sizes = draws.integers(1, self.digits + 1, (number, 2))
        addends = draws.integers(np.where(sizes > 1, 10 ** (sizes - 1), 0), 10**sizes)
        tokens = np.full((number, self.length), PAD, np.int32)
        answer = np.zeros((number, self.length), bool)
        encode = lambda value: [IDS[piece] for piece in CUTS[self.cut](str(value))]
        for row, (a, b) in enumerate(addends.tolist()):
            asked = [*encode(a), PLUS, *encode(b), EQUALS]
            whole = [*asked, *encode(a + b), END]
            tokens[row, : len(whole)] = whole
            answer[row, len(asked) : len(whole)] = True
        digits = np.array([len(str(n)) for n in addends.sum(1).tolist()])
        return Problems(tokens, answer, digits > sizes.max(1), digits)


@dataclasses.dataclass(frozen=True)
class Digits(Study):
    """The study of digit groups.

    Attributes:
      digits: that an addend has at most.
      model: the transformer.
      problems: read for each split.
    """

    name: ClassVar[str] = "digits"
    claim: ClassVar[str] = (
        "with digits in threes from the left, additions whose answer is longer than its addends fail, and at the "
        "second group; from the right they do not. Published, GPT-3.5 with 8 shots, 7 to 9 digits: from the left .938 "
        "where the answer is as long and .083 where it is longer, from the right .979 and .985 (Singh and Strouse 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("digits of the answer", "accuracy")

    digits: int = 4
    model: SmallModel = SmallModel(layers=3, batch_size=128, steps=2500, rate=1e-3)
    problems: int = 1000

    def check(self) -> None:
        super().check()
        require(1 <= self.digits <= 17, f"Digits.digits: expected 1 to 17, got {self.digits}")
        require(self.problems > 0, f"Digits.problems: expected a positive number, got {self.problems}")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", cut, self.model.steps) for cut in CUTS]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        additions = Additions(self.digits, self.model.batch_size, arm.label)
        vocabulary = END + 1 + len(IDS)
        training = Training(self.model, vocabulary, lambda seed: dataclasses.replace(additions, seed=seed), progress)

        def run(seed: int) -> Iterator[Found]:
            params, _ = training(seed)
            found = _of_each_split(additions, np.random.default_rng((seed, 1)), self.problems)
            first = first_wrong(training.model, params, found.batch())
            right = first < 0
            for split, wanted in zip(SPLITS, (~found.longer, found.longer), strict=True):
                yield Found("accuracy", float(right[wanted].mean()), 0, split)
                wrong = wanted & ~right
                for group in range(4) if wrong.any() else ():
                    yield Found("share of errors", float((first[wrong] == group).mean()), group + 1, split)
                for digits in sorted(set(found.digits[wanted].tolist())):
                    of = wanted & (found.digits == digits)
                    if of.sum() >= 20:
                        yield Found("accuracy", float(right[of].mean()), digits, split)
            yield Found("score", float(right.mean()))

        return run

    def lines(self, found: Results) -> Iterator[Line]:
        left, right = (found.of("", name, "accuracy", 0, "longer") for name in ("left to right", "right to left"))
        if left and right:
            yield Line("longer answers: from the right over from the left", 0.2, True, between(right, left))
        if errors := found.of("", "left to right", "share of errors", 2, "longer"):
            yield Line("longer answers, from the left: first error in the second group", 0.5, True, errors)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        accuracy = lambda split: lambda label: found.of(part, label, "accuracy", 0, split)
        errors = lambda group: lambda label: found.of(part, label, "share of errors", group, "longer")
        return {
            "equal": accuracy("equal"),
            "longer": accuracy("longer"),
            **{f"longer, group {group}": errors(group) for group in (1, 2, 3)},
        }

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for split in SPLITS:
            for arm in self.arms():
                points = [(x, values) for x, values in found.curve("", arm.label, "accuracy", split) if x]
                panels.add(out, f"answers: {split}", arm.label, points)
        return out


def _of_each_split(additions: Additions, draws: np.random.Generator, number: int) -> Problems:
    """``number`` problems whose answer is as long as the longer addend, and as many whose answer is longer."""
    pool: list[Problems] = []
    while min(sum(int((p.longer == longer).sum()) for p in pool) for longer in (False, True)) < number:
        pool.append(additions.draw(draws, 4 * number))
    joined = Problems(*(np.concatenate(parts) for parts in zip(*pool, strict=True)))
    chosen = np.concatenate([np.flatnonzero(joined.longer == longer)[:number] for longer in (False, True)])
    return Problems(joined.tokens[chosen], joined.answer[chosen], joined.longer[chosen], joined.digits[chosen])
