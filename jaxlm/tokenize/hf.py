"""Tokenizers of Hugging Face checkpoints, by the library tokenizers (Moi and Patry 2023, HuggingFace's Tokenizers).

A ``tokenizer.json`` says everything: normalizer, pre-tokenizer, model (BPE, unigram, WordPiece), post-processor and
decoder. The library encodes. Decoding is done here where the decoder acts on each token alone, because the library goes
through `str`, and half of a character has no `str`:

    byte-level BPE       each character of a token is one byte, in the alphabet of GPT-2 (Radford et al. 2019)
    byte fallback        ``<0xNN>`` is that byte, and U+2581 is a space (SentencePiece, Kudo and Richardson 2018)

Then ``token_bytes`` is exact. Decoders of other kinds (WordPiece, which guesses where spaces were) give text only.
Which special tokens begin, end and pad is looked up in the files beside it; no code is run and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import from_dict, require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import BOS, EOS, FORMAT, PAD, Tokenizer, read_json, read_saved
from jaxlm.tokenize.byte_alphabet import alphabet

FILE = "tokenizer.json"
# Where special tokens are named; the first that knows one is believed.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
_ROLES = {BOS: "bos_token", EOS: "eos_token", PAD: "pad_token"}
_GAPS = 1 << 20  # ids without a token; tables have a row for each
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True, eq=False)
class HfTokenizer(Tokenizer):
    """The tokenizer of a checkpoint folder. Two are equal if their files say the same.

    `special_ids` has the special tokens under their own names (``"<|endoftext|>"``), and under those of this library
    (``"<bos>"``, ``"<eos>"``, ``"<pad>"``) as far as the checkpoint tells. As with every tokenizer here, text never
    makes a special token, and `encode` adds none unless asked to; `adds_bos` says whether the model expects one.

    Attributes:
      path: a folder with a ``tokenizer.json``, such a file, or one that `save` wrote. Without one it cannot be used.
    """

    name: ClassVar[str] = "hf"
    paper: ClassVar[str] = "Moi and Patry 2023, HuggingFace's Tokenizers"

    path: str = ""

    def check(self) -> None:
        if self.path:  # what is wrong with the files is said now
            _ = self._library, self._roles

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """The tokenizer of a checkpoint folder. Raises `ConfigError` if it has none that can be read without code."""
        return cls(os.fspath(folder))

    @classmethod
    def train(cls, texts: Iterable[str | bytes] = (), vocab_size: int | None = None) -> Self:
        """Raises `ConfigError`: there are many kinds, and the library tokenizers has a trainer for each."""
        raise ConfigError(f"train it with the library tokenizers, save a {FILE}, and load that with HfTokenizer(path)")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HfTokenizer):
            return False
        return self.path == other.path or bool(self.path and other.path and self._digest == other._digest)

    def __hash__(self) -> int:
        return hash(self._digest if self.path else "")

    # Vocabulary.

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id and one: ids may have gaps, and tokens that were added count."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; ``b""`` for special tokens and for ids that are no token.

        Raises `ConfigError` if the decoder is of a kind in which that depends on the other tokens; `decode` works then.
        """
        if self._decoder is None:
            kind = (self._files[FILE].get("decoder") or {}).get("type")
            raise ConfigError(
                f"{self.path}: its decoder ({kind}) does not give bytes token by token; decode() gives text"
            )
        table = [b""] * self.vocab_size
        for token, i in self._library.get_vocab(with_added_tokens=True).items():
            table[i] = self._decoder.one(token)
        for added in self._added:  # these are text, whatever the alphabet of the others
            table[added["id"]] = b"" if added["special"] else added["content"].encode()
        return tuple(table)

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        own = {added["content"]: added["id"] for added in self._added if added["special"]}
        return own | {role: ids[0] for role, ids in self._roles.items()}

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends a text: a checkpoint may have several (the end of a turn, the end of a document)."""
        return self._roles.get(EOS, ())

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether a text for the model begins with `BOS`: if the checkpoint's own post-processor puts it there."""
        around = self._library.encode("a", add_special_tokens=True).ids
        return bool(around) and around[0] == self.special_ids.get(BOS)

    # Text to ids and back.

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        text = data.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for i, piece in enumerate(re.split("([\udc80-\udcff]+)", text)):
            if i % 2 == 0:
                ids += self._library.encode(piece, add_special_tokens=False).ids
            elif self._byte_ids is None:
                at = len(text.partition(piece)[0].encode())
                raise ConfigError(f"not UTF-8 at byte {at}; {self.path} is not byte-level and takes only UTF-8 text")
            else:
                ids += [self._byte_ids[byte] for byte in piece.encode("utf-8", "surrogateescape")]
        return np.array(ids, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        if self._decoder is None:
            return self._library.decode(self._valid(ids).tolist(), skip_special_tokens=True)
        return super().decode(ids)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes of ids [n], exact unless the decoder is of a kind that gives text only; that is then encoded."""
        if self._decoder is None:
            return self.decode(ids).encode()
        return b"".join(self._pieces(ids))

    def spans(self, ids: ArrayLike) -> NDArray[np.int64]:
        stops = np.cumsum([0, *map(len, self._pieces(ids))])
        return np.stack([stops[:-1], stops[1:]], axis=-1)

    def _pieces(self, ids: ArrayLike) -> list[bytes]:
        """The bytes of each token; a text's first loses the space that encoding put there."""
        pieces = [self.token_bytes[i] for i in self._valid(ids)]
        first = next((at for at, piece in enumerate(pieces) if piece), None)
        if first is not None and self._decoder is not None:
            pieces[first] = self._decoder.first(pieces[first])
        return pieces

    # The files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that was read as one JSON file that `load` (or `jaxlm.tokenize.load`) reads."""
        saved = {"format": FORMAT, "name": self.name, "args": {}, "files": self._files}
        Path(path).write_text(json.dumps(saved, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        name, args = read_saved(path)
        require(name == cls.name, f"{path} holds a {name!r} tokenizer, not {cls.name!r}; jaxlm.tokenize.load reads any")
        return from_dict(cls, {**args, "path": os.fspath(path)})

    @functools.cached_property
    def _files(self) -> dict[str, Any]:
        require(self.path, f"HfTokenizer.path: name a folder with a {FILE}")
        path = Path(self.path)
        if path.is_dir():
            _require_file(path)
            folder, found = path, {}
        else:
            require(path.is_file(), f"HfTokenizer.path: {path} is no file or folder; expected a folder with a {FILE}")
            content = read_json(path)
            if content.get("format") == FORMAT and isinstance(content.get("files"), dict):
                return content["files"]
            folder, found = path.parent, {FILE: content}
            if path.name != FILE:
                return found
        for name in (FILE, *BESIDE):
            if name not in found and (folder / name).is_file():
                found[name] = read_json(folder / name)
        return found

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._files, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _library(self) -> Any:
        definition = json.dumps(self._files.get(FILE))  # what is wrong with the file first
        _check_encoding(self._files.get(FILE), self.path)
        try:
            import tokenizers
        except ImportError:
            raise ConfigError(f"{self.path}: reading it needs tokenizers: pip install 'jaxlm[hf]'") from None
        try:
            library = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises nothing more special
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"{self.path}: not a {FILE} that tokenizers can read: {reason}") from None
        check_ids(library.get_vocab(with_added_tokens=True), self.path)
        library.no_truncation()  # some checkpoints cut and pad, which is not a tokenizer's business
        library.no_padding()
        library.encode_special_tokens = True  # "<eos>" in a text is five characters
        return library

    @functools.cached_property
    def _added(self) -> list[dict[str, Any]]:
        return [
            {"id": i, "content": token.content, "special": token.special}
            for i, token in self._library.get_added_tokens_decoder().items()
        ]

    @functools.cached_property
    def _roles(self) -> dict[str, tuple[int, ...]]:
        """The ids that each of our names for a special token stands for."""
        roles: dict[str, list[int]] = {}
        for role, key in _ROLES.items():
            for file in BESIDE:
                settings = self._files.get(file, {})
                for value in (settings.get(key), settings.get(f"{key}_id")):
                    ids = [i for item in (value if isinstance(value, list) else [value]) for i in self._id_of(item)]
                    known = roles.setdefault(role, [])
                    known += [i for i in dict.fromkeys(ids) if i not in known and (role == EOS or not known)]
        return {role: tuple(ids) for role, ids in roles.items() if ids}

    def _id_of(self, value: Any) -> list[int]:
        """The id that a file means by an id, a token, or ``{"content": token}``; none if the vocabulary lacks it."""
        value = value.get("content") if isinstance(value, Mapping) else value
        value = self._library.token_to_id(value) if isinstance(value, str) else value
        return [value] if type(value) is int and 0 <= value < self.vocab_size else []

    @functools.cached_property
    def _decoder(self) -> _Decoder | None:
        return _Decoder.parse(self._files[FILE].get("decoder"))

    @functools.cached_property
    def _byte_ids(self) -> list[int] | None:
        """The ids of the single bytes, if the vocabulary has them all and encoding puts nothing before a text."""
        if self._decoder is None or [self.token_bytes[i] for i in self._encode(b"a")] != [b"a"]:
            return None
        single = {piece[0]: i for i, piece in reversed(list(enumerate(self.token_bytes))) if len(piece) == 1}
        return [single[byte] for byte in range(256)] if len(single) == 256 else None


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """A decoder that acts token by token: ``one`` gives a token's bytes, ``first`` what the first of a text loses."""

    one: Callable[[str], bytes]
    first: Callable[[bytes], bytes] = lambda piece: piece

    @staticmethod
    def parse(settings: Mapping[str, Any] | None) -> _Decoder | None:
        """The decoder of a tokenizer.json, or None if it is of another kind."""
        if settings is None:
            return None
        steps = settings["decoders"] if settings["type"] == "Sequence" else [settings]
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return _Decoder(_from_alphabet)
        replaced: list[tuple[str, str]] = []
        first: Callable[[bytes], bytes] = lambda piece: piece
        for at, (kind, step) in enumerate(zip(kinds, steps, strict=True)):
            if kind == "Replace" and "String" in step["pattern"]:
                replaced.append((step["pattern"]["String"], step["content"]))
            elif kind == "Metaspace":
                replaced.append((step["replacement"], " "))
                if step.get("prepend_scheme") != "never":
                    first = lambda piece: piece.lstrip(b" ")
            elif kind == "Strip" and "Fuse" in kinds[:at] and (step["start"], step["stop"]) == (1, 0):
                first = functools.partial(_without, step["content"].encode())
            elif kind not in ("ByteFallback", "Fuse"):
                return None
        fallback = "ByteFallback" in kinds

        def one(token: str) -> bytes:
            if fallback and (byte := _BYTE.fullmatch(token)):
                return bytes.fromhex(byte[1])
            return functools.reduce(lambda text, pair: text.replace(*pair), replaced, token).encode()

        return _Decoder(one, first)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises `ConfigError` if the tokenizer makes ids that a model of ``vocab_size`` ids lacks (it may make fewer)."""
    size = tokenizer.vocab_size
    require(
        size <= vocab_size,
        f"the {tokenizer.name!r} tokenizer has ids 0..{size - 1}, the model's vocabulary only 0..{vocab_size - 1}; "
        "they belong to different checkpoints",
    )


def check_ids(ids: Mapping[str, int], where: str) -> None:
    """Raises `ConfigError` if two tokens have one id (it could not be decoded), or an id is far beyond their number."""
    tokens: dict[int, str] = {}
    for token, i in ids.items():
        first = tokens.setdefault(i, token)
        require(first == token, f"{where}: tokens {first!r} and {token!r} have one id, {i}")
    last = max(tokens, default=0)
    require(last <= len(tokens) + _GAPS, f"{where}: token {tokens.get(last)!r} of {len(tokens)} has id {last}")


def _check_encoding(content: Any, where: str) -> None:
    """Raises `ConfigError` for what makes encoding random."""
    model = content.get("model") if isinstance(content, dict) else None
    dropout = model.get("dropout") if isinstance(model, dict) else None
    require(
        not dropout,
        f"{where}: its model has dropout {shown(dropout)}, so a text has no one encoding; set it to null in {FILE}",
    )


def _without(prefix: bytes, piece: bytes) -> bytes:
    return piece.removeprefix(prefix)


def _from_alphabet(token: str) -> bytes:
    known = alphabet()
    return bytes(known[c] for c in token) if all(c in known for c in token) else token.encode()


def _require_file(folder: Path) -> None:
    if not (folder / FILE).is_file():
        others = sorted(p.name for p in folder.iterdir() if re.search("token|vocab|merges|spiece", p.name))
        advice = "; save it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        raise ConfigError(
            f"{folder}: has no {FILE} (of tokenizers it has: {', '.join(others) or 'nothing'})"
            + (advice if others else "")
        )
