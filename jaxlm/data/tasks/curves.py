"""Curves: are two dots on the same dashed curve? A small picture, read pixel by pixel.

Two curves of equally many dashes wind over an image without coming near each other or themselves; a dot ends one of
them, and the other dot ends either that curve, too (``yes``), or the other one (``no``). Shorter curves are there to
distract. After Pathfinder (Linsley et al. 2018; Tay et al. 2021, Long Range Arena), drawn by our own code.

Length: the dashes of each of the two curves. Claim: S4 follows curves over 1024 and 16384 pixels, where attention stays
at 71 % and at chance. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, encoded_length

EMPTY, DASH, DOT = ".", "#", "o"
ON, PERIOD = 2, 3  # pixels of a dash, and from one dash to the next
APART = 4  # rows or columns between a curve and another, or its own past
TURN = 0.35  # radians, the standard deviation of a pixel's change of direction
ATTEMPTS = 60  # at placing a curve, before the whole picture is begun anew

Pixel = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Curves(Task):
    """``side x side`` pixels, ``. # o`` -> ``yes`` or ``no``.

    Attributes:
      side: of the image, in pixels.
      distractors: shorter curves, a third as long as the two.
    """

    paper: ClassVar[str] = (
        "Linsley et al. 2018, Learning long-range spatial dependencies (Pathfinder); drawn by our code"
    )

    side: int = 48
    distractors: int = 2

    def check(self) -> None:
        super().check()
        most = max(self.train_lengths[1], self.eval_lengths[1])
        require(self.distractors >= 0, f"Curves.distractors: expected an integer >= 0, got {self.distractors}")
        least = self._least_side(most)
        require(
            self.side >= least, f"Curves.side: curves of {most} dashes need {least} pixels or more, got {self.side}"
        )

    def _least_side(self, dashes: int) -> int:
        """Where curves of so many dashes, with what they keep free around them, are found soon."""
        pixels = PERIOD * (2 * dashes + self.distractors * max(1, dashes // 3))
        return int(np.ceil((3.0 * APART * pixels) ** 0.5)) + 2

    @property
    def words(self) -> tuple[str, ...]:
        return (EMPTY, DASH, DOT, "yes", "no")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        curves = self._curves(rng, [length, length, *[max(1, length // 3)] * self.distractors])
        image = np.full((self.side, self.side), EMPTY, object)
        for curve in curves:
            for i, pixel in enumerate(curve):
                if i % PERIOD < ON:
                    image[pixel] = DASH
        same = bool(rng.integers(2))
        image[curves[0][0]] = DOT
        image[curves[0][-1] if same else curves[1][0]] = DOT
        return image.ravel().tolist(), ["yes" if same else "no"]

    def tokens_bound(self, length: int) -> int:
        return encoded_length([EMPTY] * self.side**2, ["no"])

    def _curves(self, rng: np.random.Generator, dashes: list[int]) -> list[list[Pixel]]:
        while True:
            taken = np.zeros((self.side, self.side), bool)  # and what is too near to it
            curves: list[list[Pixel]] = []
            for count in dashes:
                found = (self._curve(rng, PERIOD * count - (PERIOD - ON), taken) for _ in range(ATTEMPTS))
                curve = next((c for c in found if c), None)
                if curve is None:
                    break
                curves.append(curve)
                for row, column in curve:
                    _around(taken, (row, column))[:] = True
            else:
                return curves

    def _curve(self, rng: np.random.Generator, pixels: int, taken: np.ndarray) -> list[Pixel]:
        """So many pixels of a curve, each the neighbour of the one before; empty if it ran into something."""
        free = np.argwhere(~taken[1:-1, 1:-1])
        if not len(free):
            return []
        place, heading = free[rng.integers(len(free))] + 1.5, rng.uniform(0, 2 * np.pi)
        near = taken.copy()
        curve: list[Pixel] = []
        for _ in range(8 * pixels):
            row, column = map(int, np.floor(place))
            inside = 1 <= row < self.side - 1 and 1 <= column < self.side - 1
            if not inside or near[row, column]:
                return []
            if not curve or (row, column) != curve[-1]:
                touched = [max(abs(row - r), abs(column - c)) < 2 for r, c in curve[-2 * APART :]]
                if sum(touched[:-2]):
                    return []
                if touched[-2:] == [True, True]:
                    curve.pop()  # no corners: a curve is one pixel wide
                curve.append((row, column))
                if len(curve) == pixels:
                    return curve
                if len(curve) > 2 * APART:
                    _around(near, curve[-2 * APART - 1])[:] = True
            heading += rng.normal(0, TURN / 2)
            # Away from the border, as a billiard ball.
            step = np.array([np.sin(heading), np.cos(heading)])
            ahead = place + 3 * step
            if not 1 <= ahead[0] < self.side - 1:
                heading = -heading
            if not 1 <= ahead[1] < self.side - 1:
                heading = np.pi - heading
            place = place + 0.5 * np.array([np.sin(heading), np.cos(heading)])
        return []


def _around(image: np.ndarray, pixel: Pixel) -> np.ndarray:
    """The part of an image less than `APART` rows and columns from a pixel."""
    row, column = pixel
    low = lambda x: max(0, x - APART + 1)
    return image[low(row) : row + APART, low(column) : column + APART]
