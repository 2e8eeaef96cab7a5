"""Metric writers: valid JSON lines, a resumed file equal to an uninterrupted one, optional trackers by name."""

from __future__ import annotations

import json
import math
import struct
import sys
import types

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.train import metrics
from jaxlm.train.metrics import Jsonl, open_writers, read_jsonl


def strict(line: str) -> dict:
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def run(path, steps, resume_step=None):
    writer = Jsonl(path, resume_step)
    for step in steps:
        writer.write(step, {"loss": 1 / step, "tokens": 10 * step})
    writer.close()


def test_one_json_object_a_line_as_soon_as_it_is_written(tmp_path):
    writer = Jsonl(tmp_path / "metrics.jsonl")
    writer.write(3, {"loss": np.float32(0.1), "count": 7, "host": np.int64(2)})
    text = (tmp_path / "metrics.jsonl").read_text()  # before close: flushed
    assert text.endswith("\n") and strict(text) == {"step": 3, "loss": float(np.float32(0.1)), "count": 7, "host": 2.0}
    writer.close()


def test_values_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = Jsonl(path)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": np.float32(-np.inf)})
    writer.close()
    assert strict(path.read_text()) == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    (line,) = read_jsonl(path)
    assert math.isnan(line["a"]) and (line["b"], line["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("tail", ["", '{"step": 8, "lo', '{"step": 5, "loss": 0.2, "tok'])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, tail):
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    run(straight, range(1, 11))
    run(resumed, range(1, 8))
    with resumed.open("a") as file:
        file.write(tail)  # killed in the middle of a line
    run(resumed, range(6, 11), resume_step=5)
    assert resumed.read_bytes() == straight.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.jsonl", "straight.jsonl"]


def test_lines_are_dropped_all_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    run(path, range(1, 8))
    before = path.read_bytes()
    monkeypatch.setattr(metrics.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigError, match="cannot write .*metrics.jsonl: No space left on device"):
        Jsonl(path, resume_step=3)
    assert path.read_bytes() == before


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    run(tmp_path / "metrics.jsonl", [1, 2])
    run(tmp_path / "metrics.jsonl", [1])
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


def test_an_unwritable_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot write .*metrics.jsonl: No such file") as error:
        open_writers([], tmp_path / "missing", {})
    assert "\n" not in str(error.value)


def test_an_unknown_writer_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="unknown metrics writer 'tensorbord'; did you mean 'tensorboard'"):
        open_writers(["tensorbord"], tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    with pytest.raises(ConfigError, match=rf"{name}.* needs {module}: pip install 'jaxlm\[log\]'") as error:
        open_writers([name], tmp_path, {})
    assert "\n" not in str(error.value)


def test_tensorboard_events_hold_the_values(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    writer = open_writers(["tensorboard"], tmp_path, {"width": 8})
    writer.write(2, {"loss": 1.5})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data, at, scalars = events.read_bytes(), 0, {}
    while at < len(data):  # TFRecord: length, checksum, bytes, checksum
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        scalars |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        at += 16 + length
    assert scalars[2, "loss"] == 1.5
    assert [line["loss"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1.5]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_the_calls_they_expect_and_resume_the_same_run(tmp_path, monkeypatch, name):
    calls = []
    fake = types.ModuleType(name)
    fake.init = lambda **settings: calls.append(("init", settings))
    fake.log = lambda values, step: calls.append(("log", step, values))
    fake.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, name, fake)
    workdir = tmp_path / "study" / "run7"
    workdir.mkdir(parents=True)

    for resume_step in (None, 4):
        writer = open_writers([name], workdir, {"width": 8}, resume_step)
        writer.write(5, {"loss": 2.0})
        writer.close()
    first, second = calls[:3], calls[3:]
    assert first == second  # the same run goes on
    assert first[1:] == [("log", 5, {"loss": 2.0}), ("finish",)]
    settings = first[0][1]
    assert settings["project"] == "study" and settings["config"] == {"width": 8} and settings["resume"] == "allow"
    run_name = settings["id" if name == "wandb" else "name"]
    assert run_name.startswith("run7-")
    other = tmp_path / "study" / "again" / "run7"
    other.mkdir(parents=True)
    open_writers([name], other, {}).close()
    assert calls[-2][1]["id" if name == "wandb" else "name"] != run_name
