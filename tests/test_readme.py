"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("preset", ["demo", "study"])
def test_the_tables_are_those_of_the_committed_results(preset):
    table = README.parent / "results" / "length_generalization" / preset / "table.txt"
    assert table.read_text(encoding="utf-8").strip() in README.read_text(encoding="utf-8")


def test_the_snippet_runs(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(snippet, str(README), "exec"), names)
    assert names["out"].logits.shape == (2, 16, 256) and names["out"].logits.dtype == jnp.float32
    assert names["new"].shape == (2, 16) and names["new"].dtype == jnp.int32
    assert "FLOPs per token" in capsys.readouterr().out
