"""Versions of a config are migrated or refused in one line; a differing config or foreign workdir names its fields."""

from __future__ import annotations

import functools
import json
import os

import pytest

from jaxlm.core.config import renewed, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.train.resume import Migration, check_compatible, check_version
from jaxlm.train.workdir import claim_workdir


def rename(meta: dict) -> dict:
    meta["config"]["width"] = meta["config"].pop("dim")
    return meta


MIGRATIONS = {1: Migration("rope_base became rotary.base"), 2: Migration("dim became width", rename)}


def test_an_older_version_is_migrated():
    old = {"config_version": 2, "config": {"dim": 8}, "step": 5}
    assert check_version(old, 3, MIGRATIONS) == {"config_version": 3, "config": {"width": 8}, "step": 5}
    assert old["config"] == {"dim": 8}
    assert check_version(old, 2, MIGRATIONS) == old


@pytest.mark.parametrize(
    "meta, message",
    [
        (
            {"config_version": 1},
            "config_version 1, this jaxlm 3, .* from 1 to 2: rope_base became rotary.base",
        ),
        ({"config_version": 0}, "no migration from 0 to 1: no record of what changed"),
        ({"config_version": 4}, "config_version 4, newer than this jaxlm's 3; update jaxlm"),
        ({}, "config_version None; expected a whole number of at most 3"),
        ({"config_version": "3"}, "config_version '3'; expected a whole number"),
    ],
)
def test_a_version_that_cannot_be_used(meta, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_version(meta, 3, MIGRATIONS)
    assert "\n" not in str(error.value)


def test_an_incompatible_config_names_its_fields():
    saved = {"model": {"width": 128, "layers": [1, 2]}, "log": {"every": 1}, "logits": 1}
    check_compatible({"model": {"width": 128, "layers": (1, 2)}, "log": {"every": 1}, "logits": 1}, saved)
    new = {"model": {"width": 256, "layers": (1, 2)}, "log": {"every": 9}, "logits": 2}
    with pytest.raises(ConfigError) as error:
        check_compatible(new, saved, ignore=("log",))
    assert str(error.value) == "resuming with an incompatible config: model.width 256 != 128; logits 2 != 1"
    check_compatible(new, saved, ignore=("log", "logits", "model.width"))


def test_claim_and_claim_again(tmp_path):
    config = {"width": 8, "shape": (1, 2), "log": {"every": 1}}
    folder = claim_workdir(tmp_path / "a" / "run", config)
    (folder / "metrics.jsonl").write_text("kept")
    assert claim_workdir(folder, config) == folder
    with pytest.raises(ConfigError, match=r"belongs to another configuration \(width 9 != 8; log.every 2 != 1\)"):
        claim_workdir(folder, {"width": 9, "shape": [1, 2], "log": {"every": 2}})
    assert json.loads((folder / "config.json").read_text()) == {"width": 8, "shape": [1, 2], "log": {"every": 1}}
    claim_workdir(folder, config | {"log": {"every": 2}}, ignore=("log",))
    assert json.loads((folder / "config.json").read_text())["log"] == {"every": 2}
    assert sorted(os.listdir(folder)) == ["config.json", "metrics.jsonl"]


def test_fields_that_an_earlier_version_lacked_have_their_defaults(tmp_path):
    config = to_dict(ModelSpec(layers=(Group((Block(mixer="mamba2"),)),)))
    renew = functools.partial(renewed, ModelSpec)
    earlier = json.loads(json.dumps(config))
    block = earlier["layers"][0]["pattern"][0]
    del earlier["remat"], block["share"], block["mixer"]["args"]["scales"]
    (tmp_path / "config.json").write_text(json.dumps(earlier | {"corpus": "text"}))
    claim_workdir(tmp_path, config | {"corpus": "text"}, renew=renew)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(config | {"corpus": "text"}))
    for change in ({"remat": "none"}, {"width": 3}):  # another value, and one that no model has
        with pytest.raises(ConfigError, match=f"belongs to another configuration .*{next(iter(change))}"):
            claim_workdir(tmp_path, config | {"corpus": "text"} | change, renew=renew)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds files but no config.json"):
        claim_workdir(tmp_path, {"width": 8})
    assert os.listdir(tmp_path) == ["thesis.tex"]
    for content in (b"not json", b"\xff\xfe\x00"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match="config.json is not JSON"):
            claim_workdir(tmp_path, {"width": 8})
        assert (tmp_path / "config.json").read_bytes() == content


def test_a_claim_that_was_cut_short_is_no_foreign_folder(tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"wid')
    assert claim_workdir(tmp_path, {"width": 8}) == tmp_path
    assert os.listdir(tmp_path) == ["config.json"]


def test_an_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(ConfigError, match="cannot be written: ") as error:
            claim_workdir(path, {})
        assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workdir(tmp_path):
    claim_workdir(tmp_path / "run", {})
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        claim_workdir(tmp_path / "run", {})
