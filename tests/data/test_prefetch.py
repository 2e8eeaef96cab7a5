"""Prefetching: order, bounded depth, exceptions at their step, clean ends."""

import subprocess
import sys
import threading
import time

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.data.prefetch import Prefetch


@pytest.fixture
def threads():
    """The prefetching threads alive that this test has started."""
    before = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name.startswith("prefetch") and t not in before]


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "did not happen within 10 s"
        time.sleep(0.001)


def test_order_and_end(threads):
    with Prefetch(lambda step: step * step, start_step=3, stop_step=8) as batches:
        assert list(batches) == [(step, step * step) for step in range(3, 8)]
        assert next(batches, None) is None
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_makes_depth_batches_ahead_and_no_more(depth):
    made = []
    with Prefetch(made.append, depth=depth) as batches:
        wait_for(lambda: len(made) == depth)
        next(batches)
        wait_for(lambda: len(made) == depth + 1)
        time.sleep(0.02)
        assert made == list(range(depth + 1))


def test_exception_comes_at_its_step_and_ends(threads):
    def loader(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    batches = Prefetch(loader, depth=4)
    assert [next(batches), next(batches)] == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    assert next(batches, None) is None and not threads()


def test_close_joins_and_drops_what_is_ahead(threads):
    made, gate = [], threading.Event()

    def loader(step):
        gate.wait(10)
        made.append(step)

    batches = Prefetch(loader, depth=3)
    wait_for(threads)
    threading.Timer(0.05, gate.set).start()
    batches.close()
    batches.close()
    assert not threads() and made in ([], [0])
    assert next(batches, None) is None


def test_leaving_the_program_or_forgetting_the_iterator_does_not_hang():
    code = """
from jaxlm.data.prefetch import Prefetch
kept = Prefetch(lambda step: step)
assert next(kept) == (0, 0)
forgotten = Prefetch(lambda step: step)
del forgotten
raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


def test_depth():
    with pytest.raises(ConfigError, match="prefetch depth: expected at least 1, got 0"):
        Prefetch(lambda step: step, depth=0)
