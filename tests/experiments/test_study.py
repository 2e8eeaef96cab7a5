"""What studies share: rows that come back from their file, and folders that cannot be one."""

from __future__ import annotations

import threading
import types
from typing import NamedTuple

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import study
from jaxlm.core.errors import ConfigError


class Row(NamedTuple):
    name: str
    at: int
    value: float


def test_rows_come_back_with_four_digits(tmp_path):
    values = [0.0, 12.34567, -0.98765, 0.0001534, 0.012346, 3.21e-7]
    study.save([Row("a", i, x) for i, x in enumerate(values)], tmp_path, Row)
    found = study.read(tmp_path, Row)
    assert [row.at for row in found] == list(range(len(values)))
    assert [row.value for row in found] == [0.0, 12.3457, -0.9877, 0.0001534, 0.01235, 3.21e-7]
    study.save(found, tmp_path, Row)
    assert study.read(tmp_path, Row) == found


def test_rows_added_at_the_same_time_are_all_there(tmp_path):
    adders = [
        threading.Thread(target=study.add, args=([Row("a", i, 0.5), Row("b", i, 0.25)], tmp_path, Row))
        for i in range(16)
    ]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert sorted(study.read(tmp_path, Row)) == sorted(
        Row(n, i, x) for i in range(16) for n, x in (("a", 0.5), ("b", 0.25))
    )


def test_what_is_added_comes_back_as_it_is_on_file(tmp_path):
    """A third is no longer a third: what is decided in the run is what would be decided by the file."""
    found = study.add([Row("a", 0, 1 / 3)], tmp_path, Row)
    assert found == study.read(tmp_path, Row) and found[0][2] != 1 / 3


def share_of(jobs, value):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    with flagsaver.flagsaver(share=value):
        return study.share(jobs)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shares_are_the_whole(parts):
    found = [share_of(range(7), f"{part + 1}/{parts}") for part in range(parts)]
    assert sorted(job for part in found for job in part) == list(range(7))


@pytest.mark.parametrize("value", ["0/2", "3/2", "2", "a/b", "/", "-1/2"])
def test_what_is_no_share(value):
    with pytest.raises(flags.IllegalFlagValueError, match=f"--share={value}: expected k/n"):
        share_of([1], value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gs://bucket/run", "--workdir=gs://bucket/run: expected a folder of the file system; an object store can be"),
        ("{file}", "is no folder that can be written to"),
        ("{file}/below", "is no folder that can be written to"),
    ],
)
def test_what_is_no_folder(tmp_path, value, message):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        study.folder(types.SimpleNamespace(name="workdir", value=value.format(file=tmp_path / "file")))
    assert study.folder(types.SimpleNamespace(name="workdir", value=str(tmp_path / "new"))) == tmp_path / "new"
    assert not (tmp_path / "new").exists()
