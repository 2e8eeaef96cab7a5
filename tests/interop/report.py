"""The table of families: what each is, and how far its logits are from those transformers recorded.

    python -m tests.interop.report [folder]

Writes table.txt and results.json into ``results/families`` (or the folder). Per family the largest difference over its
recorded cases, all tokens and all logits; float32 against float32, logits of deviation about 1.5. And which position
encodings, rotary scalings and mixers its models have.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxlm
from experiments import provenance
from jaxlm.core import registry
from jaxlm.model.spec import mixers_of
from tests.conftest import ROOT
from tests.interop.architectures import CASES
from tests.interop.pair_cases import PAIRS
from tests.interop.test_families import DATA, recorded
from tests.interop.test_t5 import logits_of as of_pairs

FOLDER = ROOT / "results" / "families"


def parts(spec: jaxlm.ModelSpec) -> list[Any]:
    """The mixers of a model's layers, those within others beside them."""
    return [one for group in spec.layers for block in group.pattern for one in mixers_of(block.mixer)]


def encodings(spec: jaxlm.ModelSpec) -> set[str]:
    """Registered names of the position encodings of a model's layers, and of their rotary scalings."""
    found = set()
    for mixer in parts(spec):
        position = getattr(mixer, "position", None)
        while position is not None:
            found.add(registry.name_of("position", position))
            if scaling := getattr(position, "scaling", None):
                found.add(registry.name_of("rotary_scaling", scaling))
            position = getattr(position, "inner", None)
    return found


def mixers(spec: jaxlm.ModelSpec) -> set[str]:
    """Registered names of the mixers of a model's layers."""
    return {registry.name_of("mixer", mixer) for mixer in parts(spec)}


Used = dict[str, list[str]]


def differences() -> tuple[dict[str, dict[str, float]], Used, Used]:
    """The largest logit difference of every case, by family; and each family's encodings and mixers."""
    out: dict[str, dict[str, float]] = {name: {} for name in registry.methods("family")}
    used: dict[str, set[str]] = {name: set() for name in out}
    mixed: dict[str, set[str]] = {name: set() for name in out}
    for name in (*CASES, *PAIRS):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, params = jaxlm.load_hf(DATA / name)
        expected = recorded(name)
        if name in PAIRS:
            logits = of_pairs(model, params, expected)[:, : expected["logits"].shape[1]]
        else:
            call = jax.jit(lambda p, tokens, model=model: model.apply({"params": p}, tokens).logits)
            logits = np.asarray(call(params, expected["input_ids"]))
        kind = json.loads((DATA / name / "config.json").read_text())["model_type"]
        for spec in model.pure.stacks.values():
            used[kind] |= encodings(spec)
            mixed[kind] |= mixers(spec)
        out[kind][name] = float(np.abs(logits - expected["logits"]).max())
        print(f"{name:<24} {out[kind][name]:.1e}", file=sys.stderr, flush=True)
    in_order = lambda found: {name: sorted(names) for name, names in sorted(found.items())}
    return out, in_order(used), in_order(mixed)


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [f"{'model_type':<16} {'cases':>5} {'largest logit difference':>25}  paper"]
    for name, cases in sorted(found.items()):
        lines.append(f"{name:<16} {len(cases):>5} {max(cases.values()):>25.1e}  {registry.get('family', name).paper}")
    worst = max(value for cases in found.values() for value in cases.values())
    count = sum(map(len, found.values()))
    lines.append(f"{len(found)} families, {count} recorded models, largest difference {worst:.1e}")
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    found, used, mixed = differences()
    record = {**provenance.collect(), "largest_logit_difference": found, "encodings": used, "mixers": mixed}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.txt").write_text(table(found), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(found), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
