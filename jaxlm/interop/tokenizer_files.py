"""The files of a tokenizer in a checkpoint folder, and the keys of config.json that go with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.interop.family import TOKENS
from jaxlm.tokenize.base import BOS, EOS, PAD, Tokenizer
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.bpe_files import to_hf
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.hf import FILE, HfTokenizer

NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def refusal(tokenizer: Tokenizer) -> str | None:
    """Why a tokenizer has no files of this form; None if it has."""
    if isinstance(tokenizer, (BpeTokenizer, ByteTokenizer)):
        return None
    if not isinstance(tokenizer, HfTokenizer):
        return f"a {tokenizer.name!r} tokenizer has no {FILE}; allowed: a Hugging Face folder, 'bpe' or 'byte'"
    path = Path(tokenizer.path)
    if not path.is_dir() and path.name != FILE:
        return f"{path}: a saved tokenizer; give the folder with its {FILE} to copy the files"
    return None


def write(tokenizer: Tokenizer, folder: Path, *, adds_bos: bool = False) -> None:
    """Copies the files of a Hugging Face folder, or writes those of bytes and byte-level BPE.

    Args:
      tokenizer: whose ids the checkpoint has.
      folder: to write to.
      adds_bos: let what is written put the token of beginnings before a text, where transformers asks for such tokens.

    Raises `ConfigError` for a tokenizer without this form (`refusal`).
    """
    if why := refusal(tokenizer):
        raise ConfigError(why)
    if not isinstance(tokenizer, HfTokenizer):
        if isinstance(tokenizer, ByteTokenizer):
            tokenizer = BpeTokenizer((), (), tokenizer.specials)
        assert isinstance(tokenizer, BpeTokenizer)
        to_hf(tokenizer, folder, adds_bos=adds_bos)
        return
    path = Path(tokenizer.path)
    here = path if path.is_dir() else path.parent
    for name in NAMES:
        if (here / name).is_file():
            shutil.copyfile(here / name, folder / name)


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of config.json for special tokens; null where the tokenizer has none."""
    stops = list(tokenizer.stop_ids)
    found = {key: tokenizer.special_ids.get(role) for key, role in zip(TOKENS, (BOS, EOS, PAD), strict=True)}
    return found | {"eos_token_id": stops if len(stops) > 1 else found["eos_token_id"]}
