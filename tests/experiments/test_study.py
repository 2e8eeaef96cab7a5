"""What studies share: rows that come back from their file, and folders that cannot be one."""

from __future__ import annotations

import types
from typing import NamedTuple

import pytest

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
