"""A checkpoint folder with another tokenizer: the rebuilt model, the new tokenizer's files, and ids that fit it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Params
from jaxlm.interop import tokenizer_files
from jaxlm.interop.card import CARD
from jaxlm.interop.config import Config
from jaxlm.interop.family import different
from jaxlm.interop.load import family_of
from jaxlm.interop.replace import replace_folder
from jaxlm.interop.save import save_hf
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.hf import HfTokenizer, check_vocabulary

# Settings of generation that hold ids or strings of the old tokenizer.
STALE = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "sequence_bias",
    "stop_strings",
)

IMPORTED = "\n## The card of the imported model\n"


def save_vocabulary(
    model: LanguageModel,
    params: Params,
    folder: str | os.PathLike[str],
    *,
    origin: str | os.PathLike[str],
    tokenizer: Tokenizer,
    note: str = "",
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder that transformers loads, from what `swap_vocabulary` or `extend_vocabulary` made.

    Args:
      model, params: with the new vocabulary.
      folder: new or empty; it appears whole or not at all.
      origin: the checkpoint it was made of, whose settings, licences and card are carried on.
      tokenizer: the new one: of a Hugging Face folder, whose files are copied, or one that `bpe_files` can write.
      note: what was done, for the model card.
      dtype, overwrite: as of `save_hf`.

    Returns:
      The folder.

    Raises `ConfigError` as `save_hf` does, and for a tokenizer that has no files or more ids than the model rows.
    """
    origin = Path(origin)
    require(
        (origin / "config.json").is_file(), f"{origin} has no config.json; expected the checkpoint that was changed"
    )
    check_vocabulary(tokenizer, model.spec.vocab_size)
    ids = tokenizer_files.special_ids(tokenizer)
    with replace_folder(folder, overwrite) as new:
        tokenizer_files.write(tokenizer, new)
        written = HfTokenizer.from_folder(new)
        require(
            written.token_bytes == tokenizer.token_bytes,
            f"the files of the {tokenizer.name!r} tokenizer do not give back its tokens; nothing was written",
        )
        save_hf(LanguageModel(model.spec, origin=str(origin)), params, new / "model", dtype=dtype)
        for name in tokenizer_files.NAMES:  # the old tokenizer's
            (new / "model" / name).unlink(missing_ok=True)
        for path in sorted((new / "model").iterdir()):
            path.rename(new / path.name)
        (new / "model").rmdir()
        _write_config(new / "config.json", origin, model, ids)
        if (new / "generation_config.json").is_file():
            _rewrite(new / "generation_config.json", ids)
        _write_note(new / CARD, tokenizer, note)
    return Path(folder)


def _write_config(path: Path, origin: Path, model: LanguageModel, ids: dict[str, Any]) -> None:
    """The origin's config.json with another vocabulary, where that says it all; else what `save_hf` wrote."""
    written = json.loads(path.read_text(encoding="utf-8"))
    settings = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    settings |= {"vocab_size": model.spec.vocab_size} | {key: written[key] for key in ("dtype", "torch_dtype")}
    try:
        fits = not different(family_of(Config(settings)).read(Config(settings)), model.spec)
    except ConfigError:
        fits = False
    settings = settings if fits else written
    path.write_text(json.dumps(_renewed(settings, ids), indent=2) + "\n", encoding="utf-8")


def _renewed(settings: dict[str, Any], ids: dict[str, Any]) -> dict[str, Any]:
    """Settings with the new tokenizer's special ids, without other ids of the old one's."""
    stale = [key for key in settings if key.endswith(("_token_id", "_token_ids")) or key in STALE]
    return {key: value for key, value in settings.items() if key not in stale} | ids


def _rewrite(path: Path, ids: dict[str, Any]) -> None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path.name} of the checkpoint is not JSON") from None
    known = {key: value for key, value in ids.items() if value is not None}
    path.write_text(json.dumps(_renewed(settings, known), indent=2) + "\n", encoding="utf-8")


def _write_note(path: Path, tokenizer: Tokenizer, note: str) -> None:
    card = path.read_text(encoding="utf-8")
    text = f"\n## Another tokenizer\n\nThe vocabulary was rebuilt for a tokenizer of {tokenizer.vocab_size:,} tokens."
    text += f" {note}\n" if note else "\n"
    at = card.find(IMPORTED)
    path.write_text(card + text if at < 0 else card[:at] + text + card[at:], encoding="utf-8")
