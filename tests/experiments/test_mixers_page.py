"""The table of docs/mixers.md is complete: of this registry. That the page has it holds tests/test_readme.py."""

from __future__ import annotations

from experiments import mixers_page
from jaxlm.core import registry
from tests.conftest import ROOT


def test_it_has_every_mixer_with_its_state():
    page = mixers_page.block("all", ROOT, ROOT / "docs")
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    own = {name for name in registry.methods("mixer") if registry.get("mixer", name).__module__.startswith("jaxlm.")}
    assert lines.keys() == own
    assert "| 512 a token |" in lines["attention"]  # keys and values of 256
    assert f"| {8 * 128 * 64 + 3 * (512 + 2 * 128):,} |" in lines["mamba2"]  # heads' states, and the convolution's
