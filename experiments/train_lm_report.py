"""What a training run shows at its end: results.csv, a table, the loss curve. Made from metrics.jsonl alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from jaxlm.data.pack import TokenStream
from jaxlm.data.text import Corpus
from jaxlm.model.describe import parameter_count
from jaxlm.model.language_model import LanguageModel
from jaxlm.train.metrics import FILE, read_jsonl

COLUMNS = ("part", "step", "loss", "bits_per_byte", "corpus_sha256")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a corpus in numbers: ``bytes`` that are learned, ``targets`` (tokens) that a loss is the mean of."""

    source: str
    sha256: str
    documents: int
    bytes: int
    targets: int

    @classmethod
    def of(cls, corpus: Corpus, stream: TokenStream) -> Self:
        return cls(corpus.source, corpus.sha256, len(corpus.documents), corpus.num_bytes, stream.num_targets)

    def __str__(self) -> str:
        return f"{self.source}  {self.documents:,} documents  {self.bytes:,} bytes  sha256 {self.sha256}"

    def bits_per_byte(self, loss: float) -> float:
        """From nats per token; the ends of documents are paid for by the bytes."""
        return loss / math.log(2) * self.targets / self.bytes


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results.csv."""

    part: str
    step: int
    loss: float
    bits_per_byte: float
    corpus_sha256: str


def losses(workdir: Path, parts: Mapping[str, Part]) -> list[Row]:
    """Every loss in metrics.jsonl with the part of the corpus it was measured on, in order."""
    names = {"train": "loss", "validation": "validation/loss"}
    found = []
    for line in read_jsonl(workdir / FILE):
        for part, key in names.items():
            if key in line:
                bits = parts[part].bits_per_byte(line[key])
                found.append(Row(part, int(line["step"]), line[key], bits, parts[part].sha256))
    return found


def write(workdir: Path, model: LanguageModel, parts: Mapping[str, Part]) -> str:
    """Writes results.csv, table.txt and, where matplotlib is installed, loss.png; returns what to print."""
    found = losses(workdir, parts)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in found)
    (workdir / "results.csv").write_text(out.getvalue(), encoding="utf-8")
    text = table(workdir, found, model)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    return text + _curve(found, workdir)


def table(workdir: Path, found: list[Row], model: LanguageModel) -> str:
    """The last losses beside their corpus, and the speed. The training loss is the mean of the run's last tenth."""
    last = max(row.step for row in found)
    lines = [f"{'part':<12} {'step':>8} {'loss':>8} {'bits/byte':>10}  corpus sha256"]
    for part in ("train", "validation"):
        chosen = [row for row in found if row.part == part]
        if part == "train":
            chosen = [row for row in chosen if row.step > 0.9 * last] or chosen
        else:
            chosen = chosen[-1:]
        loss = statistics.fmean(row.loss for row in chosen)
        bits = statistics.fmean(row.bits_per_byte for row in chosen)
        lines.append(f"{part:<12} {chosen[-1].step:>8} {loss:>8.4f} {bits:>10.4f}  {chosen[-1].corpus_sha256}")
    metrics = read_jsonl(workdir / FILE)
    middle = {}
    for name in ("time/tokens_per_second", "time/mfu"):
        values = [line[name] for line in metrics if name in line]
        middle[name] = statistics.median(values) if values else None
    facts = [f"{parameter_count(model):,} parameters"]
    if (rate := middle["time/tokens_per_second"]) is not None:
        facts.append(f"{rate:,.0f} tokens/s")
    if (utilisation := middle["time/mfu"]) is not None:
        facts.append(f"MFU {utilisation:.1%}")
    return "\n".join([*lines, "   ".join(facts), ""])


def _curve(found: list[Row], workdir: Path) -> str:
    try:
        import matplotlib
    except ImportError:
        return "no figure: matplotlib is missing (pip install 'jaxlm[plots]')"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for part, marker in (("train", ""), ("validation", "o")):
        chosen = [row for row in found if row.part == part]
        axes.plot([row.step for row in chosen], [row.bits_per_byte for row in chosen], marker=marker, label=part)
    axes.set(xlabel="step", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path = workdir / "loss.png"
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return f"figure: {path}"
