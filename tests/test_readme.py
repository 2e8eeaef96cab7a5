"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

README = Path(__file__).parent.parent / "README.md"


TABLES = (
    "length_generalization/demo/table.txt",
    "length_generalization/study/table.txt",
    "long_context_retrieval/study/table.txt",
    "context_extension/study/table.txt",
    "growing_context/table.txt",
    "rotary_precision/table.txt",
    "families/table.txt",
    "benchmark/attention.txt",
    "benchmark/decode.txt",
    "benchmark/recurrence.txt",
    "benchmark/train_step.txt",
)


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_are_those_of_the_committed_results(table):
    text = (README.parent / "results" / table).read_text(encoding="utf-8")
    assert text.strip() in README.read_text(encoding="utf-8")


PAGES = ("state_space", "tokenization")  # each with what every study of the folder of its name found
STUDIES = [table for page in PAGES for table in sorted((README.parent / "results" / page).glob("*/table.txt"))]


@pytest.mark.parametrize("table", STUDIES, ids=lambda path: path.parent.name)
def test_a_page_has_what_every_study_found(table):
    lines = table.read_text(encoding="utf-8").split("\n\n")[1]
    assert lines.startswith("line ")
    page = README.parent / "docs" / f"{table.parent.parent.name}.md"
    assert lines in page.read_text(encoding="utf-8")


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
