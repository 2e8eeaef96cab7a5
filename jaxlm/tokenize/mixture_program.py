"""The linear program of data-mixture inference, solved lazily (Hayase et al. 2024, arXiv:2407.16607, section 3).

    minimise sum_t v_t + sum_p v_p   over alpha in the simplex, v_t >= 0 per merge, v_p >= 0 per pair, subject to
    sum_i alpha_i (c_i,t[m_t] - c_i,t[p]) / D_i + v_t + v_p >= 0   for every step t and every pair p other than m_t

c_i,t[p] is the count of pair p in category i before merge m_t, D_i the number of pairs there before any merge. There is
a constraint for each pair at each step, of which few bind: the program begins with none, and at each round gets those
that the present point violates, the worst `COMPETITORS` of a step, from the first step up, until there are
`PER_ROUND`. It is solved when a search over all steps and pairs finds none.

The counts are kept as their changes, sorted by pair, so that the search is a few passes over arrays: a pair's mixed
count is constant between two of its changes, and violates somewhere there if it is above the least threshold (mixed
count of the merge, and v_t) of these steps. HiGHS keeps the rows, continues with the dual simplex when some are added,
and with the primal simplex when the objective changes, as for the range of a share on the face of optimal solutions.

Eight categories, one CPU core: 300 merges take 0.3 s with 3,000 constraints, 1000 merges 2.4 s with 19,000, and the 16
programs of the ranges 2 s more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMPETITORS, PER_ROUND = 10, 1000
SCALE = 1e4  # of the rows: one count of a million is then 1e-2, which the solver's 1e-7 is well below
TOLERANCE = 1e-6  # of a violation, in the units of the rows
BLOCK = 256  # steps searched at a time
_DUAL, _PRIMAL = 1, 4  # HiGHS's numbers for its two simplex methods


@dataclasses.dataclass(frozen=True)
class Changes:
    """How the pair counts of one category change as merges are applied; entries in the order of the steps.

    Attributes:
      step: int64 [E], before which merge a pair has a new count; at step 0 all pairs do.
      left, right: int64 [E], the pair.
      count: int64 [E], its new count, 0 where it vanished.
    """

    step: Ints
    left: Ints
    right: Ints
    count: Ints

    def pairs(self) -> int:
        """D: the number of adjacent pairs before any merge."""
        return int(self.count[self.step == 0].sum())


class StepCounts:
    """c_i,t[p] of all categories, looked up and mixed without a table of all steps.

    Attributes:
      steps, categories, pairs: their numbers T, n and P.
      merge: float64 [T, n], the merges' own counts over D_i.
    """

    def __init__(self, merges: Sequence[tuple[int, int]], changes: Sequence[Changes]) -> None:
        base = 1 + max([int(max(c.left.max(), c.right.max())) for c in changes] + [max(pair) for pair in merges])
        names = [c.left * base + c.right for c in changes]
        own = np.array([left * base + right for left, right in merges], np.int64)
        self.names = np.unique(np.concatenate([*names, own]))  # pair number -> left * base + right
        self.steps, self.categories, self.pairs = len(merges), len(changes), len(self.names)
        self.own = np.searchsorted(self.names, own)  # the pair that each merge is
        pair = np.searchsorted(self.names, np.concatenate(names))
        step = np.concatenate([c.step for c in changes])
        category = np.repeat(np.arange(self.categories), [len(c.step) for c in changes])
        count = np.concatenate([c.count for c in changes])
        self._scale = 1.0 / np.array([c.pairs() for c in changes])

        # For looking up: sorted by (pair, category, step).
        key = (pair * self.categories + category) * self.steps + step
        order = np.argsort(key)
        self._key, self._count = key[order], count[order]
        before = np.concatenate([[0], self._count[:-1]])
        line = self._key // self.steps
        before[np.concatenate([[True], line[1:] != line[:-1]])] = 0

        # For mixing: events, sorted by (pair, step), with the differences of their categories.
        again = np.argsort((pair[order] * self.steps + step[order]) * self.categories + category[order])
        self._difference = (self._count - before)[again].astype(np.float64)
        self._category = category[order][again].astype(np.int32)
        event = (pair * self.steps + step)[order][again]
        self._first = np.flatnonzero(np.concatenate([[True], event[1:] != event[:-1]]))
        self.event_pair, self.event_step = event[self._first] // self.steps, event[self._first] % self.steps
        self.event_end = np.full_like(self.event_step, self.steps)  # an event lasts until its pair's next
        same = self.event_pair[1:] == self.event_pair[:-1]
        self.event_end[:-1][same] = self.event_step[1:][same]
        self._starts = np.flatnonzero(np.concatenate([[True], ~same]))

        self.merge = self.at(np.arange(self.steps), self.own)

    def at(self, steps: Ints, pairs: Ints) -> Floats:
        """c_i,t[p] / D_i, float64 [K, n], of K steps and pairs."""
        line = pairs[:, None] * self.categories + np.arange(self.categories)
        found = np.searchsorted(self._key, line * self.steps + steps[:, None], side="right") - 1
        there = (found >= 0) & (self._key[found] // self.steps == line)
        return np.where(there, self._count[found], 0) * self._scale

    def mixed(self, alpha: Floats) -> Floats:
        """The mixed count of each event's pair from then on, float64 [events]."""
        change = np.add.reduceat(self._difference * (alpha * self._scale)[self._category], self._first)
        total = np.cumsum(change)
        lengths = np.diff(np.append(self._starts, len(total)))
        return total - np.repeat(total[self._starts] - change[self._starts], lengths)


class MixtureProgram:
    """The program for merges and counts; `solve` finds an optimal point, `ranges` how far the shares can go.

    Args:
      counts: of all categories.
      used: bool [T], the steps that make constraints.
      competitors: constraints of one step added at a time.
      per_round: constraints added at a time.
      report: called after each solve with their number.

    Attributes:
      rounds, constraints: solves, and constraints there are.
    """

    def __init__(
        self,
        counts: StepCounts,
        used: NDArray[np.bool_],
        *,
        competitors: int = COMPETITORS,
        per_round: int = PER_ROUND,
        report: Callable[[int], None] = lambda rounds: None,
    ) -> None:
        try:
            import highspy
        except ImportError:
            raise ConfigError("mixture inference needs highspy: pip install 'jaxlm[tokenize]'") from None
        self._counts, self._used, self._report = counts, used, report
        self._competitors, self._per_round = competitors, per_round
        self.rounds = 0
        self._known = np.zeros(0, np.int64)  # step * P + pair of the constraints
        self._column = np.full(counts.pairs, -1)  # of each v_p, made when the pair has a constraint
        n, t = counts.categories, counts.steps
        self._lp = highspy.Highs()
        self._infinity, self._optimal = highspy.kHighsInf, highspy.HighsModelStatus.kOptimal
        for name, value in {"output_flag": False, "presolve": "off", "threads": 1, "solver": "simplex"}.items():
            self._lp.setOptionValue(name, value)
        self._cap = -1  # the row that holds the objective down, once there is one
        self._columns = 0
        self._add_columns(np.concatenate([np.zeros(n), np.ones(t)]))
        self._lp.addRow(1.0, 1.0, n, np.arange(n, dtype=np.int32), np.ones(n))
        self._alpha, self._v_t, self._v_p = np.full(n, 1.0 / n), np.zeros(t), np.zeros(counts.pairs)

    @property
    def constraints(self) -> int:
        return len(self._known)

    def solve(self) -> tuple[Floats, float, float]:
        """An optimal point: shares alpha [n], and the sums of v_t and of v_p."""
        self._settle(_DUAL)
        return self._alpha, float(self._v_t.sum()) / SCALE, float(self._v_p.sum()) / SCALE

    def ranges(self, slack: float) -> Floats:
        """Points [n, 2, n] where each share is least and greatest, of those at most ``slack`` above the optimum.

        To be called once, after `solve`, which it ends.
        """
        n = self._counts.categories
        slacks = np.arange(n, self._columns, dtype=np.int32)
        most = float(self._v_t.sum() + self._v_p.sum()) + slack * SCALE
        self._lp.addRow(-self._infinity, most, len(slacks), slacks, np.ones(len(slacks)))
        self._cap = self._lp.getNumRow() - 1
        for column in slacks:
            self._lp.changeColCost(int(column), 0.0)
        ends = np.zeros((n, 2, n))
        for i in range(n):
            for side, sign in enumerate((1.0, -1.0)):
                self._lp.changeColCost(i, sign)
                self._settle(_PRIMAL)
                ends[i, side] = self._alpha
            self._lp.changeColCost(i, 0.0)
        return ends

    def _settle(self, method: int) -> None:
        """Solves, and adds what the solution violates, until it violates nothing."""
        while True:
            self._run(method)
            self.rounds += 1
            self._report(self.rounds)
            steps, pairs = self._violated()
            if not len(steps):
                return
            self._add(steps, pairs)
            method = _DUAL

    def _run(self, method: int) -> None:
        self._lp.setOptionValue("simplex_strategy", method)
        self._lp.run()
        if self._lp.getModelStatus() != self._optimal:  # from the beginning, without the last solution
            self._lp.clearSolver()
            self._lp.run()
        status = self._lp.getModelStatus()
        if status != self._optimal:
            raise RuntimeError(f"HiGHS stopped with {self._lp.modelStatusToString(status)!r}")
        value = np.array(self._lp.getSolution().col_value)
        n, t = self._counts.categories, self._counts.steps
        self._alpha, self._v_t = value[:n], value[n : n + t]
        self._v_p = np.where(self._column >= 0, value[self._column], 0.0)

    def _violated(self) -> tuple[Ints, Ints]:
        """Steps and pairs of constraints that the present point violates and that are not rows yet."""
        counts = self._counts
        value = counts.mixed(self._alpha) * SCALE - self._v_p[counts.event_pair]
        threshold = np.where(self._used, counts.merge @ self._alpha * SCALE + self._v_t + TOLERANCE, np.inf)
        least = _range_minimum(threshold, counts.event_step, counts.event_end)
        found = np.flatnonzero(value > least)
        value, pair, start, end = (x[found] for x in (value, counts.event_pair, counts.event_step, counts.event_end))
        chosen: list[NDArray[Any]] = []
        for low in range(0, counts.steps, BLOCK):
            high = min(low + BLOCK, counts.steps)
            at = np.flatnonzero((start < high) & (end > low))
            begin, length = np.maximum(start[at], low), np.minimum(end[at], high) - np.maximum(start[at], low)
            event = np.repeat(at, length)
            step = np.arange(len(event)) - np.repeat(np.cumsum(length) - length - begin, length)
            excess = value[event] - threshold[step]
            key = step * counts.pairs + pair[event]
            keep = (excess > 0) & ~np.isin(key, self._known)
            key, step, excess = key[keep], step[keep], excess[keep]
            order = np.lexsort((-excess, step))
            rank = np.arange(len(order)) - np.searchsorted(step[order], step[order])
            chosen.append(key[order][rank < self._competitors])
            if sum(map(len, chosen)) >= self._per_round:
                break
        keys = np.concatenate(chosen)[: self._per_round]
        return keys // counts.pairs, keys % counts.pairs

    def _add(self, steps: Ints, pairs: Ints) -> None:
        counts, k = self._counts, len(steps)
        n = counts.categories
        self._known = np.concatenate([self._known, steps * counts.pairs + pairs])
        new = np.unique(pairs[self._column[pairs] < 0])
        self._column[new] = self._columns + np.arange(len(new))
        self._add_columns(np.ones(len(new)))
        values = np.ones((k, n + 2))
        values[:, :n] = (counts.merge[steps] - counts.at(steps, pairs)) * SCALE
        columns = np.empty((k, n + 2), np.int32)
        columns[:, :n], columns[:, n], columns[:, n + 1] = np.arange(n), n + steps, self._column[pairs]
        there = values != 0
        starts = np.concatenate([[0], np.cumsum(there.sum(1))[:-1]]).astype(np.int32)
        entries = int(there.sum())
        self._lp.addRows(k, np.zeros(k), np.full(k, self._infinity), entries, starts, columns[there], values[there])

    def _add_columns(self, cost: Floats) -> None:
        """Columns from 0 up; once the objective is a row, they have no cost and an entry there."""
        k, in_cap = len(cost), self._cap >= 0
        starts = np.arange(k if in_cap else 0, dtype=np.int32)
        rows = np.full(len(starts), self._cap, np.int32)
        starts = starts if in_cap else np.zeros(k, np.int32)
        entries, cost = len(rows), cost * (not in_cap)
        self._lp.addCols(k, cost, np.zeros(k), np.full(k, self._infinity), entries, starts, rows, np.ones(entries))
        self._columns += k


def _range_minimum(x: Floats, start: Ints, end: Ints) -> Floats:
    """min x[start:end] of each range, none empty, from the minima over powers of two."""
    level = np.frexp(end - start)[1] - 1
    out = np.empty(len(start))
    for k in range(int(level.max(initial=0)) + 1):
        at = np.flatnonzero(level == k)
        out[at] = np.minimum(x[start[at]], x[end[at] - (1 << k)])
        x = np.minimum(x[: -(1 << k)], x[1 << k :]) if len(x) > 1 << k else x
    return out
