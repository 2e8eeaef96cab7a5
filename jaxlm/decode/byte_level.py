r"""Language models as models of bytes: exact next-byte probabilities, scores and samples, whatever the tokenizer.

Phan et al. 2024, Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles. Who
tokenizes a prompt tells the model that a token ends there, which a text that goes on may contradict. Summing over all
encodings that the text may turn out to have (`jaxlm.tokenize.covers`) takes that bias away; a text may end anywhere.

    model, params = jaxlm.load_hf("checkpoint")                # a folder with config.json, tokenizer.json and weights
    tokenizer = HfTokenizer.from_folder("checkpoint")
    view = byte_view(model, params, tokenizer)
    log_probs = view.next_byte(["The quick bro", "def f(x):\n  retu"])        # [2, 257], the end of the text last
    print(chr(log_probs[0, :256].argmax()))                                   # 'w'
    bits = view.score(["wn fox"], ["The quick bro"])[0]                       # of each byte
    texts = view.generate(["The quick bro"], 20, temperature=1.0, key=jax.random.key(0), stop=["."])
    middle = view.generate([fill_in_the_middle(tokenizer, "def f(x):\n  retu", "\n\nprint(f(3))")])
    both = Ensemble([view, byte_view(other, its_params, its_tokenizer)])      # byte by byte, any vocabularies
    both.generate(["The quick bro"])

Two ways, with the same answers:

    tree      plain byte pair encoding (`jaxlm.tokenize.adjacency`): everything in jit, one model step a byte and a slot
              of the cache a byte (`jaxlm.decode.byte_tree`)
    search    any tokenizer, model and convention, on the host (`jaxlm.decode.byte_search`); a step of the model a byte
              from states that are kept (`jaxlm.decode.remembering`), or, where a model cannot keep them, a pass over
              the whole text. With expressions that look ahead, such as GPT-2's, this is the one

The tree takes one model step a byte where `jaxlm.generate` takes one a token, and its step costs more as the vocabulary
and its longest token grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.types import Params
from jaxlm.decode import byte_tree as tree
from jaxlm.decode.byte_model import END, ByteModel, ByteSession, Text, checked_request, checked_texts
from jaxlm.decode.byte_prompt import Prompt, fill_in_the_middle, prompts_of
from jaxlm.decode.byte_search import SearchBytes, naive_next_byte
from jaxlm.decode.remembering import Remembering, token_model
from jaxlm.decode.row_states import why_not
from jaxlm.decode.token_model import FullPass, TokenModel
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.adjacency import adjacency_of
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.byte_trie import ByteTrie
from jaxlm.tokenize.hf import check_vocabulary

__all__ = [
    "ByteModel",
    "Ensemble",
    "FullPass",
    "Remembering",
    "Prompt",
    "SearchBytes",
    "TreeBytes",
    "byte_view",
    "fill_in_the_middle",
    "naive_next_byte",
]


def byte_view(
    model: LanguageModel | TokenModel,
    params: Params | None,
    tokenizer: Tokenizer,
    convention: str = "canonical",
    *,
    valid: bool = True,
    ends: Sequence[int] | None = None,
    implementation: str = "auto",
) -> ByteModel:
    """A token model as a model of bytes.

    Args:
      model, params: a language model, or any `TokenModel` with None.
      tokenizer: of the model; its tokens must stand for bytes.
      convention: which token sequences count, ``"canonical"`` (encodings) or ``"all"`` (`jaxlm.decode.byte_search`).
      valid: False counts tokens that may not follow, too ("fast mode", other numbers).
      ends: ids that end a text; None for the tokenizer's.
      implementation: ``"tree"``, ``"search"``, or ``"auto"`` for the first that serves.

    Raises `ConfigError` for a tokenizer of another model, an unknown name, or ``"tree"`` where it cannot serve.
    """
    choose("implementation", implementation, ("auto", "tree", "search"))
    if not isinstance(model, LanguageModel):
        require(implementation != "tree", "implementation 'tree' runs a LanguageModel; other token models are searched")
        return SearchBytes(model, tokenizer, convention, valid=valid, ends=ends)
    require(params is not None, "byte_view: a LanguageModel needs its params; None is for other token models")
    assert params is not None
    check_vocabulary(tokenizer, model.spec.vocab_size)
    wrong = [i for i in ends or () if not 0 <= i < model.spec.vocab_size]
    require(not wrong, f"ends: id {wrong[:1]} is outside the model's vocabulary 0..{model.spec.vocab_size - 1}")
    if implementation != "search" and convention == "canonical":
        try:
            return TreeBytes(model, params, tokenizer, valid=valid, ends=ends)
        except ConfigError:
            if implementation == "tree":
                raise
    require(implementation != "tree", f"implementation 'tree' has convention 'canonical', not {convention!r}")
    return SearchBytes(token_model(model, params), tokenizer, convention, valid=valid, ends=ends)


class TreeBytes(ByteModel):
    """A language model with plain byte pair encoding, in jit.

    Args: of `byte_view`. Raises `ConfigError` for another tokenizer, or a model that cannot be run on a tree of texts.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        tokenizer: Tokenizer,
        *,
        valid: bool = True,
        ends: Sequence[int] | None = None,
    ) -> None:
        adjacency, reason = adjacency_of(tokenizer), why_not(model.spec)
        require(
            adjacency, f"implementation 'tree' needs plain byte pair encoding, which {tokenizer.name!r} here is not"
        )
        require(not reason, f"implementation 'tree' cannot serve: {reason}; use 'search'")
        assert adjacency is not None
        self.spec, self.tokenizer = model.spec, tokenizer
        counted = adjacency.usable if valid else np.array([bool(piece) for piece in tokenizer.token_bytes])
        self._trie = ByteTrie.of(tokenizer.token_bytes, counted, adjacency.usable)
        ends = tuple(tokenizer.stop_ids if ends is None else ends)
        self.tables = tree.Tables.of(adjacency, self._trie, ends, valid)
        stacked = any(isinstance(group, dict) for name, group in params.items() if name.startswith("group_"))
        self.params = _unstack(params) if stacked else params
        if "position" in self.params:
            self.params = {**self.params, "position": _prepare(model.spec, self.params["position"])}

    def start(self, prompts: Sequence[Text], room: int = 0) -> TreeSession:
        return TreeSession(self, *self.grow(prompts, [b""] * len(prompts), room)[:1])

    def score(self, texts: Sequence[str | bytes], prompts: Sequence[Text] | None = None) -> list[NDArray[np.float64]]:
        data, prompts = checked_texts(texts, prompts)
        _, logs = self.grow(prompts, data, 0)
        size = logs.shape[1]
        return [np.float64(row[size - len(one) :]) / -np.log(2) for row, one in zip(logs, data, strict=True)]

    def generate(
        self,
        prompts: Sequence[Text],
        max_new_bytes: int = 64,
        temperature: float = 0.0,
        key: jax.Array | None = None,
        stop: Sequence[str | bytes] = (),
        rows: Sequence[int] | None = None,
    ) -> list[bytes]:
        return _generate([self], prompts, max_new_bytes, temperature, key, stop, rows)

    def grow(
        self, prompts: Sequence[Text], more: Sequence[bytes], room: int
    ) -> tuple[tree.Growth, NDArray[np.float32]]:
        """Texts that begin with prompts and ``more``, and the log-probabilities of their bytes, right-aligned."""
        plans = [self._plan(prompt) for prompt in prompts_of(self.tokenizer, prompts)]
        rest = [(*text, *further) for (_, _, text), further in zip(plans, more, strict=True)]
        limit, needed = (
            decoder.max_positions(self.spec),
            max(len(p[0]) + len(r) for p, r in zip(plans, rest, strict=True)),
        )
        require(
            limit is None or needed + room <= limit,
            f"a text of {needed + room} tokens, at most: the model's position encoding can represent {limit}",
        )
        size, longest = _rounded(max(len(head) for head, _, _ in plans), 16), max(map(len, rest))
        columns = _rounded(max(longest, 1), 16)
        tokens = np.zeros((len(plans), size), np.int32)
        forced = np.full((len(plans), columns), -1, np.int32)
        for b, ((head, _, _), text) in enumerate(zip(plans, rest, strict=True)):
            tokens[b, : len(head)] = head
            forced[b, columns - len(text) :] = text
        lengths = np.array([len(head) for head, _, _ in plans], np.int32)
        last = np.array([last for _, last, _ in plans], np.int32)
        capacity = _rounded(size + columns + room, 64)
        growth = _prefill(self.spec, capacity, self.tables, self.params, tokens, lengths, last)
        growth, logs = _feed(self.spec, self.tables, self.params, growth, forced, columns - longest)
        return growth, np.asarray(logs)

    def _plan(self, prompt: Prompt) -> tuple[list[int], int, bytes]:
        """Tokens that all encodings of a prompt begin with, the last of them that is text, and the other bytes."""
        text, trie = prompt.data, self._trie
        whole = self.tokenizer.encode(text).tolist()
        require(self.tokenizer.decode_bytes(np.array(whole, np.int64)) == text, f"no tokens for the text {text[:20]!r}")
        # The nodes that tokens still reach beyond from; the prompt's own is one.
        cuts = [i for i in range(max(0, len(text) - trie.longest), len(text)) if trie.row[trie.walk(text[i:])]]
        for cut in cuts:
            other = self.tokenizer.encode(text[:cut]).tolist()
            same = next((k for k, (a, b) in enumerate(zip(whole, other, strict=False)) if a != b), len(other))
            whole = whole[: min(same, len(whole))]
        base = [*prompt.head, *whole]
        require(base, "the model says nothing about a first token: give prompts a BOS, or other ids, as head")
        done = sum(len(self.tokenizer.token_bytes[i]) for i in whole)
        return base, whole[-1] if whole else self.tokenizer.vocab_size, text[done:]


class TreeSession(ByteSession):
    """Texts of a `TreeBytes`, one step of the model at a time."""

    def __init__(self, view: TreeBytes, growth: tree.Growth) -> None:
        self._view, self._growth = view, growth

    def log_probs(self) -> NDArray[np.float32]:
        return np.asarray(_distribution(self._view.tables, self._growth))

    def advance(self, following: Sequence[int] | NDArray[np.integer]) -> None:
        view, byte = self._view, jnp.asarray(following, jnp.int32)
        self._growth = _advance(view.spec, view.tables, view.params, self._growth, byte)


class Ensemble(ByteModel):
    """Several views, whose distributions over bytes and the end are averaged at every byte.

    Their tokenizers may differ, and their conventions. Members that all are `TreeBytes` sample together in jit.
    """

    def __init__(self, members: Sequence[ByteModel]) -> None:
        require(members, "Ensemble: expected one or more byte-level views")
        self.members = list(members)

    def start(self, prompts: Sequence[Text], room: int = 0) -> EnsembleSession:
        self._check(prompts)
        return EnsembleSession([member.start(prompts, room) for member in self.members])

    def generate(
        self,
        prompts: Sequence[Text],
        max_new_bytes: int = 64,
        temperature: float = 0.0,
        key: jax.Array | None = None,
        stop: Sequence[str | bytes] = (),
        rows: Sequence[int] | None = None,
    ) -> list[bytes]:
        self._check(prompts)
        trees = [member for member in self.members if isinstance(member, TreeBytes)]
        if len(trees) < len(self.members):
            return super().generate(prompts, max_new_bytes, temperature, key, stop, rows)
        return _generate(trees, prompts, max_new_bytes, temperature, key, stop, rows)

    def _check(self, prompts: Sequence[Text]) -> None:
        tokenizers = [getattr(member, "tokenizer", None) for member in self.members]
        given = any(isinstance(prompt, Prompt) and prompt.head for prompt in prompts)
        require(
            not given or all(tokenizer == tokenizers[0] for tokenizer in tokenizers),
            "Prompt.head holds ids of one tokenizer, and the members' differ: give an ensemble texts or bytes",
        )


class EnsembleSession(ByteSession):
    def __init__(self, members: Sequence[ByteSession]) -> None:
        self._members = members

    def log_probs(self) -> NDArray[np.floating]:
        logs = np.stack([np.asarray(member.log_probs(), np.float64) for member in self._members])
        with np.errstate(divide="ignore"):
            return np.log(np.exp(logs).mean(0))

    def advance(self, following: Sequence[int] | NDArray[np.integer]) -> None:
        for member in self._members:
            member.advance(following)


def _generate(
    members: Sequence[TreeBytes],
    prompts: Sequence[Text],
    max_new_bytes: int,
    temperature: float,
    key: jax.Array | None,
    stop: Sequence[str | bytes],
    rows: Sequence[int] | None,
) -> list[bytes]:
    ids, stops = checked_request(prompts, max_new_bytes, temperature, key, stop, rows)
    widest = max(map(len, stops), default=0)
    ending = np.full((len(stops), widest), -1, np.int32)
    for one, text in zip(ending, stops, strict=True):
        one[widest - len(text) :] = list(text)
    nothing = [b""] * len(prompts)
    growths = tuple(member.grow(prompts, nothing, max_new_bytes)[0] for member in members)
    found = _sample(
        tuple(member.spec for member in members),
        max_new_bytes,
        tuple(member.tables for member in members),
        tuple(member.params for member in members),
        growths,
        jnp.float32(temperature),
        key if temperature else None,
        jnp.asarray(ids),
        jnp.asarray(ending),
    )
    return [bytes(row[(row >= 0) & (row < END)].tolist()) for row in np.asarray(found)]


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to


_unstack = jax.jit(decoder.unstack)
_prepare: Any = jax.jit(decoder.prepare_positions, static_argnums=0)
_prefill: Any = jax.jit(tree.prefill, static_argnums=(0, 1))
_feed: Any = jax.jit(tree.feed, static_argnums=0, donate_argnums=3)
_advance: Any = jax.jit(tree.advance, static_argnums=0, donate_argnums=3)
_distribution: Any = jax.jit(tree.distribution)
_sample: Any = jax.jit(tree.sample, static_argnums=(0, 1))
