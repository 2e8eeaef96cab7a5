"""Makes the tables and figures of all committed results again, from their result files alone: nothing is trained.

    python -m experiments.render_results                 rewrites tables and figures in results/, then the pages
    python -m experiments.render_results --check         writes nothing there, and fails where a table would change
    python -m experiments.render_results --only=markov   results with this in their name

Each study draws what it always draws (``--replot``) of the files in its folder, in a process of its own; benchmarks
make their table of their JSON. A result whose preset has changed since is stale: it is left alone and named
(`experiments.committed` has the rule).
"""

from __future__ import annotations

import importlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from absl import flags

from experiments import command, study
from experiments.committed import Result, results, stale
from jaxlm.core.config import require

FLAGS = flags.FlagValues()
CHECK = flags.DEFINE_bool("check", False, "compare tables only, and write nothing into results/", flag_values=FLAGS)
ONLY = flags.DEFINE_string("only", "", "results whose name has this in it", flag_values=FLAGS)
ROOT = flags.DEFINE_string("root", ".", "the checkout", flag_values=FLAGS)


# The tables of these two were printed with more digits than their files keep, so they are left, and the figures drawn.


def growing_context(folder: Path) -> None:
    from experiments import growing_context as of

    study.figures(lambda: of.draw(study.read(folder, of.Row), folder))


def rotary_precision(folder: Path) -> None:
    from experiments import rotary_precision as of

    study.figures(lambda: of.draw(study.read(folder, of.Score, file="scores.csv"), folder))


def of_json(folder: Path, name: str) -> None:
    """The table of one JSON file of a benchmark or of the compilers."""
    record = json.loads((folder / name).read_text(encoding="utf-8"))
    if folder.name == "benchmark":
        text = importlib.import_module(f"experiments.suites.{record['suite']}").table(record)
    else:
        maker = {"kernels.json": "experiments.compile_kernels", "cycles.json": "experiments.aot.cycles"}[name]
        text = importlib.import_module(maker).table(record["rows"])
    (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def replotted(result: Result, folder: Path, root: Path) -> None:
    """The study's own program, on a folder of its results."""
    program = result.command.split()[2]
    call = [sys.executable, "-m", program, f"--config={result.source}", "--replot", f"--workdir={folder.resolve()}"]
    done = subprocess.run(call, cwd=root, capture_output=True, text=True)
    require(done.returncode == 0, f"{' '.join(call[1:])}: {done.stderr.strip()[-500:]}")


# Results whose tables are not made of their files here, and why.
BY_THEIR_COMMAND = {
    "results/aot/bundles.json": "counts without a table, held by tests",
    "results/families/results.json": "table and record are written together by python -m tests.interop.report",
    "results/train_lm/smoke": "its table needs metrics.jsonl, which is not committed",
}


def renderer(result: Result, root: Path) -> Callable[[Path], None]:
    """What makes tables and figures in a folder that holds the result's files."""
    if result.name.endswith(".json"):
        return lambda folder: of_json(folder, Path(result.name).name)
    own = {"results/growing_context": growing_context, "results/rotary_precision": rotary_precision}.get(result.name)
    return own or (lambda folder: replotted(result, folder, root))


def changed(result: Result, root: Path, check: bool) -> list[str]:
    """Renders a result and names the tables that came out other than they were. Figures that look as they did stay."""
    folder = root / result.folder
    before = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    if not check:
        figures = {path: path.read_bytes() for path in folder.glob("*.png")}
        renderer(result, root)(folder)
        for path, data in figures.items():
            if look_alike(data, path.read_bytes()):
                path.write_bytes(data)
        return [name for name, text in before.items() if (folder / name).read_text(encoding="utf-8") != text]
    with tempfile.TemporaryDirectory() as beside:
        copy = Path(beside) / folder.name
        shutil.copytree(folder, copy)
        renderer(result, root)(copy)
        return [name for name, text in before.items() if (copy / name).read_text(encoding="utf-8") != text]


def look_alike(one: bytes, other: bytes) -> bool:
    """Whether two PNGs differ by no more than what processors round differently: 5 of 255 steps in any pixel."""
    from matplotlib.image import imread

    a, b = (imread(io.BytesIO(data)) for data in (one, other))
    return a.shape == b.shape and bool(abs(a - b).max() <= 5 / 255)


def main() -> int:
    root, bad = Path(ROOT.value), 0
    chosen = [one for one in results(root) if ONLY.value in one.name]
    require(bool(chosen), f"--only={ONLY.value}: no result in {root.resolve()} has this in its name")
    for one in chosen:
        if why := BY_THEIR_COMMAND.get(one.name):
            print(f"{one.name}: not rendered: {why}")
        elif reason := stale(one):
            bad += 1
            print(f"{one.name}: STALE, not rendered: {reason}; run {one.command}")
        else:
            tables = changed(one, root, CHECK.value)
            bad += bool(tables) and CHECK.value
            print(
                f"{one.name}: " + (f"{', '.join(tables)} came out differently" if tables else "as it was"), flush=True
            )
    if not CHECK.value:
        from experiments import results_page

        for page in results_page.renew(root):
            print(f"{page}: rewritten")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
