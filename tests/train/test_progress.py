"""What a person sees: a bar on a terminal, lines elsewhere, nothing when quiet; and MFU and traces beside it."""

from __future__ import annotations

import io
import types

import jax
import jax.numpy as jnp
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.train.mfu import mfu, peak_flops
from jaxlm.train.profile import Profile, parse_range
from jaxlm.train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def drive(stream, steps, seconds=1.0, tokens=2000, fetched=None, **settings):
    """Runs ``steps`` updates of a 100-step run, a second apart."""
    clock = Clock()
    progress = Progress(100, stream=stream, clock=clock, **settings)

    def loss_of(step):
        if fetched is not None:
            fetched.append(step)
        return 5.0 - step / 100

    for step in steps:
        clock.now += seconds
        progress.update(step, tokens, lambda step=step: loss_of(step))
    return progress


def test_one_line_per_interval_where_there_is_no_terminal():
    stream, fetched = io.StringIO(), []
    drive(stream, range(1, 31), fetched=fetched)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 10/100 loss 4.9000  2.0k tokens/s  ETA 1:30"
    assert lines[2] == "step 30/100 loss 4.7000  2.0k tokens/s  ETA 1:10"
    assert len(lines) == 3 and "\r" not in stream.getvalue()
    assert fetched == [10, 20, 30]  # a loss is fetched from the device only to be shown


def test_a_bar_that_overwrites_itself_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    progress = drive(stream, [49, 50])
    progress.note("evaluation: loss 4.2")
    progress.close()
    parts = stream.getvalue().split("\r")
    assert parts[1].startswith("step 49/100 [#########-----------] loss 4.5100  2.0k tokens/s  ETA ")
    assert parts[2].startswith("step 50/100 [##########----------] loss 4.5000")
    assert parts[2].count("\n") == 0 and parts[-1] == "evaluation: loss 4.2\n"


def test_the_bar_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    drive(stream, range(1, 5))
    assert all(len(part) < 40 for part in stream.getvalue().split("\r"))


def test_a_shorter_bar_leaves_nothing_of_the_longer_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    progress = Progress(100, stream=stream, clock=clock)
    for step, loss in ((1, 123456.0), (2, 1.0)):
        clock.now += 1
        progress.update(step, 1, lambda loss=loss: loss)
    first, second = stream.getvalue().split("\r")[1:]
    assert len(second) == len(first) and second.endswith(" ")


def test_quiet_prints_nothing_and_fetches_nothing():
    stream, fetched = io.StringIO(), []
    progress = drive(stream, range(1, 40), fetched=fetched, quiet=True)
    progress.note("evaluation")
    progress.close()
    assert stream.getvalue() == "" and fetched == []


def test_close_shows_the_end_once():
    stream = io.StringIO()
    progress = drive(stream, range(1, 13))
    progress.close()
    progress.close()
    assert [line.split(" ")[1] for line in stream.getvalue().splitlines()] == ["10/100", "12/100"]


def test_a_resumed_run_counts_its_own_steps_only():
    stream = io.StringIO()
    drive(stream, range(91, 101), start=90)
    assert stream.getvalue() == "step 100/100 loss 4.0000  2.0k tokens/s  ETA 0:00\n"


def test_mfu_is_shown_where_it_is_known():
    stream = io.StringIO()
    drive(stream, range(1, 11), mfu=lambda rate: rate / 4000)
    assert "MFU 50.0%" in stream.getvalue()


def test_hours_and_large_rates_are_readable():
    stream = io.StringIO()
    drive(stream, [1], seconds=60.0, tokens=150_000_000)
    assert stream.getvalue() == "step 1/100 loss 4.9900  2.5M tokens/s  ETA 1:39:00\n"


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v2", 23),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_peaks_of_known_chips(kind, teraflops):
    assert peak_flops(kind) == teraflops * 1e12


def test_mfu_counts_all_devices_and_is_none_where_one_is_unknown():
    chip = types.SimpleNamespace(device_kind="TPU v4")
    assert mfu(275e9, 1000.0, [chip, chip]) == pytest.approx(0.5)
    assert mfu(1.0, 1.0, [chip, types.SimpleNamespace(device_kind="cpu")]) is None
    assert mfu(1.0, 1.0, [types.SimpleNamespace(device_kind="NVIDIA H200 MIG 1g.18gb")]) is None
    assert mfu(1.0, 1.0) is None  # the tests run on a CPU


def test_a_profile_traces_the_steps_of_its_range(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    with Profile(tmp_path, "3:5") as profile:
        for step in range(8):
            with profile.step(step):
                calls.append(step)
    assert calls == [0, 1, 2, ("start", str(tmp_path / "profile")), 3, 4, ("stop",), 5, 6, 7]


def test_a_profile_that_the_run_ends_in_is_closed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with pytest.raises(KeyboardInterrupt), Profile(tmp_path, "1:5") as profile:
        for step in range(3):
            with profile.step(step):
                if step == 2:
                    raise KeyboardInterrupt
    assert calls == ["start", "stop"]


def test_a_trace_is_written_and_holds_the_scope_names(tmp_path):
    @jax.jit
    def double(x):
        with jax.named_scope("a_scope_to_find"):
            return jnp.sin(x) * 2

    x = jnp.ones(8)
    with Profile(tmp_path, "1:2") as profile:
        for step in range(3):
            with profile.step(step, pending=x):
                x = double(x)
    (trace,) = tmp_path.glob("profile/**/*.xplane.pb")
    content = trace.read_bytes()
    assert b"a_scope_to_find" in content and b"step_num" in content


def test_no_profile_leaves_no_folder(tmp_path):
    with Profile(tmp_path) as profile, profile.step(0):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["5", "5:5", "9:5", "a:b", ":5", "-1:5"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="write first:end"):
        parse_range(text)


def test_what_compiled_does_not_stay_in_the_eta():
    """The first line took a minute a step, those after it a second."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, stream=stream, clock=clock, interval=0.0)
    for step, seconds in ((1, 60.0), (2, 1.0), (3, 1.0)):
        clock.now += seconds
        progress.update(step, 10, lambda: 1.0)
    assert [line.partition("ETA ")[2] for line in stream.getvalue().splitlines()] == ["1:39:00", "1:38", "1:37"]
