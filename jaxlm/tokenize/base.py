"""What every tokenizer promises.

A token stands for a fixed run of bytes (a special token for none), so everything that asks *which bytes* follows from
one table, `token_bytes`: decoding, byte offsets, bits per byte. Text is bytes in UTF-8; bytes that are not UTF-8 are
carried through `str` by Python's ``surrogateescape`` (PEP 383), so for a byte-complete tokenizer

    decode(encode(text)) == text            any text that is valid Unicode
    decode_bytes(encode(data)) == data      any bytes
    encode(decode(encode(data))) == encode(data)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import Spec, from_dict, require, to_dict
from jaxlm.core.errors import ConfigError

FORMAT = "jaxlm.tokenizer/1"
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
FIM = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")  # marks of what follows (Bavarian et al. 2022)
LINE = 100  # characters of a saved file
BYTES = 256  # where the bytes are ids themselves, the first id of what is learned


@dataclasses.dataclass(frozen=True)
class Tokenizer(Spec):
    """Base of the tokenizers, a frozen object. A method defines `token_bytes`, `special_ids`, `train` and `_encode`."""

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.token_bytes)

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; ``b""`` for special tokens."""
        raise NotImplementedError

    @property
    def special_ids(self) -> dict[str, int]:
        """Special tokens: name -> id. They are never produced from text, whatever it says."""
        raise NotImplementedError

    @property
    def adds_bos(self) -> bool:
        """Whether a text for the model begins with `BOS`: here, if there is one."""
        return BOS in self.special_ids

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return (self.special_ids[EOS],) if EOS in self.special_ids else ()

    @classmethod
    def train(cls, texts: Iterable[str | bytes] = (), vocab_size: int | None = None) -> Self:
        """A tokenizer learned from ``texts``. Raises `ConfigError` for a ``vocab_size`` the method cannot have."""
        raise NotImplementedError

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        raise NotImplementedError

    def special(self, name: str) -> int:
        """The id of a special token. Raises `ConfigError` if there is none of that name."""
        if name not in self.special_ids:
            raise ConfigError(f"tokenizer {self.name!r} has no {name}; its special tokens: {_listed(self.special_ids)}")
        return self.special_ids[name]

    def encode(self, text: str | bytes, *, bos: bool = False, eos: bool = False) -> NDArray[np.int32]:
        """The ids of a text, int32 [n]; with ``bos`` / ``eos`` between those special tokens.

        Raises `ConfigError` for a `str` that is not text: a lone surrogate other than U+DC80..U+DCFF (those are bytes).
        """
        ids = self._encode(as_bytes(text))
        if not (bos or eos):
            return ids
        ends = [[self.special(BOS)] if bos else [], [self.special(EOS)] if eos else []]
        return np.concatenate([np.array(ends[0], np.int32), ids, np.array(ends[1], np.int32)])

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids [n]; bytes that are not UTF-8 come out as U+DC80..U+DCFF, which `encode` takes back."""
        return self.decode_bytes(ids).decode("utf-8", "surrogateescape")

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The exact bytes of ids [n]; special tokens give none. Raises `ConfigError` for an id not in its table."""
        table = self.token_bytes
        return b"".join([table[i] for i in self._valid(ids)])

    def spans(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Byte offsets, int64 [n, 2]: token t is ``decode_bytes(ids)[spans[t, 0]:spans[t, 1]]`` (empty if special)."""
        stops = np.cumsum(self._lengths[self._valid(ids)])
        return np.stack([np.concatenate([[0], stops])[:-1], stops], axis=-1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer as a JSON file that `load` (or `jaxlm.tokenize.load`) reads."""
        content = {"format": FORMAT, "name": self.name, "args": to_dict(self)}
        Path(path).write_text(_written(content) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The tokenizer of a file written by `save`. Raises `ConfigError` if it is missing or not such a file."""
        name, args = read_saved(path)
        if name != cls.name:
            raise ConfigError(f"{path} holds a {name!r} tokenizer, not {cls.name!r}; jaxlm.tokenize.load reads any")
        return from_dict(cls, args)

    @functools.cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([len(piece) for piece in self.token_bytes], np.int64)

    def _valid(self, ids: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ConfigError(f"expected token ids of shape [n] and an integer dtype, got {array.shape} {array.dtype}")
        array = array.astype(np.int64)
        wrong = array[(array < 0) | (array >= self.vocab_size)]
        if wrong.size:
            raise ConfigError(f"token id {wrong[0]} is outside the {self.name!r} tokenizer's 0..{self.vocab_size - 1}")
        return array


def as_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text, U+DC80..U+DCFF as the bytes they stand for. Raises `ConfigError` for other lone surrogates."""
    if not isinstance(text, str):
        return bytes(text)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ConfigError(f"not Unicode text: lone surrogate U+{code:04X} at character {error.start}") from None


def as_text(data: str | bytes) -> str:
    """Bytes as a `str` that `as_bytes` takes back: those that are not UTF-8 as U+DC80..U+DCFF."""
    return data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")


def check_specials(where: str, specials: tuple[str, ...]) -> None:
    """Raises `ConfigError`, beginning with ``where``, if a special token is there twice."""
    require(len(set(specials)) == len(specials), f"{where}: repeated in {specials}")


def read_saved(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """(method name, its arguments) of a saved tokenizer. Raises `ConfigError` if the file is not one."""
    try:
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read tokenizer {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is not a saved tokenizer: not JSON") from None
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != FORMAT or not isinstance(data.get("args"), dict):
        raise ConfigError(f"{path} is not a saved tokenizer: expected an object with format {FORMAT!r}, got {found!r}")
    return str(data.get("name")), data["args"]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ConfigError` if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is not JSON") from None
    require(isinstance(content, dict), f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _written(value: Any, depth: int = 0) -> str:
    """JSON in which what fits in a line is one: a pair of merges, not each of its numbers."""
    text = json.dumps(value)
    if len(text) <= LINE or not isinstance(value, (dict, list)):
        return text
    if isinstance(value, dict):
        first, last, items = (
            "{",
            "}",
            [f"{json.dumps(key)}: {_written(item, depth + 1)}" for key, item in value.items()],
        )
    else:
        first, last, items = "[", "]", [_written(item, depth + 1) for item in value]
    inside = ",\n".join(" " * (depth + 1) + item for item in items)
    return f"{first}\n{inside}\n{' ' * depth}{last}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"
