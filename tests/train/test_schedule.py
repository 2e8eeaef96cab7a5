"""Schedules: where each phase begins and ends, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.train.schedule import KINDS, Schedule

PEAK = 0.01


def values(schedule: Schedule, total: int, *steps: int) -> list[float]:
    rate = schedule.build(total)
    return [float(rate(step)) / PEAK for step in steps]


@pytest.mark.parametrize("kind", KINDS)
def test_warms_up_to_the_peak_and_stays_at_its_last_value(kind):
    schedule = Schedule(kind, peak=PEAK, warmup=10, final_fraction=0.25)
    last = 1.0 if kind == "constant" else 0.25
    expected = [0.0, 0.1, 0.9, 1.0, last, last]
    np.testing.assert_allclose(values(schedule, 200, 0, 1, 9, 10, 200, 1000), expected, atol=1e-6)


def test_warmup_counts_steps_from_one_and_fractions_below():
    by_steps, by_fraction = Schedule(peak=PEAK, warmup=20), Schedule(peak=PEAK, warmup=0.1)
    steps = range(0, 201, 7)
    assert values(by_steps, 200, *steps) == values(by_fraction, 200, *steps)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert values(Schedule("linear", peak=PEAK, warmup=0, final_fraction=0), 10, 0, 5, 10) == pytest.approx([1, 0.5, 0])


def test_wsd_is_flat_then_linear():
    schedule = Schedule("wsd", peak=PEAK, warmup=10, decay=0.2, final_fraction=0)
    assert values(schedule, 100, 10, 50, 80, 90, 95) == pytest.approx([1, 1, 1, 0.5, 0.25])


def test_infinite_cools_to_a_plateau_and_anneals_exponentially():
    schedule = Schedule(
        "infinite", peak=PEAK, warmup=10, cooldown=20, decay=20, plateau_fraction=0.4, final_fraction=0.1
    )
    assert values(schedule, 100, 10, 20, 30, 79, 90) == pytest.approx([1, 0.7, 0.4, 0.4, 0.2])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "cosin"}, "did you mean 'cosine'"),
        ({"warmup": 1.5}, "Schedule.warmup: 1.5 is neither"),
        ({"warmup": -1.0}, "Schedule.warmup"),
        ({"final_fraction": 1.5}, "Schedule.final_fraction"),
        ({"peak": -1.0}, "Schedule.peak"),
        ({"kind": "infinite", "final_fraction": 0.0}, "above 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        Schedule(**change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schedule", [Schedule(warmup=11), Schedule("wsd", warmup=5, decay=6)])
def test_phases_that_do_not_fit_the_run_are_refused(schedule):
    with pytest.raises(ConfigError, match="do not fit into a run of 10"):
        schedule.build(10)
