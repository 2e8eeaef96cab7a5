"""The study of cache edits: its edits make the text they should, and a toy of it runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.cache_edit import get_config
from experiments import cache_edit as study


@pytest.mark.parametrize("kind", study.KINDS)
def test_edits_make_the_text(kind):
    text, others = np.arange(40).reshape(2, 20), -1 - np.arange(40).reshape(2, 20)
    one = study.make_edit(kind, 5, text, others, 7)
    made = np.concatenate((one.old[:, : one.at], one.insert, one.old[:, one.at + one.delete :]), 1)
    np.testing.assert_array_equal(made, text)
    assert {"insert": one.delete, "delete": one.insert.size}.get(kind, 0) == 0
    assert (one.old[:, one.at : one.at + one.delete] < 0).all()


def test_a_toy_of_the_study(tmp_path):
    """One layer: the edit is exact, and leaving keys where they were is not."""
    (tmp_path / "text").mkdir()
    for i in range(60):
        (tmp_path / "text" / f"{i}.txt").write_text("".join(chr(97 + (j * j + i) % 23) for j in range(80)))
    config = get_config("smoke")
    config = dataclasses.replace(
        config, models=config.models[:1], source=str(tmp_path / "text"), context=32, steps=2, windows=2
    )
    found = study.run(config, tmp_path)
    assert {(row.kind, row.way) for row in found} == {(kind, way) for kind in study.KINDS for way in study.WAYS}
    drift = {way: [row.kl for row in found if row.way == way] for way in study.WAYS}
    assert max(map(abs, drift["again"] + drift["edited"])) < 1e-5 < 1e-4 < min(drift["unmoved"])
    assert study.run(config, tmp_path) == study.study.read(tmp_path, study.Row)  # nothing is done again
    assert len(study.table(found).splitlines()) == 1 + len(found)
