"""SentencePiece models, by the library (Kudo and Richardson 2018, SentencePiece).

A ``.model`` file has the normalisation, the pieces and whether it is a unigram model or BPE; the library sentencepiece
encodes. Pieces are text with U+2581 for spaces, ``<0xNN>`` is a byte, so `token_bytes` is exact. A model trained with
``normalization_rule_name="identity"``, ``remove_extra_whitespaces=False`` and ``byte_fallback=True`` gives texts back,
but for U+2581 itself, which comes back as a space; others normalise them first, and without byte fallback a character
they do not know is the unknown token, which stands for no bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import from_dict, require
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, FORMAT, PAD, Tokenizer, read_saved

_SPACE = "\u2581"


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. Two are equal if their files are.

    `special_ids` has the control tokens under their own names (``"<s>"``), and those that begin, end and pad a text
    also under the names of this library. Text never makes one.

    Attributes:
      path: a ``.model`` file, or one that `save` wrote. Without one it cannot be used.
    """

    name: ClassVar[str] = "sentence_piece"
    paper: ClassVar[str] = "Kudo and Richardson 2018, SentencePiece"

    path: str = ""

    def check(self) -> None:
        if self.path:  # what is wrong with the file is said now
            _ = self._library

    @classmethod
    def train(cls, texts: Iterable[str | bytes] = (), vocab_size: int | None = None) -> Self:
        """Raises `ConfigError`: the library trains and writes the file; 'unigram' and 'bpe' are trained here."""
        raise ConfigError(
            "train it with the library (sentencepiece.SentencePieceTrainer), and load the .model with "
            "SentencePieceTokenizer(path); the methods 'unigram' and 'bpe' are trained here"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SentencePieceTokenizer):
            return False
        return self.path == other.path or bool(self.path and other.path and self._model == other._model)

    def __hash__(self) -> int:
        return hash(self._digest if self.path else b"")

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; ``b""`` for control, unknown and unused tokens."""
        library = self._library
        table = []
        for i in range(library.get_piece_size()):
            piece = library.id_to_piece(i)
            if library.is_control(i) or library.is_unknown(i) or library.is_unused(i):
                table.append(b"")
            elif library.is_byte(i):
                table.append(bytes.fromhex(piece[3:5]))
            else:
                table.append(piece.replace(_SPACE, " ").encode())
        return tuple(table)

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        library = self._library
        own = {library.id_to_piece(i): i for i in range(library.get_piece_size()) if library.is_control(i)}
        roles = {BOS: library.bos_id(), EOS: library.eos_id(), PAD: library.pad_id()}
        return own | {role: i for role, i in roles.items() if i >= 0}

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        text = data.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for i, piece in enumerate(re.split("([\udc80-\udcff]+)", text)):
            if i % 2 == 0:
                ids += self._library.encode(piece)
            elif self._byte_ids is None:
                at = len(text.partition(piece)[0].encode())
                raise ConfigError(
                    f"not UTF-8 at byte {at}; {self.path} takes only UTF-8 (it has no byte fallback, or puts a space "
                    "in front of a text)"
                )
            else:
                ids += [self._byte_ids[byte] for byte in piece.encode("utf-8", "surrogateescape")]
        return np.array(ids, np.int32)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        return b"".join(self._pieces(ids))

    def spans(self, ids: ArrayLike) -> NDArray[np.int64]:
        stops = np.cumsum([0, *map(len, self._pieces(ids))])
        return np.stack([stops[:-1], stops[1:]], axis=-1)

    def _pieces(self, ids: ArrayLike) -> list[bytes]:
        """The bytes of each token; a text's first loses the space that encoding put there."""
        pieces = [self.token_bytes[i] for i in self._valid(ids)]
        first = next((at for at, piece in enumerate(pieces) if piece), None)
        if first is not None and self._adds_space:
            pieces[first] = pieces[first].removeprefix(b" ")
        return pieces

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model as a JSON file that `load` (or `jaxlm.tokenize.load`) reads."""
        model = base64.b64encode(self._model).decode()
        saved = {"format": FORMAT, "name": self.name, "args": {}, "model": model}
        Path(path).write_text(json.dumps(saved) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        name, args = read_saved(path)
        require(name == cls.name, f"{path} holds a {name!r} tokenizer, not {cls.name!r}; jaxlm.tokenize.load reads any")
        return from_dict(cls, {**args, "path": os.fspath(path)})

    @functools.cached_property
    def _model(self) -> bytes:
        require(self.path, "SentencePieceTokenizer.path: name a .model file")
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:
            raise ConfigError(f"SentencePieceTokenizer.path: cannot read {self.path}: {error.strerror}") from None
        if not content.startswith(b"{"):  # never so in a .model
            return content
        try:
            return base64.b64decode(json.loads(content)["model"], validate=True)
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.path}: neither a .model nor a saved SentencePiece tokenizer") from None

    @functools.cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self._model).digest()

    @functools.cached_property
    def _library(self) -> Any:
        model = self._model  # what is wrong with the file first
        try:
            import sentencepiece
        except ImportError:
            raise ConfigError(f"{self.path}: reading it needs sentencepiece: pip install 'jaxlm[tokenize]'") from None
        library = sentencepiece.SentencePieceProcessor()
        try:
            library.LoadFromSerializedProto(model)
            require(library.get_piece_size() > 0, f"{self.path}: a SentencePiece model without pieces")
        except (RuntimeError, TypeError):
            raise ConfigError(f"{self.path}: not a SentencePiece .model") from None
        return library

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether encoding puts a space in front of a text."""
        ids = self._library.encode("a")
        return self._library.id_to_piece(ids[0]).startswith(_SPACE)

    @functools.cached_property
    def _byte_ids(self) -> list[int] | None:
        """The ids of the bytes, if the model has them and encoding puts nothing before a text."""
        library = self._library
        found = {self.token_bytes[i][0]: i for i in range(library.get_piece_size()) if library.is_byte(i)}
        return None if self._adds_space or len(found) < 256 else [found[byte] for byte in range(256)]
