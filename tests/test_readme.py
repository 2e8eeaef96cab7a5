"""The README's Python runs as it stands, and pages say what committed results say."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import results_page
from jaxlm.core.errors import ConfigError

README = Path(__file__).parent.parent / "README.md"


ROOT = README.parent
TABLES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.txt"))
NOT_SHOWN = {  # linked, or told in words
    "results/aot/cycles.txt",
    "results/aot/kernels.txt",
    "results/benchmark/tokenize.txt",
    "results/cache_edit/study/table.txt",
    "results/train_lm/smoke/table.txt",
}
SLOW = {"attention.md"}  # asks every implementation about every chip


def marked(page):
    slow = [pytest.mark.slow] * (page.parent.name == "reference" and page.name in SLOW)
    return pytest.param(page, marks=slow, id=page.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", [marked(page) for page in results_page.pages(ROOT)])
def test_a_page_says_what_its_results_say(page):
    """As `python -m experiments.results_page` writes it."""
    assert results_page.refreshed(page, ROOT) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_on_a_page(table):
    text = "".join(page.read_text(encoding="utf-8") for page in results_page.pages(ROOT))
    folder = table.removesuffix("/table.txt")
    marks = (f"<!-- found: {folder} -->", f"<!-- table: {table} -->")
    assert any(mark in text for mark in marks) or table in NOT_SHOWN


def test_marks_are_refreshed(tmp_path):
    study = tmp_path / "results" / "one"
    study.mkdir(parents=True)
    (study / "table.txt").write_text("one: a claim\n\nline  limit\nfirst 3\n\narm  value\n", encoding="utf-8")
    (study / "one.png").touch()
    run = {"command": "python -m one", "commit": "0123456789", "hardware": {"cores": 2, "cpu": "CPU"}}
    runs = [{**run, "versions": {"jax": "1"}}, {**run, "commit": "9876543210", "versions": {"jax": "2"}}]
    (study / "provenance.json").write_text(json.dumps(runs), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(
        "a\n<!-- found: results/one -->\nold\n<!-- end -->\nb <!-- table: results/one/table.txt -->\n<!-- end -->\n",
        encoding="utf-8",
    )
    text = results_page.refreshed(page, tmp_path)
    assert text.startswith(
        "a\n<!-- found: results/one -->\n*Claim:* a claim.\n\n```\nline  limit\nfirst 3\n```\n\n"
        "![one](../results/one/one.png)"
    )
    assert "`python -m one`, commit 0123456 and 9876543, 2 cores (CPU), jax 2; all values in [`table.txt`]" in text
    assert "old" not in text and text.count("first 3") == 2
    page.write_text(text.replace("results/one/table.txt -->", "results/two.txt -->"), encoding="utf-8")
    with pytest.raises(ConfigError, match="the mark table: results/two.txt: it names nothing in"):
        results_page.refreshed(page, tmp_path)
    page.write_text("<!-- tabel: x -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="page.md: the mark tabel: x: .*'tabel'.*table"):
        results_page.refreshed(page, tmp_path)


def test_a_newcomer_reads_it_in_minutes():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


def test_the_snippets_run(capsys, tmp_path, monkeypatch):
    """One after the other, in a folder that holds the checkpoint they speak of (a tiny one)."""
    (tmp_path / "Llama-3.2-1B").symlink_to(README.parent / "tests" / "interop" / "data" / "llama")
    monkeypatch.chdir(tmp_path)
    first, *others = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(first, str(README), "exec"), names)
    assert names["out"].logits.shape == (2, 16, 256) and names["out"].logits.dtype == jnp.float32
    assert names["new"].shape == (2, 16) and names["new"].dtype == jnp.int32
    assert "FLOPs per token" in capsys.readouterr().out
    for snippet in others:
        exec(compile(snippet, str(README), "exec"), names)
    assert (tmp_path / "out" / "model.safetensors").exists()
