"""Masks by the library xgrammar (Dong et al. 2024, XGrammar: Flexible and Efficient Structured Generation Engine).

Same interface as the reference here, its own languages: grammars in GBNF (llama.cpp's notation), regular expressions
and JSON schemas, over bytes, with masks that are computed in advance as far as they do not depend on the stack.

Its masks are subsets of the reference's: version 0.2.8 leaves out some tokens that end a rule and go on behind it (in a
list of strings ``",`` after ``["a``), though its matcher takes the same bytes one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.decode.grammar.constraint import Matched
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.vocabulary import Vocabulary


class Xgrammar(Matched):
    """A matcher of xgrammar. Make it with `gbnf`, `regex`, `json_schema` or `grammar`."""

    def __init__(self, form: str, source: str, vocabulary: Vocabulary) -> None:
        library = _library()
        info = library.TokenizerInfo(list(vocabulary.token_bytes), stop_token_ids=list(vocabulary.end))
        compiler = library.GrammarCompiler(info)
        try:
            matcher = library.GrammarMatcher(getattr(compiler, f"compile_{form}")(source))
        except Exception as error:  # its exceptions come from C++ and have no type in common
            raise ConfigError(f"xgrammar: {shown(source)}: {shown(str(error))}") from None
        super().__init__(vocabulary, matcher)

    @classmethod
    def gbnf(cls, text: str, vocabulary: Vocabulary) -> Xgrammar:
        """Of a grammar in GBNF whose start is ``root``. Raises `ConfigError` with the library's reason."""
        return cls("grammar", text, vocabulary)

    @classmethod
    def regex(cls, pattern: str, vocabulary: Vocabulary) -> Xgrammar:
        """Of a regular expression, for the whole text."""
        return cls("regex", pattern, vocabulary)

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any], vocabulary: Vocabulary) -> Xgrammar:
        """Of the JSON documents that a schema admits."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema), vocabulary)

    @classmethod
    def grammar(cls, grammar: Grammar, vocabulary: Vocabulary) -> Xgrammar:
        """Of a grammar of this library. Raises `ConfigError` for bytes that are no characters."""
        return cls("grammar", to_gbnf(grammar), vocabulary)

    def _consumed(self, matcher: Any, token: int) -> Any:
        after = matcher.fork()
        require(after.accept_token(token), f"xgrammar: did not take token {token}, which it allowed")
        return after

    def _mask(self, matcher: Any) -> NDArray[np.bool_]:
        bits = np.full((1, -(-len(self.vocabulary) // 32)), -1, np.int32)
        matcher.fill_next_token_bitmask(bits)
        mask = np.unpackbits(bits.view(np.uint8)[0], bitorder="little")[: len(self.vocabulary)].astype(bool)
        special = [i for i, data in enumerate(self.vocabulary.token_bytes) if not data]
        mask[[i for i in special if i not in self.vocabulary.end]] = False
        return mask


def to_gbnf(grammar: Grammar) -> str:
    """The grammar in GBNF; its start is called ``root``.

    Raises `ConfigError` for a set of bytes that is not of ASCII characters: there, terminals are characters.
    """
    names = {name: f"r{i}" for i, name in enumerate(grammar.rules)} | {grammar.start: "root"}
    lines = []
    for name, options in grammar.rules.items():
        if options:
            written = " | ".join(
                " ".join(names[s] if isinstance(s, str) else _terminal(s) for s in option) or '""' for option in options
            )
            lines.append(f"{names[name]} ::= {written}")
    return "\n".join(lines) + "\n"


def _terminal(allowed: frozenset[int]) -> str:
    require(max(allowed) < 128, f"xgrammar: terminals are characters, not the bytes {shown(bytes(sorted(allowed)))}")
    return "[" + "".join(f"\\x{byte:02x}" for byte in sorted(allowed)) + "]"


def _library() -> Any:
    try:
        import xgrammar
    except ImportError:
        raise ConfigError("this constraint needs the library xgrammar: pip install xgrammar") from None
    return xgrammar
