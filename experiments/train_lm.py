"""Train a language model on any text: files, folders, JSON lines, parquet, or the library that every Python carries.

    python -m experiments.train_lm --config=configs/train_lm.py:smoke --workdir=runs/lm
    python -m experiments.train_lm --config.data.source='books/*.jsonl.gz' --workdir=runs/books
    python -m experiments.generate --workdir=runs/lm --prompt='def '

The same command continues a run that was interrupted, from its last checkpoint and bit for bit. A learning rate or a
corpus that has changed since is another run, and needs another --workdir.

Writes to --workdir: config.json (with the SHA-256 of the corpus), metrics.jsonl, checkpoints/, results.csv (every loss
beside the corpus it was measured on), table.txt, loss.png, provenance.json.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import flags as config_flags
from experiments import provenance
from experiments import train_lm_report as report
from jaxlm.core.config import Spec, differences, require, slot, to_dict
from jaxlm.core.errors import choose
from jaxlm.core.params import flatten
from jaxlm.core.params import initialize as initial_values
from jaxlm.data.fill_in_middle import ContextLevel, FillInMiddle
from jaxlm.data.loader import Loader, Source
from jaxlm.data.pack import LAYOUTS, Packed, TokenStream, rows
from jaxlm.data.records import Document
from jaxlm.data.text import Corpus, read
from jaxlm.dist.processes import initialize
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.entropy import EntropyPatcher, install
from jaxlm.model.spec import ModelSpec
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.config import TrainConfig
from jaxlm.train.load import load_checkpoint
from jaxlm.train.loop import fit

PROFILE = flags.DEFINE_string("profile", "", "steps to trace into <workdir>/profile, such as 10:15")


@dataclasses.dataclass(frozen=True)
class Data(Spec):
    """Text, and how it becomes rows.

    Attributes:
      source: what to train on (`jaxlm.data.text` lists the kinds).
      validation: what to evaluate on, likewise; empty for 5 % of the source's documents, chosen by their hash.
      field: of JSON lines and parquet rows.
      binary: take bytes that are not UTF-8.
      chunk: cut documents into pieces of at most this many bytes; 0 for whole documents, unless those are too
        few to set any aside.
      length: of the rows, in tokens.
      layout: ``"pack"`` documents end to end, or ``"pad"`` each in rows of its own.
      tokenizer: text to tokens.
      fill_in_middle: documents to train on are rearranged, so that the model learns to write what stands between two
        texts (`experiments.generate --suffix`); None for left to right alone. Evaluation is left to right.
    """

    source: str = "stdlib:"
    validation: str = ""
    field: str = "text"
    binary: bool = False
    chunk: int = 0
    length: int = 256
    layout: str = "pack"
    tokenizer: Any = slot("tokenizer", "byte")
    fill_in_middle: FillInMiddle | None = None

    def check(self) -> None:
        choose("Data.layout", self.layout, LAYOUTS)
        require(self.length >= 2, f"Data.length: expected at least 2 tokens, got {self.length}")
        if self.fill_in_middle is not None:
            _ = [self.tokenizer.special(mark) for mark in self.fill_in_middle.marks]
            require(
                self.fill_in_middle.level == "document" or self.layout == "pack",
                f"Data.fill_in_middle.level {self.fill_in_middle.level!r} is of packed rows; with layout "
                f"{self.layout!r} use 'document'",
            )

    def corpora(self) -> dict[str, Corpus]:
        """The documents to train on and to evaluate on. Raises `ConfigError` where there are none."""
        options = {"field": self.field, "binary": self.binary, "chunk": self.chunk}
        corpus = read(self.source, **options)
        if self.validation:
            return {"train": corpus, "validation": read(self.validation, **options)}
        return {name: corpus.part(name) for name in ("train", "validation")}

    def rows(self, part: str, documents: Sequence[Document]) -> tuple[TokenStream, Source]:
        """The tokens of a part, and its rows."""
        how = self.fill_in_middle if part == "train" else None
        if how is not None and how.level == "context":
            stream = TokenStream.encode(documents, self.tokenizer)
            return stream, ContextLevel(Packed(stream, self.length), how, self.tokenizer)
        stream = (how or TokenStream).encode(documents, self.tokenizer)
        return stream, rows(stream, self.length, self.layout)


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """A run.

    Attributes:
      model: its vocabulary must hold the tokenizer's (259 for bytes).
      objective: what is learned.
      train: for how long and how.
      data: from what.
      start: the workdir of another run whose parameters this one starts from; empty for fresh ones.
      entropies: what an entropy patcher cuts by: a table of `experiments.entropy_model`, or the workdir of a run whose
        model of bytes the patcher takes in; empty for another patcher, or those of ``start``.
    """

    model: ModelSpec = ModelSpec(vocab_size=ByteTokenizer().vocab_size)
    objective: Any = slot("objective", "next_token")
    train: TrainConfig = TrainConfig()
    data: Data = Data()
    start: str = ""
    entropies: str = ""

    def check(self) -> None:
        marks = () if self.model.edit is None else self.model.edit.marks(self.model.vocab_size)
        needed, limit = self.data.tokenizer.vocab_size, decoder.max_positions(self.model)
        require(
            self.model.vocab_size >= needed,
            f"model.vocab_size {self.model.vocab_size} is smaller than the tokenizer's vocabulary of {needed}",
        )
        require(
            all(mark >= needed for mark in marks),
            f"model.edit writes token {max(marks, default=0)}, which is one of the tokenizer's {needed}; "
            f"model.vocab_size {needed + 1} has room for another",
        )
        require(
            limit is None or self.data.length <= limit,
            f"data.length {self.data.length} is beyond the {limit} positions that the model's position encoding has",
        )
        decoder.param_specs(self.model)  # says which widths do not divide
        cuts = isinstance(self.model.patcher, EntropyPatcher)
        require(cuts or not self.entropies, f"entropies={self.entropies}: the model has no entropy patcher")


def main(config: RunConfig, workdir: Path) -> None:
    initialize()
    config, entropies = _entropies(config)
    corpora = config.data.corpora()
    made = {name: config.data.rows(name, corpus.documents) for name, corpus in corpora.items()}
    parts = {name: report.Part.of(corpora[name], stream) for name, (stream, _) in made.items()}
    first = jax.process_index() == 0
    if first:
        print("\n".join(f"{name}: {part}" for name, part in parts.items()))
    size, seed = config.train.batch_size, config.train.seed
    model = LanguageModel(config.model)
    _fit(
        workdir,
        model,
        config.objective,
        Loader(made["train"][1], size, seed),
        config.train,
        evaluations={"validation": Loader(made["validation"][1], size, shuffle=False, remainder="pad")},
        study=type(config),
        run={**to_dict(config), "corpus": {name: dataclasses.asdict(part) for name, part in parts.items()}},
        params=_parameters(config, entropies),
        profile=PROFILE.value,
    )
    if first:
        provenance.write(workdir)
        print(report.write(workdir, model, parts))


def _fit(*arguments: Any, **options: Any) -> None:
    """`fit`, with a run that got stuck ended by its one line."""
    try:
        fit(*arguments, **options)
    except FloatingPointError as error:
        sys.exit(f"error: {error}")


def _entropies(config: RunConfig) -> tuple[RunConfig, Any]:
    """The run with the model in its entropy patcher that it names, and what that patcher's entropies come from."""
    patcher, path = config.model.patcher, Path(config.entropies)
    if not isinstance(patcher, EntropyPatcher):
        return config, None
    require(
        config.entropies or config.start,
        "an entropy patcher has to be given what it cuts by: --config.entropies=... names a table of "
        "experiments.entropy_model, or the workdir of a model of bytes",
    )
    if not config.entropies:
        return config, None
    if not path.is_dir():
        return config, entropy_table.load(path)
    model, params = load_checkpoint(path)
    require(isinstance(model.spec, ModelSpec), f"entropies={path}: expected a language model, got an encoder-decoder")
    patcher = dataclasses.replace(patcher, model=model.spec)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, patcher=patcher)), params


def _parameters(config: RunConfig, entropies: Any) -> Any:
    """Those to begin with; None for fresh ones."""
    if entropies is None:
        return _start(config) if config.start else None
    fresh = lambda: initial_values(decoder.param_specs(config.model), jax.random.key(config.train.seed))
    return install(_start(config) if config.start else fresh(), entropies)


def _start(config: RunConfig) -> Any:
    """The parameters of the run to start from, whose model may differ in parts that learn nothing: a base, a mask."""
    model, params = load_checkpoint(config.start)
    shapes = lambda spec: {path: one.full_shape for path, one in flatten(decoder.param_specs(spec))}
    theirs, ours = shapes(model.spec), shapes(config.model)
    odd = sorted(path for path in theirs.keys() | ours.keys() if theirs.get(path) != ours.get(path))
    require(
        not odd,
        f"start={config.start} holds another model: {', '.join(odd[:3])} differ; give this run the parameters of its "
        "config.json",
    )
    for path, (new, old) in differences(to_dict(config.model), to_dict(model.spec)).items():
        print(f"note: model.{path} is {new}, and was {old} in {config.start}")
    return jax.tree.map(lambda leaf: leaf.astype("float32"), params)  # an imported model may be stored rounded


if __name__ == "__main__":
    config_flags.run(main, default="configs/train_lm.py:small")
