"""The context-extension study: a toy of it runs, continues and replots; its text; its page of all methods."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.context_extension import PRESETS, get_config
from experiments import context_extension as study
from experiments import study as frame
from experiments.context_extension_report import FILES, Row
from experiments.extension_text import COPIES, Needle, Planted, Text
from jaxlm.core.errors import ConfigError
from jaxlm.data.loader import Loader
from jaxlm.data.pack import rows
from jaxlm.data.text import read
from jaxlm.tokenize.byte import ByteTokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i}.txt").write_text("".join(chr(97 + (j * j + i) % 23) for j in range(400)))
    return str(folder)


@pytest.mark.slow
def test_a_toy_of_the_study(source, tmp_path, capsys):
    """One base, one method, one tuned arm; what is there is not made again, and the table is of the files alone."""
    config = get_config("smoke")
    config = dataclasses.replace(
        config,
        bases=config.bases[:1],
        methods=("streaming",),
        source=source,
        steps=2,
        tune_steps=2,
        windows=2,
        passkeys=2,
        depths=2,
        decode_steps=1,
        stream=2,
    )
    results = study.Results.read(tmp_path, missing_ok=True)
    study.run(config, results)
    again = study.Results.read(tmp_path)
    arms = {"rotary", "streaming", "tuned_clex_1x"}
    assert {row.arm for row in again.losses} == {row.arm for row in again.passkeys} == arms
    assert {row.arm for row in again.decoding} == arms and {row.arm for row in again.streams} == {"streaming"}
    sizes = {(row.arm, row.length): row.state_bytes for row in again.decoding}
    assert sizes["streaming", 64] == sizes["streaming", 256] < sizes["rotary", 256]
    before = {file: (tmp_path / file).read_bytes() for file in FILES.values()}
    study.run(config, again)
    assert {file: (tmp_path / file).read_bytes() for file in FILES.values()} == before
    for row in again.losses:
        assert row.loss > 0
    capsys.readouterr()


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "checkpoint"])
def test_presets_are_sound(preset):
    config = get_config(preset)
    assert config.bases[0].label == "rotary"


def test_windows_of_all_lengths_end_at_the_same_token(source):
    text = Text(read(source), ByteTokenizer())
    long, short = text.windows(64, 5, 64), text.windows(16, 5, 64)
    assert long.shape == (5, 65) and short.shape == (5, 17)
    np.testing.assert_array_equal(long[:, -17:], short)
    with pytest.raises(ConfigError, match="no held-out document has more than 1000 tokens"):
        text.windows(16, 5, 1000)


def test_passkeys_are_hidden_and_asked_for(source):
    needle, row = Needle((255,), tuple(range(245, 255))), np.arange(40, dtype=np.int32)
    hidden = needle.hide(row, (0.5,), np.random.default_rng(0))
    key = hidden[-4:]
    assert len(hidden) == 40 and hidden[-5] == 255 and len(set(key.tolist())) == 4
    assert [i for i in range(36) if (hidden[i : i + 4] == key).all()] == [16]
    np.testing.assert_array_equal(hidden[hidden < 245], np.arange(30))  # what is left is the row's beginning
    with pytest.raises(ConfigError, match="no room for 5 passkeys"):
        needle.hide(row[:20], (0.1,) * 4, np.random.default_rng(0))
    text = Text(read(source), ByteTokenizer())
    batches = Planted(Loader(rows(text.train, 64, "pack"), 4, seed=0), text.needle, 0.5)
    batch = batches(3)
    assert ((batch["targets"] == 255).sum(1) >= 1).tolist() == [True, True, False, False]
    assert (batch["tokens"][:2] == 255).sum() == 2 * (COPIES + 1)
    for name, array in batches(3).items():
        np.testing.assert_array_equal(array, batch[name])


def test_rows_come_back_from_their_file(tmp_path):
    made = [Row("b", 1, 64, "tail", 0.123456), Row("a", 0, 64, "all", 1.5e-6)]
    frame.save(made, tmp_path, Row)
    assert frame.read(tmp_path, Row) == [Row("a", 0, 64, "all", 1.5e-6), Row("b", 1, 64, "tail", 0.1235)]
    (tmp_path / frame.FILE).write_text("arm,seed,length,part,loss\na,0,64\n")
    with pytest.raises(ConfigError, match="line 2"):
        frame.read(tmp_path, Row)
    (tmp_path / frame.FILE).write_text("arm,seed\n")
    with pytest.raises(ConfigError, match="expected the columns arm,seed,length,part,loss"):
        frame.read(tmp_path, Row)
    with pytest.raises(ConfigError, match="run the study first"):
        frame.read(tmp_path / "nowhere", Row)
