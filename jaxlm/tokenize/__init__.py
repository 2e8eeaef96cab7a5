"""Text to token ids and back: one tokenizer a file, numpy only.

A tokenizer has `encode`, `decode`, `decode_bytes`, `spans`, `train`, `save` and `load` (see `jaxlm.tokenize.base`).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from jaxlm.core.errors import choose

if TYPE_CHECKING:
    from jaxlm.tokenize.base import Tokenizer

METHODS = {
    "byte": "byte:ByteTokenizer",
    "bpe": "bpe:BpeTokenizer",
    "super_bpe": "super_bpe:SuperBpeTokenizer",
    "character": "character:CharacterTokenizer",
    "unigram": "unigram:UnigramTokenizer",
    "word_piece": "word_piece:WordPieceTokenizer",
    "path_piece": "path_piece:PathPieceTokenizer",
    "dictionary": "dictionary:DictionaryTokenizer",
    "less_is_better": "less_is_better:LessIsBetterTokenizer",
    "hf": "hf:HfTokenizer",
    "sentence_piece": "sentence_piece:SentencePieceTokenizer",
    "tiktoken": "tiktoken_file:TiktokenTokenizer",
    "k_tokeniser": "k_tokeniser:KTokeniser",
}


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer saved in a JSON file, whichever method it is. Raises `ConfigError` if the file is not one."""
    from jaxlm.tokenize.base import read_saved

    name, _ = read_saved(path)
    module, _, attribute = METHODS[choose("tokenizer", name, METHODS)].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute).load(path)
