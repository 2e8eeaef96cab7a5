"""Puts what committed results and the library itself say into the pages that tell of them, between marks:

    <!-- found: results/tokenization/markov -->      claim, lines that passed or missed, figure, command, versions
    <!-- table: results/benchmark/decode.txt -->     a file as it stands
    <!-- methods: patcher -->                        the methods of a slot: what each is, its claim, its paper
    <!-- positions: encodings -->                    and others of `KINDS`, each a module of its own
    ...
    <!-- end -->

    python -m experiments.results_page               README.md and docs/**/*.md
    python -m experiments.results_page --check       changes nothing, and fails where a page is not what its results say

All else on a page is written by hand. A study's folder holds table.txt, provenance.json, results.csv and a figure.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections import Counter
from pathlib import Path

from absl import flags

from experiments import command
from experiments.committed import Result, of_folder
from experiments.page_parts import claim, sentences, table
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose

FLAGS = flags.FlagValues()
CHECK = flags.DEFINE_bool("check", False, "only say which pages would change", flag_values=FLAGS)
ROOT = flags.DEFINE_string("root", ".", "the checkout", flag_values=FLAGS)

MARKED = re.compile(r"<!-- (\w+): (\S+) -->\n.*?<!-- end -->", re.DOTALL)
BLOCK = "```"

# What writes the marks of a kind: `block(name, root, beside)` of a module, imported where a page asks; "" for this one.
KINDS = {
    "found": "",
    "table": "",
    "methods": "",
    "library": "experiments.library_page",
    "positions": "experiments.positions_page",
    "mixers": "experiments.mixers_page",
    "attention": "experiments.attention_page",
    "studies": "experiments.studies_page",
}


def pages(root: Path) -> list[Path]:
    """The pages of a checkout."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def refreshed(page: Path, root: Path) -> str:
    """A page's text with what its results say now. Raises `ConfigError` for a mark whose results are not there."""

    def block(match: re.Match[str]) -> str:
        kind, name = match.groups()
        try:
            module = KINDS[choose("mark", kind, KINDS)]
            body = (
                importlib.import_module(module).block(name, root, page.parent)
                if module
                else _own(kind, name, page, root)
            )
        except ConfigError as error:
            raise ConfigError(f"{page}: the mark {kind}: {name}: {error}") from None
        return f"<!-- {kind}: {name} -->\n{body}\n<!-- end -->"

    return MARKED.sub(block, page.read_text(encoding="utf-8"))


def _own(kind: str, name: str, page: Path, root: Path) -> str:
    if kind == "methods":
        return methods(name)
    require((root / name).exists(), f"it names nothing in {root.resolve()}")
    return (
        found(of_folder(root / name, root), root, page.parent)
        if kind == "found"
        else f"{BLOCK}\n{_text(root / name)}\n{BLOCK}"
    )


def methods(slot: str) -> str:
    """A slot's methods as a table, of what stands at the head of each one's file, or of its class in a shared one."""
    kinds = {name: registry.get(slot, name) for name in sorted(registry.methods(slot))}
    kinds = {name: kind for name, kind in kinds.items() if kind.__module__.startswith("jaxlm.")}
    homes = Counter(kind.__module__ for kind in kinds.values())
    lines = []
    for name, kind in kinds.items():
        doc = inspect.getdoc(importlib.import_module(kind.__module__)) or ""
        said = [claim(doc, word) for word in ("Claimed", "Claims")]
        what = (inspect.getdoc(kind) or "") if homes[kind.__module__] > 1 else doc
        shown = sentences(what.partition("\n\n")[0]).replace("<", "&lt;")
        lines.append([f"`{name}`", shown, next(filter(None, said), "-"), kind.paper])
    return table(["name", "what it is", "claimed", "paper"], lines)


def found(result: Result, root: Path, beside: Path) -> str:
    """What a study claims to test and what it found, for a page in the folder ``beside``."""
    folder, last = root / result.name, result.runs[-1]
    head, *parts = _text(folder / "table.txt").split("\n\n")
    lines = next((part for part in parts if part.startswith("line ")), None)
    link = lambda path: Path(os.path.relpath(path, beside)).as_posix()
    shown = [f"*Claim:* {' '.join(head.partition(': ')[2].split())}."] if lines else []
    shown += [f"{BLOCK}\n{lines or _text(folder / 'table.txt')}\n{BLOCK}"]
    shown += [f"![{figure.stem}]({link(figure)})" for figure in sorted(folder.glob("*.png"))]
    machine = f"{last['hardware']['cores']} cores ({last['hardware']['cpu']}), jax {last['versions']['jax']}"
    files = " and ".join(f"[`{name}`]({link(folder / name)})" for name in ("table.txt", "results.csv"))
    shown.append(f"`{result.command}`, commit {result.commits}, {machine}; all values in {files}.")
    return "\n\n".join(shown)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip("\n")


def renew(root: Path, check: bool = False) -> list[Path]:
    """Rewrites the pages that are not as they should be, or only finds them; returns them."""
    changed = []
    for page in pages(root):
        text = refreshed(page, root)
        if text != page.read_text(encoding="utf-8"):
            changed.append(page)
            if not check:
                page.write_text(text, encoding="utf-8")
    return changed


def main() -> int:
    changed = renew(Path(ROOT.value), CHECK.value)
    print("\n".join(f"{page}: {'is not what its results say' if CHECK.value else 'rewritten'}" for page in changed))
    return 1 if changed and CHECK.value else 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
