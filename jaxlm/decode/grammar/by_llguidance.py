"""Masks by the library llguidance (Moskal et al. 2025): Earley over lexemes in Rust, for grammars and vocabularies that
are too large for the reference here. Same interface, its own languages: JSON schemas, regular expressions, and its
variant of Lark's grammars, whose terminals are matched greedily, the longest lexeme first.

Where only one text can follow, it allows the tokens that the tokenizer itself makes of that text and no others, so its
masks are subsets of the reference's there; elsewhere they are equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.decode.grammar.constraint import Matched
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.vocabulary import Vocabulary
from jaxlm.tokenize.base import as_bytes

Encode = Callable[[bytes], Sequence[int]]


class Llguidance(Matched):
    """A matcher of llguidance. Make it with `lark`, `regex`, `json_schema` or `grammar`.

    Args:
      form: which of these.
      source: in that language.
      vocabulary: of the model.
      encode: the ids of a text, for what is forced; None takes the longest token at each place.
    """

    def __init__(self, form: str, source: str, vocabulary: Vocabulary, encode: Encode | None = None) -> None:
        library = _library()
        make = getattr(library.LLMatcher, f"grammar_from_{form}")
        try:
            matcher = library.LLMatcher(_tokenizer(library, vocabulary, encode), make(source), log_level=0)
        except ValueError as error:
            raise ConfigError(f"llguidance: {shown(source)}: {shown(str(error))}") from None
        require(not matcher.is_error(), f"llguidance: {shown(source)}: {shown(matcher.get_error())}")
        super().__init__(vocabulary, matcher)

    @classmethod
    def lark(cls, text: str, vocabulary: Vocabulary, encode: Encode | None = None) -> Llguidance:
        """Of a grammar in its variant of Lark. Raises `ConfigError` with the library's reason."""
        return cls("lark", text, vocabulary, encode)

    @classmethod
    def regex(cls, pattern: str, vocabulary: Vocabulary, encode: Encode | None = None) -> Llguidance:
        """Of a regular expression, for the whole text, in the syntax of Rust's crate regex."""
        return cls("regex", pattern, vocabulary, encode)

    @classmethod
    def json_schema(
        cls, schema: str | Mapping[str, Any], vocabulary: Vocabulary, encode: Encode | None = None
    ) -> Llguidance:
        """Of the JSON documents that a schema admits."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema), vocabulary, encode)

    @classmethod
    def grammar(cls, grammar: Grammar, vocabulary: Vocabulary, encode: Encode | None = None) -> Llguidance:
        """Of a grammar of this library, each byte a terminal. Raises `ConfigError` for bytes that are no characters."""
        return cls("lark", to_lark(grammar), vocabulary, encode)

    def _consumed(self, matcher: Any, token: int) -> Any:
        after = matcher.deep_copy()
        after.consume_token(token)
        require(not after.is_error(), f"llguidance: {shown(after.get_error())}")
        return after

    def _mask(self, matcher: Any) -> NDArray[np.bool_]:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        require(not matcher.is_error(), f"llguidance: {shown(matcher.get_error())}")
        mask = np.unpackbits(bits, bitorder="little")[: len(self.vocabulary)].astype(bool)
        mask[list(self.vocabulary.end)] = matcher.is_accepting()
        return mask


def to_lark(grammar: Grammar) -> str:
    """The grammar in llguidance's variant of Lark.

    Raises `ConfigError` for a set of bytes that is not of ASCII characters: its terminals are characters.
    """
    names = {name: f"r{i}" for i, name in enumerate(grammar.rules)} | {grammar.start: "start"}
    lines = []
    for name, options in grammar.rules.items():
        if options:
            written = " | ".join(_option(option, names) for option in options)
            lines.append(f"{names[name]}: {written}")
    return "\n".join(lines) + "\n"


def _option(option: tuple[str | frozenset[int], ...], names: Mapping[str, str]) -> str:
    return " ".join(names[s] if isinstance(s, str) else _terminal(s) for s in option) or '""'


def _terminal(allowed: frozenset[int]) -> str:
    require(max(allowed) < 128, f"llguidance: terminals are characters, not the bytes {shown(bytes(sorted(allowed)))}")
    if len(allowed) == 1:
        return json.dumps(chr(*allowed))
    return "/[" + "".join(f"\\x{byte:02x}" for byte in sorted(allowed)) + "]/"


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError("this constraint needs the library llguidance: pip install llguidance") from None
    return llguidance


def _tokenizer(library: Any, vocabulary: Vocabulary, encode: Encode | None) -> Any:
    """The vocabulary as llguidance wants it."""

    class Tokens:
        eos_token_id, bos_token_id = vocabulary.end[0], None
        # What is no text must still have bytes there; a special token is told by its number.
        tokens = [data or f"<special {i}>".encode() for i, data in enumerate(vocabulary.token_bytes)]
        special_token_ids = [i for i, data in enumerate(vocabulary.token_bytes) if not data or i in vocabulary.end]

        def __call__(self, text: str | bytes) -> list[int]:
            data = as_bytes(text)
            return [int(i) for i in encode(data)] if encode else longest_match(vocabulary, data)

    return library.LLTokenizer(library.TokenizerWrapper(Tokens()), eos_token=list(vocabulary.end))


def longest_match(vocabulary: Vocabulary, data: bytes) -> list[int]:
    """The longest token at each place; bytes that no token begins with are left out."""
    out, at = [], 0
    while at < len(data):
        node, token, stop = vocabulary.trie, None, at + 1
        for i in range(at, len(data)):
            if data[i] not in node[0]:
                break
            node = node[0][data[i]]
            if node[1]:
                token, stop = node[1][0], i + 1
        out += [] if token is None else [token]
        at = stop
    return out
