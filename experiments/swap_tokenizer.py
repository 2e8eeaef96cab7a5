"""Gives a checkpoint another tokenizer: a folder that transformers loads, with embeddings rebuilt row by row.

    python -m experiments.swap_tokenizer --checkpoint=Llama-3.2-1B --tokenizer=my-tokenizer --out=swapped
    python -m experiments.swap_tokenizer --checkpoint=gpt2 --tokenizer=german --init=focus --texts=german.txt --out=out
    python -m experiments.swap_tokenizer --checkpoint=gpt2 --tokenizer=larger --extend --out=gpt2-larger

--tokenizer is a folder with a tokenizer.json (its files are copied), or a tokenizer of ours of kind bpe saved as JSON.
--init is a method of the slot embedding_init (jaxlm.list("embedding_init") has their papers). focus, wechsel and ofa
need vectors of tokens: made of --texts, or read from --vectors. hypernetwork trains a small network on --texts, under
tokenizers drawn at random, to predict embeddings (Minixhofer et al. 2024); --init_args are then those of
jaxlm.train.tokenizer_transfer.Transfer, such as {"steps": 2000}. With --extend the new tokenizer keeps the old one's
ids (jaxlm.tokenize.extend makes such ones), and the rows of those stay bit for bit. --out appears whole or not at all,
and nothing is replaced without --overwrite.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import jaxlm.tokenize
from experiments import command
from jaxlm.core import registry
from jaxlm.core.config import from_dict, make, require
from jaxlm.core.errors import ConfigError
from jaxlm.interop.embedding_init.mean_of_pieces import MeanOfPieces
from jaxlm.interop.load import DTYPES, load_hf
from jaxlm.interop.replace import check_free
from jaxlm.interop.save_vocabulary import save_vocabulary
from jaxlm.interop.vocabulary import auxiliary_vectors, extend_vocabulary, swap_vocabulary
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork, Tables
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.bpe_files import notes_of
from jaxlm.tokenize.hf import FILE, HfTokenizer, check_vocabulary
from jaxlm.tokenize.overlap import overlap
from jaxlm.train.progress import Progress
from jaxlm.train.tokenizer_transfer import Transfer, put_rows

NETWORK = "hypernetwork"

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "folder of the checkpoint to change", flag_values=FLAGS)
TOKENIZER = flags.DEFINE_string("tokenizer", "", "folder or file of the new tokenizer", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", "", "folder to write", flag_values=FLAGS)
INIT = flags.DEFINE_string(
    "init",
    "mean_of_pieces",
    f"of new rows: {', '.join((*registry.methods('embedding_init'), NETWORK))}",
    flag_values=FLAGS,
)
INIT_ARGS = flags.DEFINE_string("init_args", "{}", 'settings of --init as JSON: {"rank": 100}', flag_values=FLAGS)
TEXTS = flags.DEFINE_list("texts", [], "text files or folders of them, for vectors of tokens", flag_values=FLAGS)
VECTORS = flags.DEFINE_string("vectors", "", ".npz of rows by token id, or word vectors as text", flag_values=FLAGS)
DIM = flags.DEFINE_integer("dim", 64, "width of vectors made of --texts", lower_bound=1, flag_values=FLAGS)
EXTEND = flags.DEFINE_bool("extend", False, "the new tokenizer continues the old one's ids", flag_values=FLAGS)
MULTIPLE = flags.DEFINE_integer(
    "pad_to_multiple", 0, "round the number of rows up to a multiple of this", lower_bound=0, flag_values=FLAGS
)
SEED = flags.DEFINE_integer("seed", 0, "of methods that draw", lower_bound=0, flag_values=FLAGS)
DTYPE = flags.DEFINE_string("dtype", "", f"{', '.join(DTYPES)}; the checkpoint's own by default", flag_values=FLAGS)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace what is in --out", flag_values=FLAGS)


def main() -> int:
    """Reads, rebuilds, writes, and says what became of the vocabulary."""
    for flag in (CHECKPOINT, TOKENIZER, OUT):
        require(flag.value, f"--{flag.name}: name a folder")
    checkpoint, out = Path(CHECKPOINT.value), Path(OUT.value)
    require(
        not checkpoint.resolve().is_relative_to(out.resolve()),
        f"--out {out} is or contains the checkpoint, which would be lost; name another folder",
    )
    require(checkpoint.is_dir(), f"--checkpoint={checkpoint}: no such folder")
    check_free(out, OVERWRITE.value)
    method = init_of(INIT.value, INIT_ARGS.value)
    paper = EmbeddingHypernetwork.paper if isinstance(method, Transfer) else method.paper
    require(TEXTS.value or not isinstance(method, Transfer), "--init=hypernetwork is trained on texts: name --texts")
    target, texts = tokenizer_of(TOKENIZER.value), texts_of(TEXTS.value)
    start = time.perf_counter()
    source = HfTokenizer.from_folder(checkpoint)
    model, params = load_hf(checkpoint, dtype=DTYPE.value or None)
    check_vocabulary(source, model.spec.vocab_size)
    vectors = None
    if not isinstance(method, Transfer):
        vectors = auxiliary_vectors(
            method, source, target, texts=texts, vectors=VECTORS.value, dim=DIM.value, seed=SEED.value
        )
    change = extend_vocabulary if EXTEND.value else swap_vocabulary
    new_model, new_params = change(
        model,
        params,
        source,
        target,
        MeanOfPieces() if isinstance(method, Transfer) else method,
        auxiliary=vectors,
        pad_to_multiple=MULTIPLE.value,
        seed=SEED.value,
    )
    same = overlap(source, target)
    shared = int((same >= 0).sum())
    if isinstance(method, Transfer):
        spelt = np.array([bool(piece) for piece in target.token_bytes])  # special tokens are not
        tables = predicted(method, model, params, source, target, texts)
        new_params = put_rows(new_params, tables, np.flatnonzero((same < 0) & spelt))
    done = (
        f"Of its tokens {shared:,} have the embeddings that they had among {source.vocab_size:,} before; "
        f"{target.vocab_size - shared:,} are new and start by {INIT.value} ({paper}), untrained."
    )
    save_vocabulary(
        new_model, new_params, out, origin=checkpoint, tokenizer=target, note=done, overwrite=OVERWRITE.value
    )
    print(f"{checkpoint}: {model.spec.vocab_size:,} rows, {source.vocab_size:,} tokens")
    print(f"{out}: {new_model.spec.vocab_size:,} rows, {target.vocab_size:,} tokens")
    print(done)
    for note in (*notes_of(source), *notes_of(target)):
        print(f"note: {note}")
    if texts:
        size = sum(map(len, texts))
        counts = [sum(len(one.encode(text)) for text in texts) for one in (source, target)]
        print(f"bytes a token on --texts: {size / counts[0]:.3f} before, {size / counts[1]:.3f} now")
    print(f"{time.perf_counter() - start:.1f} s")
    return 0


def predicted(
    transfer: Transfer, model: Any, params: Any, source: Tokenizer, target: Tokenizer, texts: list[bytes]
) -> Tables:
    """The rows that a network, trained now, predicts."""
    done, progress = 0, Progress(transfer.steps)

    def report(steps: int, metrics: Any) -> None:
        nonlocal done
        done += steps
        progress.update(done, int(metrics["tokens"]), lambda: float(metrics["loss"]))

    try:
        return transfer(model.spec, params, source, target, texts, seed=SEED.value, report=report)
    finally:
        progress.close()


def init_of(name: str, arguments: str) -> Any:
    """A method, or the training of a network, from its name and JSON settings. Raises `ConfigError` for those that
    there are not."""
    try:
        settings = json.loads(arguments)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(f"--init_args={arguments}: expected a JSON object")
    if name == NETWORK:
        return from_dict(Transfer, settings)
    return make("embedding_init", {"name": name, "args": settings}, where="--init")


def tokenizer_of(name: str) -> Tokenizer:
    """The new tokenizer: of a folder with a tokenizer.json, of such a file, or one of ours saved as JSON."""
    path = Path(name)
    require(path.exists(), f"--tokenizer={name}: no such file or folder; expected a folder with a {FILE}")
    return HfTokenizer(name) if path.is_dir() or path.name == FILE else jaxlm.tokenize.load(path)


def texts_of(names: list[str]) -> list[bytes]:
    """The contents of files, and of all files in folders, in the order of their names; NUL bytes mark no text."""
    out = []
    for name in names:
        path = Path(name)
        require(path.exists(), f"--texts: {name} is no file or folder")
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            try:
                data = file.read_bytes()
            except OSError as error:
                raise ConfigError(f"--texts: {file}: cannot be read: {error.strerror}") from None
            if data and b"\0" not in data:
                out.append(data)
    require(out or not names, f"--texts: there is no text in {', '.join(names)}")
    return out


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
