"""Checkpoints of either kind by the name of their folder: of our own runs (Orbax), or Hugging Face's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxlm.core.config import make, require
from jaxlm.core.types import Params
from jaxlm.interop.load import load_hf
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.hf import FILE, HfTokenizer, check_vocabulary
from jaxlm.train.load import CHECKPOINTS, load_checkpoint, open_checkpoints

KINDS = ("hf", "orbax")


def kind_of(folder: Path) -> str:
    """``"hf"`` or ``"orbax"``. Raises `ConfigError` for a folder that is neither."""
    require(folder.is_dir(), f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; expected a checkpoint")
    if (folder / CHECKPOINTS).is_dir() or any(path.name.isdecimal() for path in folder.iterdir()):
        return "orbax"
    require(
        (folder / "config.json").is_file(),
        f"{folder} is no checkpoint; expected the workdir of a run, or config.json and safetensors",
    )
    return "hf"


def load(folder: Path, dtype: str | None = None, step: int | None = None) -> tuple[LanguageModel, Params]:
    """The model, a decoder, and its parameters.

    Args:
      folder: of the checkpoint.
      dtype: of parameters and activations; None for the checkpoint's own.
      step: of a run; None for its newest good one.

    Raises `ConfigError` for an encoder-decoder, which continues no text.
    """
    if kind_of(folder) == "hf":
        require(step is None, f"{folder} is of Hugging Face's kind and has no steps; got step {step}")
        model, params = load_hf(folder, dtype=dtype)
    else:
        model, params = load_checkpoint(folder, step=step)
    require(
        isinstance(model, LanguageModel),
        f"{folder} is an encoder-decoder checkpoint, asked for what a decoder alone does; it answers a source: "
        "jaxlm.generate(model, params, source)",
    )
    return (model, params) if dtype is None or model.spec.dtype == dtype else cast(model, params, dtype)


def cast(model: LanguageModel, params: Params, dtype: str) -> tuple[LanguageModel, Params]:
    """The same model in another dtype."""
    spec = dataclasses.replace(model.spec, dtype=dtype)
    return LanguageModel(spec, origin=model.origin), jax.tree.map(lambda p: p.astype(dtype), params)


def tokenizer_of(folder: Path, model: LanguageModel, step: int | None = None) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint.

    Raises `ConfigError` if there is none, or if it makes ids that the model does not have.
    """
    if kind_of(folder) == "hf":
        tokenizer: Any = HfTokenizer.from_folder(folder)
    elif model.origin and (Path(model.origin) / FILE).is_file():
        tokenizer = HfTokenizer.from_folder(model.origin)
    else:
        _, meta = open_checkpoints(folder, step)
        data = meta["run"].get("data", {})
        require("tokenizer" in data, f"{folder} is not a run on text: its configuration names no tokenizer")
        tokenizer = make("tokenizer", data["tokenizer"])
    check_vocabulary(tokenizer, model.spec.vocab_size)
    return tokenizer
