"""Committed results: none is stale, each says where it comes from, and tables are what their files say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from experiments import committed, compile_kernels, render_results, studies_page, study
from experiments.committed import Result, results, stale
from experiments.state_space_claims import Row, best_rate
from jaxlm.core.errors import ConfigError
from tests.conftest import ROOT

ALL = results(ROOT)
DEMO = next(one for one in ALL if one.name == "results/length_generalization/demo")


@pytest.mark.parametrize("result", ALL, ids=lambda one: one.name)
def test_no_result_is_stale(result: Result):
    """If one is: run its command again, or give its preset back the values that it was run with."""
    assert not stale(result)


def test_every_folder_of_results_says_where_it_comes_from():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.txt")}
    assert folders == {one.folder for one in ALL}
    for one in ALL:
        last = one.runs[-1]
        assert last["command"].startswith("python -m ") and last["commit"] and last["versions"]["jax"], one.name
        assert last["hardware"]["cores"] and last["date"], one.name


def test_another_preset_is_found_stale():
    assert stale(DEMO) == ""
    config = json.loads(json.dumps(DEMO.config))
    config["batch_size"] += 1
    config["studies"][0]["steps"] = 7
    reason = stale(DEMO._replace(config=config))
    assert reason and "studies.0.steps" in reason and "was 7" in reason and "batch_size" in reason
    gone = DEMO._replace(runs=[{**DEMO.runs[-1], "command": DEMO.command.replace(":demo", ":dmeo")}])
    assert "dmeo" in (stale(gone) or "")
    changed = DEMO._replace(runs=[{**DEMO.runs[-1], "command": DEMO.command + " --config.batch_size=3"}])
    assert "batch_size is 3 today" in (stale(changed) or "")


def test_a_share_of_the_runs_is_not_the_command():
    shared = DEMO._replace(runs=[{**DEMO.runs[-1], "command": DEMO.command + " --share=2/2"}])
    assert shared.command == DEMO.command and "--share" not in DEMO.command


def test_fields_that_came_later_make_nothing_stale():
    config = dict(DEMO.config or {})
    config.pop("steps_per_call")
    assert stale(DEMO._replace(config=config)) == ""


def test_what_cannot_be_compared_says_so():
    assert stale(next(one for one in ALL if one.name.startswith("results/benchmark/"))) is None


def test_a_broken_record_is_one_line(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "provenance.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="provenance.json is not JSON"):
        results(tmp_path)


def test_verdicts_count_lines():
    text = "title\n\nline   limit   found\na   >= 1   pass\nb   <= 2   pass by median, not by worst\nc   >= 3   MISS\n"
    assert studies_page.verdicts(text) == "2 of 3 (1 by the median only)"
    idle = text.replace("   pass\n", "   pass; not converged: seed 1\n")
    assert studies_page.verdicts(idle) == "2 of 3 (1 by the median only, 1 with runs that did not converge)"
    assert studies_page.verdicts("a table") == "-"


def test_tables_of_benchmarks_are_what_their_json_says(tmp_path):
    """And one that is changed by hand is found."""
    shutil.copytree(ROOT / "results" / "benchmark", tmp_path / "results" / "benchmark")
    found = [one for one in results(tmp_path) if one.folder == "results/benchmark"]
    assert found
    for one in found:
        assert render_results.changed(one, tmp_path, check=True) == [], one.name
    table = tmp_path / "results" / "benchmark" / "decode.txt"
    table.write_text(table.read_text(encoding="utf-8").replace("jaxlm", "JAXLM"), encoding="utf-8")
    decode = next(one for one in found if one.name.endswith("decode.json"))
    assert render_results.changed(decode, tmp_path, check=True) == ["decode.txt"]


@pytest.mark.parametrize(
    "result", [one for one in ALL if one.folder.startswith("results/state_space/")], ids=lambda one: one.name
)
def test_every_seed_met_the_rate_that_is_named(result: Result):
    """Where a table says "best of several learning rates", all seeds have that one, on file and in the table."""
    assert result.config
    rows = study.read(ROOT / result.folder, Row)
    for arm in {(row.part, row.arm) for row in rows}:
        rate = best_rate(rows, *arm, seed=result.config["seeds"][0])
        met = {row.seed for row in rows if (row.part, row.arm, row.rate) == (*arm, rate)}
        assert met == set(result.config["seeds"]), arm


@pytest.mark.slow
@pytest.mark.parametrize(
    "result",
    [one for one in ALL if one.config and one.name not in render_results.BY_THEIR_COMMAND],
    ids=lambda one: one.name,
)
def test_tables_of_studies_are_what_their_files_say(result: Result):
    assert render_results.changed(result, ROOT, check=True) == []


def test_only_names_something(capsys):
    from experiments import command

    assert command.run(render_results.main, render_results.FLAGS, render_results.__doc__, ["x", "--only=nothing"]) == 2
    assert "no result in" in capsys.readouterr().err


def test_reasons_cover_results_that_are_there():
    assert set(render_results.BY_THEIR_COMMAND) <= {one.name for one in ALL}
    assert committed.FOLDER == "results"


def test_committed_kernels_compile_without_spills():
    rows = json.loads((ROOT / committed.FOLDER / "aot" / "kernels.json").read_text())["rows"]
    kernels = {name: {row["chip"] for row in rows if row["kernel"] == name} for name in {row["kernel"] for row in rows}}
    assert [row for row in rows if not compile_kernels.fits(row)] == []
    assert {"attention", "landmark", "ssd", "selective_scan"} == {name.partition("/")[0] for name in kernels}
    assert all(len(chips) == 3 for name, chips in kernels.items() if name.endswith("/tpu"))


def test_part_of_the_kernels_is_renewed(tmp_path):
    """Rows of the same cases are replaced where they stood; the others keep the commit they were compiled at."""
    row = {"chip": "v5e", "pattern": "causal", "length": 64, "width": 64, "direction": "forward", "dtype": "bfloat16"}
    old = [{"kernel": name, **row, "ok": True} for name in ("attention/tpu", "ssd/tpu", "landmark/tpu")]
    kept = tmp_path / "kernels.json"
    new = [{**old[1], "commit": "b", "ok": False}, {**old[0], "commit": "b", "width": 128}]
    assert compile_kernels.renewed(kept, new) == new
    kept.write_text(json.dumps({"commit": "a", "rows": old}))
    found = compile_kernels.renewed(kept, new)
    assert [one["commit"] for one in found] == ["a", "b", "a", "b"]
    assert [one["kernel"] for one in found] == ["attention/tpu", "ssd/tpu", "landmark/tpu", "attention/tpu"]
    assert [one["ok"] for one in found] == [True, False, True, True]


def test_pictures_that_look_alike(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    from matplotlib.image import imsave

    def png(name, pixels):
        imsave(tmp_path / name, pixels)
        return (tmp_path / name).read_bytes()

    gray = np.full((9, 9, 3), 0.5)
    rounded, dot = gray + 3 / 255, gray.copy()
    dot[4, 4] = 0.6
    first = png("a.png", gray)
    assert render_results.look_alike(first, png("b.png", rounded)) and first != (tmp_path / "b.png").read_bytes()
    assert not render_results.look_alike(first, png("c.png", dot))
    assert not render_results.look_alike(first, png("d.png", gray[:8]))
