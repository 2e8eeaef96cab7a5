"""The notebooks: 01_quickstart.py and its siblings are what is written and reviewed, the .ipynb files are made of them.

    python notebooks/build.py                        # renews the badges and setup cells, and writes the .ipynb files
    python notebooks/build.py --run 01 08            # runs notebooks here, and prints how long each took
    python notebooks/build.py --images docs/images   # draws the figures that the docs show

A source is Python in the percent format: a line ``# %%`` begins a cell of code, ``# %% [markdown]`` one of text, whose
lines are comments. What stands before the first cell is for tools. The cell ``# %% setup`` is setup_cell.py in all.
A notebook has no outputs, and the same source always makes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
REPOSITORY = "jaxlm/jaxlm"  # on GitHub, where Colab reads the notebooks
FIGURES = {"01_quickstart": "quickstart.png", "04_sparse_attention": "masks.png"}  # of the variable `figure`
SETUP = "setup"
MARK = re.compile(r"^# %%(?P<head>.*)$", re.MULTILINE)


class Cell(NamedTuple):
    """``head`` is what follows ``# %%``: nothing, ``"[markdown]"`` or ``"setup"``; ``gap`` the blank lines behind."""

    head: str
    text: str
    gap: str


def sources() -> list[Path]:
    """The notebooks' sources, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def parse(source: str) -> tuple[str, list[Cell]]:
    """What stands before the first cell, and the cells. Raises ValueError for an unknown head or an empty cell."""
    first, *rest = MARK.split(source)
    cells = []
    for head, body in zip(rest[::2], rest[1::2], strict=True):
        text = body.rstrip("\n")
        cells.append(Cell(head.strip(), text.strip("\n"), body[len(text) :]))
    for cell in cells:
        if cell.head not in ("", "[markdown]", SETUP):
            raise ValueError(f"a cell begins with # %% {cell.head}; allowed: nothing, [markdown], {SETUP}")
        if not cell.text and cell.head != SETUP:
            raise ValueError("a cell is empty")
        if cell.head == "[markdown]" and any(not line.startswith("#") for line in cell.text.splitlines()):
            raise ValueError(f"a line of text is no comment: {cell.text.splitlines()[0]}")
    return first, cells


def badge(name: str) -> str:
    """Opens the notebook on Colab."""
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def renewed(name: str, source: str) -> str:
    """The source with the badge of its notebook, behind the title, and the common setup cell.

    Raises ValueError for one without a title or a setup cell.
    """
    first, cells = parse(source)
    title, *others = cells[0].text.splitlines()
    if cells[0].head != "[markdown]" or not title.startswith("# # "):
        raise ValueError(f"{name}: the first cell is a title, '# # ...'")
    if [cell.head for cell in cells].count(SETUP) != 1:
        raise ValueError(f"{name}: there is one cell '# %% {SETUP}'")
    others = [line for line in others if "colab-badge" not in line]
    while others and others[0] == "#":
        others.pop(0)
    setup = (FOLDER / "setup_cell.py").read_text(encoding="utf-8").strip("\n")
    cells[0] = cells[0]._replace(text="\n".join([title, "#", f"# {badge(name)}", "#", *others]))
    cells = [cell._replace(text=setup) if cell.head == SETUP else cell for cell in cells]
    return first + "".join(f"# %% {cell.head}".rstrip() + f"\n{cell.text}{cell.gap}" for cell in cells)


def notebook(source: str) -> str:
    """The .ipynb of a source: format 4.5, as JSON text."""
    cells: list[dict[str, Any]] = []
    for number, cell in enumerate(parse(source)[1], 1):
        lines = cell.text.splitlines()
        if text := cell.head == "[markdown]":
            lines = [line[1:].removeprefix(" ") for line in lines]
        cells.append(
            {
                "cell_type": "markdown" if text else "code",
                "id": f"cell-{number:02d}",
                "metadata": {},
                "source": "\n".join(lines).splitlines(keepends=True),
                **({} if text else {"execution_count": None, "outputs": []}),
            }
        )
    metadata = {
        "colab": {"provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def build() -> list[Path]:
    """Renews every source and writes its notebook; returns the notebooks."""
    out = []
    for path in sources():
        source = renewed(path.stem, path.read_text(encoding="utf-8"))
        path.write_text(source, encoding="utf-8")
        out.append(path.with_suffix(".ipynb"))
        out[-1].write_text(notebook(source), encoding="utf-8")
    return out


def run(path: Path, program: str = "") -> float:
    """Runs a source from top to bottom in a process of its own; returns its seconds. Raises RuntimeError if it fails.

    ``program`` runs after it, with its names.
    """
    began = time.monotonic()
    code = f"import runpy; names = runpy.run_path({str(path)!r}); {program}"
    # Called as a notebook would be: from outside the checkout, which serves all the same where jaxlm is not installed.
    places = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{path.name} failed with exit status {done.returncode}; it had printed:\n{done.stdout}")
    return time.monotonic() - began


def draw(folder: Path) -> list[Path]:
    """Runs the notebooks of `FIGURES` and saves the figure of each, and where they come from, in ``folder``."""
    sys.path.insert(0, str(FOLDER.parent))
    from experiments import provenance

    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as beside:  # committed figures are replaced once the commit has been looked at
        for name, image in FIGURES.items():
            path = str(Path(beside) / image)
            save = f"names['figure'].savefig({path!r}, dpi=120, bbox_inches='tight', metadata={{'Software': None}})"
            run(FOLDER / f"{name}.py", save)
        command = f"python notebooks/build.py --images {folder}"
        provenance.write(Path(beside), command=command, seconds=time.monotonic() - began)
        return [Path(shutil.copy(path, folder)) for path in sorted(Path(beside).iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", nargs="+", metavar="NUMBER", help="run these notebooks; FAST=1 shrinks them")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="draw the docs' figures")
    arguments = parser.parse_args()
    if arguments.images:
        print(*draw(arguments.images), sep="\n")
    for number in arguments.run or ():
        found = [path for path in sources() if path.name.startswith(f"{number}_")]
        if not found:
            parser.error(f"no notebook {number}; there are {', '.join(path.stem for path in sources())}")
        print(f"{found[0].stem}: {run(found[0]):.0f} s", flush=True)
    if not (arguments.images or arguments.run):
        print(*build(), sep="\n")


if __name__ == "__main__":
    main()
