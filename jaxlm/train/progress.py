"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere (a log file), or nothing.

    step 1200/5000 [#####---------------] loss 2.4312  18.4k tokens/s  MFU 41.2%  ETA 3:27

Rates are over the time since the line before, so that compilation and evaluation do not weigh on them for ever; the ETA
uses a running mean, from which the first line, whose steps were compiled, is left out as soon as there is a second.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR, SMOOTHING = 20, 0.7


class Progress:
    """Reports progress; `update` after each step costs nothing unless a line is due.

    Args:
      total: steps of the run.
      start: the step the run begins or resumes at.
      interval: seconds between lines; by default 0.2 on a terminal and 10 elsewhere.
      quiet: print nothing.
      mfu: from tokens per second to the utilisation, or to None where it is not known.
      stream: where to print; by default the standard error.
      clock: seconds that never go back.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        interval: float | None = None,
        quiet: bool = False,
        mfu: Callable[[float], float | None] = lambda tokens_per_second: None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = interval if interval is not None else (0.2 if self._terminal else 10.0)
        self._total, self._quiet, self._mfu, self._clock = total, quiet, mfu, clock
        self._step = self._shown_step = start
        self._shown_at, self._tokens, self._width = clock(), 0, 0
        self._seconds_per_step: float | None = None
        self._lines = 0
        self._loss: Callable[[], float] | None = None

    def update(self, step: int, tokens: int, loss: Callable[[], float]) -> None:
        """Notes that ``step`` steps are done.

        Args:
          step: number of steps done since the beginning of the run.
          tokens: that this step took.
          loss: called only if a line is due, since fetching a loss makes the host wait for the device.
        """
        self._step, self._loss = step, loss
        self._tokens += tokens
        if step > self._shown_step and self._clock() - self._shown_at >= self._interval:
            self._show()

    def note(self, text: str) -> None:
        """Prints a line of its own: an evaluation, a checkpoint."""
        if not self._quiet:
            self._clear()
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Prints the state the run ended in."""
        if self._step > self._shown_step:
            self._show()
        if self._terminal and self._width and not self._quiet:
            print(file=self._stream, flush=True)
        self._width = 0

    def _show(self) -> None:
        now = self._clock()
        elapsed, steps = now - self._shown_at, self._step - self._shown_step
        pace = elapsed / steps
        old, self._lines = self._seconds_per_step, self._lines + 1
        self._seconds_per_step = pace if old is None or self._lines == 2 else SMOOTHING * old + (1 - SMOOTHING) * pace
        rate = self._tokens / elapsed if elapsed > 0 else 0.0
        if not self._quiet:
            line = self._line(rate)
            if self._terminal:
                line = line[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be overwritten
                print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
                self._width = len(line)
            else:
                print(line, file=self._stream, flush=True)
        self._shown_step, self._shown_at, self._tokens = self._step, now, 0

    def _line(self, rate: float) -> str:
        done = BAR * self._step // max(self._total, 1)
        parts = [f"step {self._step}/{self._total}"]
        if self._terminal:
            parts[0] += f" [{'#' * done}{'-' * (BAR - done)}]"
        if self._loss is not None:
            parts[0] += f" loss {self._loss():.4f}"
        parts.append(f"{_short(rate)} tokens/s")
        utilisation = self._mfu(rate)
        if utilisation is not None:
            parts.append(f"MFU {utilisation:.1%}")
        parts.append(f"ETA {_duration((self._total - self._step) * (self._seconds_per_step or 0.0))}")
        return "  ".join(parts)

    def _clear(self) -> None:
        if self._terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream)
            self._width = 0


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
