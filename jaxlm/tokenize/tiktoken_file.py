"""Files of byte-level BPE ranks, by the library tiktoken (Radford et al. 2019, GPT-2, has the method).

A line is a token in base64, a space and its rank, which is its id. A text is split by a regular expression, and inside
a piece the neighbours whose joined bytes have the lowest rank are merged first. The file has neither the expression nor
the special tokens; they are fields. `token_bytes` is exact, and every byte string survives.
"""

from __future__ import annotations

import base64
import binascii
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
from numpy.typing import NDArray

from jaxlm.core.config import from_dict, require, to_dict
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import FORMAT, Tokenizer, read_saved
from jaxlm.tokenize.pretokens import GPT2


@dataclasses.dataclass(frozen=True, eq=False)
class TiktokenTokenizer(Tokenizer):
    """Ranks of a file. Two are equal if their ranks, expressions and special tokens are.

    Attributes:
      path: a file of ranks, or one that `save` wrote. Without one it cannot be used.
      pattern: the expression whose matches are pieces.
      specials: (name, id) of special tokens, with ids that the file leaves free; a token may have several names, such
        as its own and ``"<eos>"``.
    """

    name: ClassVar[str] = "tiktoken"
    paper: ClassVar[str] = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners"

    path: str = ""
    pattern: str = GPT2
    specials: tuple[tuple[str, int], ...] = ()

    def check(self) -> None:
        names = [name for name, _ in self.specials]
        require(len(set(names)) == len(names), f"TiktokenTokenizer.specials: repeated name in {names}")
        if self.path:  # what is wrong with the file is said now
            _ = self._library

    @classmethod
    def train(cls, texts: Iterable[str | bytes] = (), vocab_size: int | None = None) -> Self:
        """Raises `ConfigError`: such files come with checkpoints; 'bpe' is trained here."""
        raise ConfigError("a file of ranks is read, not trained; the method 'bpe' is trained here")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TiktokenTokenizer) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @functools.cached_property
    def _key(self) -> tuple[bytes, str, tuple[tuple[str, int], ...]]:
        digest = hashlib.sha256(repr(sorted(self._ranks.items())).encode()).digest() if self.path else b""
        return digest, self.pattern, self.specials

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; ``b""`` for special tokens and for ids that are no token."""
        table = [b""] * (1 + max([*self._ranks.values(), *self.special_ids.values()]))
        for token, rank in self._ranks.items():
            table[rank] = token
        return tuple(table)

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        return dict(self.specials)

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        text = data.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for i, piece in enumerate(re.split("([\udc80-\udcff]+)", text)):
            if i % 2 == 0:
                ids += self._library.encode_ordinary(piece)
            else:
                ids += [self._ranks[bytes([byte])] for byte in piece.encode("utf-8", "surrogateescape")]
        return np.array(ids, np.int32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ranks, expression and special tokens as a JSON file that `load` (or `jaxlm.tokenize.load`) reads."""
        args = {key: value for key, value in to_dict(self).items() if key != "path"}
        ranks = [[base64.b64encode(token).decode(), rank] for token, rank in self._ranks.items()]
        Path(path).write_text(json.dumps({"format": FORMAT, "name": self.name, "args": args, "ranks": ranks}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        name, args = read_saved(path)
        require(name == cls.name, f"{path} holds a {name!r} tokenizer, not {cls.name!r}; jaxlm.tokenize.load reads any")
        return from_dict(cls, {**args, "path": os.fspath(path)})

    @functools.cached_property
    def _ranks(self) -> dict[bytes, int]:
        require(self.path, "TiktokenTokenizer.path: name a file of ranks")
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:
            raise ConfigError(f"TiktokenTokenizer.path: cannot read {self.path}: {error.strerror}") from None
        ranks: dict[bytes, int] = {}
        for place, (token, rank) in _entries(self.path, content):
            try:
                piece, i = base64.b64decode(token, validate=True), int(rank)
            except (binascii.Error, ValueError, TypeError):
                found = shown((token, rank))
                raise ConfigError(f"{place}: expected a token in base64 and its rank, got {found}") from None
            if not piece or i < 0:
                raise ConfigError(f"{place}: an empty token or a negative rank")
            if piece in ranks:
                raise ConfigError(f"{place}: the token {shown(piece)} is there twice")
            ranks[piece] = i
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        require(not missing, f"{self.path}: not byte-level ranks: {len(missing)} of the 256 bytes are missing")
        taken = set(ranks.values())
        require(len(taken) == len(ranks), f"{self.path}: two tokens have the same rank")
        for name, i in self.specials:
            require(i >= 0 and i not in taken, f"TiktokenTokenizer.specials: {i} of {name} is the rank of a token")
        return ranks

    @functools.cached_property
    def _library(self) -> Any:
        ranks = self._ranks
        try:
            import tiktoken
        except ImportError:
            raise ConfigError(f"{self.path}: reading it needs tiktoken: pip install 'jaxlm[tokenize]'") from None
        try:
            return tiktoken.Encoding("jaxlm", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})
        except Exception as error:  # whatever the expressions of the library raise
            reason = " ".join(str(error).split())[:120]
            wrong = f"tiktoken cannot use {shown(self.pattern)}: {reason}"
            raise ConfigError(f"TiktokenTokenizer.pattern: {wrong}") from None


def _entries(path: str, content: bytes) -> Iterable[tuple[str, tuple[Any, Any]]]:
    """(where it stands, (token, rank)) of a file of ranks, or of one that `save` wrote."""
    if content.startswith(b"{"):  # never so in base64
        try:
            ranks = json.loads(content)["ranks"]
            return [(f"{path}: rank {i}", (token, rank)) for i, (token, rank) in enumerate(ranks)]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}: neither a file of ranks nor a saved one") from None
    lines = [(f"{path}:{i}", line.split()) for i, line in enumerate(content.splitlines(), start=1)]
    for place, fields in lines:
        require(len(fields) in (0, 2), f"{place}: expected a token in base64 and its rank")
    return [(place, (fields[0], fields[1])) for place, fields in lines if fields]
