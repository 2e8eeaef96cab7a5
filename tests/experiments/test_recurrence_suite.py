"""The benchmark of recurrent mixers: whom it races, and that its table says so."""

from __future__ import annotations

import pytest

from experiments.suites import recurrence as suite
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.recurrent import Recurrent


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"layers": 2, "width": 64, "vocab": 16, "length": 16, "batch": 2}
    for name, value in {"SHAPE": shape, "CHUNKS": (8,), "THREADS": (1,), "SEEN": (4, 24), "NEW": 2}.items():
        monkeypatch.setattr(suite, name, value)


def test_every_recurrent_mixer_takes_part() -> None:
    found = suite.mixers()
    kinds = {name: registry.get("mixer", name) for name in registry.methods("mixer")}
    recurrent = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Recurrent)}
    assert {"mamba", "mamba2", "retnet", "rwkv7", "gated_delta_net"} <= recurrent
    assert set(found) == {*recurrent, "attention"}
    assert all(found[name].causal for name in recurrent)


@pytest.mark.slow
def test_ours_alone(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: suite.mixers()[name] for name in ("mamba2", "attention", "retnet")}
    monkeypatch.setattr(suite, "mixers", lambda: few)
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)
    results = suite.run(1, 1, 1)
    assert list(results["contestants"]) == list(few) and results["tried"] == {}
    state = {name: [entry["state_bytes"] for entry in seen.values()] for name, seen in results["decode"].items()}
    assert state["mamba2"][0] == state["mamba2"][1] and state["attention"][0] < state["attention"][1]
    text = suite.table(results)
    assert "retnet" in text and "after 24" in text


@pytest.mark.torch
def test_peers_are_the_same_models(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    few = {name: suite.mixers()[name] for name in ("mamba2", "attention")}
    monkeypatch.setattr(suite, "mixers", lambda: few)
    monkeypatch.setattr(suite, "_decode", lambda *_: {"4": {"cpu_seconds": 1.0, "state_bytes": 1}})
    results = suite.run(1, 1, 1)
    assert list(results["contestants"]) == ["mamba2", "transformers mamba2 c8 t1", "transformers llama", "attention"]
    assert "transformers llama" in suite.table(results)


def test_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="transformers llama is not the same model"):
        suite._same_models({"mamba2": [2.0], "attention": [2.0], "transformers llama": [2.1]})
