"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp

README = Path(__file__).parent.parent / "README.md"


def test_the_snippet_runs(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(snippet, str(README), "exec"), names)
    assert names["out"].logits.shape == (2, 16, 256) and names["out"].logits.dtype == jnp.float32
    assert names["new"].shape == (2, 16) and names["new"].dtype == jnp.int32
    assert "FLOPs per token" in capsys.readouterr().out
