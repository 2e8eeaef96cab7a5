"""docs/mixers.md is generated, complete and true: of this registry and these results."""

from __future__ import annotations

import json
from pathlib import Path

from experiments import mixers_page
from jaxlm.core import registry
from tests.conftest import ROOT


def page(monkeypatch) -> str:
    monkeypatch.chdir(ROOT)
    used = json.loads((ROOT / "results" / "families" / "results.json").read_text())["mixers"]
    return mixers_page.page(used, Path("results/state_space"))


def test_the_page_is_what_would_be_written(monkeypatch):
    assert (ROOT / "docs" / "mixers.md").read_text() == page(monkeypatch)


def test_it_has_every_mixer_with_its_state(monkeypatch):
    lines = {line.split("`")[1]: line for line in page(monkeypatch).splitlines() if line.startswith("| `")}
    own = {name for name in registry.methods("mixer") if registry.get("mixer", name).__module__.startswith("jaxlm.")}
    assert lines.keys() == own
    assert "| 512 a token |" in lines["attention"]  # keys and values of 256
    assert f"| {8 * 128 * 64 + 3 * (512 + 2 * 128):,} |" in lines["mamba2"]  # heads' states, and the convolution's
