"""The registry: tables that cost nothing to read, helpful errors, methods from outside."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import ClassVar

import pytest

import jaxlm
from jaxlm.core import registry
from jaxlm.core.config import Spec, make
from jaxlm.core.errors import ConfigError, choose, unknown


def test_listing_names_imports_nothing():
    program = """
import sys
from jaxlm.core import registry
for slot in registry.ROOMS:
    for name, path in registry.methods(slot).items():
        assert f"{registry.ROOMS[slot]}.{path.split(':')[0]}" not in sys.modules, path
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("slot", registry.ROOMS)
def test_every_name_leads_to_its_class_and_back(slot):
    table = registry.methods(slot)
    assert table
    for name in table:
        found = registry.get(slot, name)
        if slot == "family":  # data, not classes
            assert found.model_type == name
            continue
        assert registry.name_of(slot, found) == name and registry.name_of(slot, found()) == name
    assert jaxlm.list(slot).keys() == table.keys()


def one_line(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_say_what_was_meant():
    text = one_line(lambda: registry.get("position", "rotery"))
    assert "'rotery'" in text and "did you mean 'rotary'" in text and "alibi" in text
    assert "did you mean 'position'" in one_line(lambda: registry.methods("positions"))
    far = one_line(lambda: registry.get("position", "quaternion_wavelets"))
    assert "did you mean" not in far and "rotary" in far
    assert "(none)" in str(unknown("thing", "x", []))
    assert choose("thing", "a", ("a", "b")) == "a"
    assert "allowed: a, b" in one_line(lambda: choose("thing", "c", ("b", "a")))


@dataclasses.dataclass(frozen=True)
class Outside(Spec):
    paper: ClassVar[str] = "none: of this test"
    amount: int = 1


def test_a_method_from_outside(monkeypatch):
    monkeypatch.setattr(registry, "_EXTRA", dict(registry._EXTRA))
    assert "Outside" in one_line(lambda: registry.name_of("norm", Outside))
    assert registry.register("norm", "outside", Outside) is Outside
    again = dataclasses.make_dataclass(
        "Outside", [], bases=(Spec,), frozen=True, namespace={"__module__": __name__, "paper": "again"}
    )
    assert registry.register("norm", "outside", again) is again  # a notebook's cell is run twice
    assert registry.describe("norm")["outside"] == "again" and "Outside" in one_line(
        lambda: registry.name_of("norm", Outside)
    )
    assert jaxlm.register("norm", "outside")(Outside) is Outside
    assert registry.get("norm", "outside") is Outside and registry.name_of("norm", Outside()) == "outside"
    assert make("norm", {"name": "outside", "args": {"amount": 2}}) == Outside(2)
    assert "outside" in registry.methods("norm") and "outside" not in registry.methods("ffn")
    assert registry.describe("norm")["outside"] == Outside.paper
    for name in ("rms", "outside"):
        other = type("Other", (Outside,), {})
        assert "already registered" in one_line(lambda name=name, other=other: registry.register("norm", name, other))
    assert "slot" in one_line(lambda: registry.register("nrom", "outside", Outside))
