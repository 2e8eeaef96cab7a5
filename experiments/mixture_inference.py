"""What a tokenizer was trained on, from its merges and a sample of each kind of text that it may have seen.

    python -m experiments.mixture_inference --tokenizer=gpt2/merges.txt --samples=texts --workdir=runs/mixture

--samples is a folder with one folder or file for each category: text, .jsonl or .parquet, packed or not, named as the
category. --tokenizer is a merges.txt, a tokenizer.json or a folder with one. A megabyte a category is a good sample.

The table has each category's share of the pairs of symbols in the training data, its share of the bytes, and the range
within which its share of pairs is not determined. It is also written as results.csv and mixture.png; mixture.json has
the rest of what was found, config.json what was asked. The method is that of Hayase et al. 2024 (arXiv:2407.16607).

Words must be cut as they were when the tokenizer was trained. --split is read from the tokenizer where it says so;
otherwise name the rules, in order: space, lines, whitespace, gpt2, digits, digits_l2r_3, digits_r2l_3, regex:PATTERN.
Merges that can never fire, as in lists made from SentencePiece vocabularies, are removed; merges that occur in no
sample are passed over and reported; merges that were put in by hand are for --ignore. The first 1000 merges say most,
in seconds; the time grows faster than their square, to minutes for 3000.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import command, provenance, study
from jaxlm.core.config import require, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.data import text
from jaxlm.tokenize.merge_files import MergeList, read_merges
from jaxlm.tokenize.mixture_inference import Mixture, infer
from jaxlm.tokenize.mixture_program import COMPETITORS
from jaxlm.tokenize.pretokens import rule_of

FLAGS = flags.FlagValues()
TOKENIZER = flags.DEFINE_string("tokenizer", "", "merges.txt, tokenizer.json, or a folder with one", flag_values=FLAGS)
SAMPLES = flags.DEFINE_string("samples", "", "folder with a folder or file for each category", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string("workdir", "runs/mixture_inference", "folder to write to", flag_values=FLAGS)
MERGES = flags.DEFINE_integer("merges", 1000, "use the first so many; 0 for all", flag_values=FLAGS)
SPLIT = flags.DEFINE_multi_string("split", [], "rule that cuts words; may be given several times", flag_values=FLAGS)
IGNORE = flags.DEFINE_string("ignore", "", "merges put in by hand: numbers from 0, such as 0-23,100", flag_values=FLAGS)
BYTES = flags.DEFINE_integer("bytes", 0, "most bytes to read of each category; 0 for all", flag_values=FLAGS)
COMPETITORS_FLAG = flags.DEFINE_integer(
    "competitors", COMPETITORS, "pairs of one step that become constraints at a time", flag_values=FLAGS
)
SLACK = flags.DEFINE_float("slack", 1e-9, "of the ranges: allowed above the optimum", flag_values=FLAGS)
RANGES = flags.DEFINE_bool("ranges", True, "find the range of each share", flag_values=FLAGS)

_ALIKE = 1e-3  # of a share: narrower ranges are not drawn


class Row(NamedTuple):
    """One line of results.csv; without ranges, least and greatest are the share itself."""

    category: str
    pairs: float
    bytes: float
    least: float
    greatest: float


def main() -> int:
    require(TOKENIZER.value and SAMPLES.value, "--tokenizer and --samples: name both")
    for name, value in (("merges", MERGES.value), ("bytes", BYTES.value)):
        require(value >= 0, f"--{name}={value}: expected 0 (all) or a positive number")
    require(COMPETITORS_FLAG.value >= 1, f"--competitors={COMPETITORS_FLAG.value}: expected at least 1")
    require(SLACK.value >= 0, f"--slack={SLACK.value}: expected 0 or a positive number")
    workdir = study.folder(WORKDIR)
    learned = read_merges(TOKENIZER.value)
    split = tuple(SPLIT.value) or learned.split
    if split is None:
        raise ConfigError(
            f"{TOKENIZER.value} does not say how it cuts words in a way we read; name --split, such as gpt2"
        )
    for rule in split:
        rule_of(rule)
    count = min(MERGES.value or len(learned.merges), len(learned.merges))
    ignored = numbers(IGNORE.value, learned)
    samples = read_samples(Path(SAMPLES.value), BYTES.value)
    began = time.monotonic()
    config = {name: FLAGS[name].value for name in FLAGS} | {
        "split": split,
        "merges": count,
        "redundant_merges": len(learned.redundant),
        "sample_bytes": {name: sum(map(len, texts)) for name, texts in samples.items()},
    }
    progress = _Progress()
    try:
        mixture = infer(
            learned.merges[:count],
            samples,
            split=split,
            characters=learned.characters,
            ignore=ignored,
            ranges=RANGES.value,
            slack=SLACK.value,
            competitors=COMPETITORS_FLAG.value,
            report=progress,
        )
    finally:
        progress.close()
    rows = rows_of(mixture)
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / "config.json", config)
    study.save(rows, workdir, Row)
    _write(workdir / "mixture.json", to_dict(mixture) | {"objective": mixture.objective})
    text_of_all = table(mixture, learned)
    (workdir / "table.txt").write_text(text_of_all, encoding="utf-8")
    provenance.write(workdir, seconds=time.monotonic() - began)
    print(text_of_all + study.figures(lambda: _figure(rows, workdir)))
    return 0


def read_samples(folder: Path, most: int = 0) -> dict[str, list[bytes]]:
    """The texts of each category, by name. Raises `ConfigError` if there are fewer than two, or one has no text."""
    require(
        folder.is_dir(), f"--samples={folder}: no such folder; expected one with a folder or file for each category"
    )
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            name = path.name if path.is_dir() else path.name.partition(".")[0]
            require(name not in paths, f"--samples={folder}: two categories are named {name!r}")
            paths[name] = path
    require(len(paths) >= 2, f"--samples={folder}: a mixture is of at least two categories, got {list(paths)}")
    found: dict[str, list[bytes]] = {}
    for name, path in paths.items():
        found[name] = []
        room = most or sys.maxsize
        for document in text.read(str(path), binary=True).documents:
            if not room:
                break
            found[name].append(document.text[:room])
            room -= len(found[name][-1])
    return found


def numbers(ranges: str, learned: MergeList) -> list[int]:
    """``"0-23,100"`` as numbers of merges that are left, from numbers in the file.

    Raises `ConfigError` for anything else, or a merge there is not.
    """
    total = len(learned.merges) + len(learned.redundant)
    chosen: set[int] = set()
    for part in filter(None, ranges.split(",")):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        require(
            first <= last < total, f"--ignore={ranges}: expected numbers of merges in 0..{total - 1}, such as 0-23,100"
        )
        chosen.update(range(first, last + 1))
    redundant = set(learned.redundant)
    kept = [number for number in range(total) if number not in redundant]
    return [i for i, number in enumerate(kept) if number in chosen]


def rows_of(mixture: Mixture) -> list[Row]:
    """By share of pairs, the greatest first."""
    least, greatest = mixture.least or mixture.pairs, mixture.greatest or mixture.pairs
    rows = zip(mixture.categories, mixture.pairs, mixture.bytes, least, greatest, strict=True)
    return sorted((Row(*row) for row in rows), key=lambda row: -row.pairs)


def table(mixture: Mixture, learned: MergeList) -> str:
    """What was found, for people."""
    width = max(8, *map(len, mixture.categories))
    lines = [f"{'category':<{width}}  share of pairs  share of bytes  range of the share of pairs"]
    for row in rows_of(mixture):
        ends = f"{row.least:>12.4f} - {row.greatest:.4f}" if mixture.least else "           not asked for"
        lines.append(f"{row.category:<{width}}  {row.pairs:>14.4f}  {row.bytes:>14.4f}  {ends}")
    lines += [
        f"from {mixture.steps:,} merges, {mixture.constraints:,} constraints in {mixture.rounds} rounds",
        f"the samples contradict the merges by {mixture.objective:.3g} of all pairs"
        f" (merges {mixture.merge_slack:.3g}, pairs {mixture.pair_slack:.3g}); 0 is not at all",
    ]
    if mixture.absent:
        shown = ", ".join(map(str, mixture.absent[:8])) + (", ..." if len(mixture.absent) > 8 else "")
        lines.append(f"merges that occur in no sample, passed over: {len(mixture.absent):,} ({shown})")
    if learned.redundant:
        lines.append(f"merges of the list that can never fire, removed: {len(learned.redundant):,}")
    if not mixture.least:
        lines.append("ranges were not asked for (--noranges), so shares that nothing determines are not found out")
    if mixture.unidentified:
        lines.append(f"NOT determined by these samples and merges: {', '.join(mixture.unidentified)}; see the ranges")
    return "\n".join(lines) + "\n"


class _Progress:
    """A line now and then on the standard error: what is being done, how far, and how long it will take."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._work, self._began, self._shown = "", 0.0, time.monotonic()

    def __call__(self, work: str, done: int, total: int) -> None:
        now = time.monotonic()
        if work != self._work:
            self._work, self._began = work, now
        if now - self._shown < (0.2 if self._terminal else 10.0):
            return
        self._shown = now
        left = (now - self._began) / done * (total - done)
        line = f"{work} {done:,}/{total:,}  ETA {left:.0f} s" if total else f"{work}: {done:,} rounds"
        print(
            f"\r{line:<60}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )

    def close(self) -> None:
        if self._terminal:
            print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _figure(rows: list[Row], workdir: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 1 + 0.3 * len(rows)), layout="constrained")
    names = [row.category for row in rows]
    axes.barh(names, [row.pairs for row in rows], color="0.75", label="share of pairs")
    axes.plot([row.bytes for row in rows], names, "k|", markersize=9, label="share of bytes")
    wide = [row for row in rows if row.greatest - row.least > _ALIKE]
    if wide:
        axes.hlines(
            [r.category for r in wide], [r.least for r in wide], [r.greatest for r in wide], "C3", label="range"
        )
    axes.invert_yaxis()
    axes.set(xlabel="share of the training data", xlim=(0, None))
    axes.legend(fontsize=8)
    return study.saved(figure, workdir / "mixture.png")


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
