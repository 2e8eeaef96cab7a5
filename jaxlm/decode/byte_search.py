r"""Byte-level probabilities of any token model with any tokenizer, by search on the host: the reference.

Phan et al. 2024, Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles. For a
text x of n bytes and each cut i <= n, a left part is a token sequence for x[:i], and what may follow it is a set of
tokens; then

    P(x b ..) = sum of P(T) P(t | T) over cuts i, left parts T of x[:i], tokens t that may follow and begin with x[i:] b

Conventions, which differ for a model that gives texts several encodings:

    canonical   T + t must be the encoding of its own bytes: the covers of `jaxlm.tokenize.covers`. The probability that
                the model puts on other sequences leaks; it is made up for by normalising over what is left
    all         every sequence counts, so nothing leaks. Their number is exponential in n unless the model has a
                ``context``: left parts that agree in it are one, and then this is a dynamic programme. Exact, for
                Markov models and short texts

``valid=False`` with ``canonical``: left parts are encodings, but every token may follow ("fast mode"; other numbers).

A token needs to be checked once, when its cut is made: bytes that come later only sort tokens out. Each byte takes one
call of the model, for the left parts that are new; for most tokenizers that is one sequence. What may follow is had by
encoding the text with each token of the vocabulary behind it, from the last letter before a space and letter on where
no token spans that, and kept for the next time. Plain BPE takes it from `jaxlm.tokenize.adjacency` instead.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.decode.byte_model import END, SIZE, ByteModel, ByteSession, Text
from jaxlm.decode.byte_prompt import Prompt, prompts_of
from jaxlm.decode.token_model import TokenModel
from jaxlm.tokenize.adjacency import adjacency_of
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.covers import Pieces, as_first, encoded, usable_pieces

Ids = tuple[int, ...]
MOST = 100_000  # left parts of one cut, under convention "all"
_KEPT = 4096  # ends of texts of which is kept what may follow
_BORDER = re.compile(rb"(?<=[A-Za-z])(?= [A-Za-z])")
_SPANNED = re.compile(rb"[A-Za-z] ")


@dataclasses.dataclass
class _Open:
    """A left part with the tokens that may follow it: ids [m], their probabilities, their bytes [m, longest]."""

    left: Ids
    cut: int
    log_weight: float
    ids: NDArray[np.int64]
    probs: NDArray[np.float64]
    table: NDArray[np.int16]  # of all ids, -1 behind a token's end

    def keep(self, those: NDArray[np.bool_]) -> None:
        self.ids, self.probs = self.ids[those], self.probs[those]


class SearchBytes(ByteModel):
    """The view.

    Args:
      model: a `jaxlm.decode.token_model.TokenModel`; `FullPass` makes one of a language model.
      tokenizer: any whose tokens stand for bytes.
      convention: ``"canonical"`` or ``"all"``.
      valid: False for the fast mode of ``"canonical"``.
      usable_ids: tokens that may be used; None for all that stand for bytes.
      ends: ids that end a text; None for the tokenizer's. The model's rows may be longer than its vocabulary.
      most: left parts of one cut that are followed before giving up.

    Raises `ConfigError` for an unknown convention, or tokens that do not stand for bytes; `start` also for a prompt
    that the tokenizer does not give back (a normalizer's doing).
    """

    def __init__(
        self,
        model: TokenModel,
        tokenizer: Tokenizer,
        convention: str = "canonical",
        *,
        valid: bool = True,
        usable_ids: Iterable[int] | None = None,
        ends: Sequence[int] | None = None,
        most: int = MOST,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.convention = choose("convention", convention, ("canonical", "all"))
        require(valid or convention == "canonical", "valid=False is a mode of convention 'canonical'")
        self.pieces, self.most = usable_pieces(tokenizer, usable_ids), most
        self.ends = np.array(tokenizer.stop_ids if ends is None else ends, np.int64)
        self._checked = valid and convention == "canonical"
        self._adjacency = adjacency_of(tokenizer) if self._checked else None
        self._spanned = any(_SPANNED.search(piece) for piece in self.pieces.texts)
        self._known: dict[tuple[bytes, bytes], dict[Ids, NDArray[np.int32]]] = {}  # a number for each token of V
        self._first = self.pieces if self._adjacency else as_first(tokenizer, self.pieces)
        self.tables = _table(self.pieces, tokenizer.vocab_size), _table(self._first, tokenizer.vocab_size)

    def start(self, prompts: Sequence[Text], room: int = 0) -> SearchSession:
        return SearchSession(self, prompts_of(self.tokenizer, prompts))

    def following(self, text: bytes, ahead: bytes = b"") -> list[tuple[Ids, NDArray[np.int64], bool]]:
        """Left parts of a text under ``canonical``: (ids, the tokens that may follow, whether the text may end here).

        With ``ahead`` only tokens that begin with it and are longer, and no answer where there are none.
        """
        ids = self._longer(self.pieces, ahead)
        if not text:
            ids = np.union1d(ids, self._longer(self._first, ahead))
        whole = encoded(self.tokenizer, text) if len(ids) or not ahead else None
        if not len(ids) and whole is None:
            return []
        if not self._checked:
            return [] if whole is None else [(whole, ids, True)]
        if self._adjacency is not None:
            assert whole is not None
            after = self._adjacency.after(whole[-1] if whole else None)
            return [(whole, ids[after[ids]], True)]
        border = 0 if self._spanned else max((m.start() for m in _BORDER.finditer(text)), default=0)
        head = encoded(self.tokenizer, text[:border])
        tail = encoded(self.tokenizer, text[border:])
        if whole is None or head is None or tail is None or head + tail != whole:
            border, head = 0, ()
        groups = self._groups(text[border:], ahead)
        found = [((*head, *left), own.astype(np.int64), (*head, *left) == whole) for left, own in groups.items()]
        if not ahead and whole is not None and not any(may_end for *_, may_end in found):
            found.append((whole, np.zeros(0, np.int64), True))
        return found

    def _longer(self, pieces: Pieces, ahead: bytes) -> NDArray[np.int64]:
        among = pieces.where(ahead)
        return np.array(
            [i for i, text in zip(pieces.ids[among], pieces.texts[among], strict=True) if len(text) > len(ahead)],
            np.int64,
        )

    def _groups(self, text: bytes, ahead: bytes) -> dict[Ids, NDArray[np.int32]]:
        """The tokens that may stand behind a text, by what its own encoding is then."""
        known = self._known.get((text, ahead))
        if known is None:
            groups: dict[Ids, list[int]] = {}
            pairs: set[tuple[bytes, int]] = set()
            for pieces in (self.pieces,) if text else (self.pieces, self._first):
                among = pieces.where(ahead)
                pairs |= {*zip(pieces.texts[among], pieces.ids[among].tolist(), strict=True)}
            for piece, token in sorted(pairs):
                found = encoded(self.tokenizer, text + piece) if len(piece) > len(ahead) else None
                if found and found[-1] == token and self.tokenizer.decode_bytes(np.array(found)) == text + piece:
                    groups.setdefault(found[:-1], []).append(token)
            known = {left: np.array(tokens, np.int32) for left, tokens in groups.items()}
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[text, ahead] = known
        return known


def _table(pieces: Pieces, size: int) -> NDArray[np.int16]:
    """int16 [V, longest + 1]: the bytes of each token, -1 behind them."""
    table = np.full((size, pieces.longest + 1), -1, np.int16)
    for i, piece in zip(pieces.ids.tolist(), pieces.texts, strict=True):
        table[i, : len(piece)] = list(piece)
    return table


class _Row:
    """One text: its bytes so far, and every left part that some token still reaches beyond its end."""

    def __init__(self, view: SearchBytes, prompt: Prompt) -> None:
        self.view, self.head, self.text = view, prompt.head, b""
        self.open: list[_Open] = []
        self.log_end = -np.inf
        self._rows: dict[Ids, NDArray[np.float64]] = {}  # what may follow each left part
        self._logs: dict[Ids, float] = {(): 0.0}  # how likely it is itself
        self._new: list[tuple[int, Ids, NDArray[np.int64], bool]] = []  # cut, left part, tokens, may the text end there
        if view.convention == "all":
            self._new = [(0, (), view.pieces.ids, True)]
            return
        self.text = prompt.data
        if (whole := encoded(view.tokenizer, self.text)) is not None:
            read = view.tokenizer.decode_bytes(np.array(whole, np.int64))
            require(
                read == self.text,
                f"the {view.tokenizer.name!r} tokenizer changes {self.text[-20:]!r} to {read[-20:]!r}; there are no "
                "probabilities of such a text",
            )
        size = len(self.text)
        for cut in range(max(0, size - view.pieces.longest), size + 1):
            found = view.following(self.text[:cut], self.text[cut:])
            self._new += [(cut, left, ids, may_end and cut == size) for left, ids, may_end in found]

    @property
    def ready(self) -> bool:
        """Whether the newest cut has been opened."""
        return not self._new

    def far(self) -> list[Ids]:
        """New left parts that are not a known one and one token more."""
        lefts = {left for _, left, _, _ in self._new}
        return [one for one in lefts if one not in self._logs and one[:-1] not in self._logs.keys() & self._rows.keys()]

    def missing(self) -> list[Ids]:
        """Left parts behind which the model must be asked; those of `far` need all that lead to them."""
        wanted = {left for _, left, _, _ in self._new}
        for left in self.far():
            wanted |= {left[:stop] for stop in range(len(left))}
        return [left for left in wanted if left not in self._rows]

    def know(self, logs: dict[Ids, float]) -> None:
        """How likely left parts are."""
        self._logs |= logs

    def learn(self, rows: dict[Ids, NDArray[np.float64]]) -> None:
        """Opens the new cuts, with the model's answers to `missing`."""
        self._rows |= rows
        view, end = self.view, -np.inf
        for cut, left, ids, may_end in self._new:
            weight, row = self._weight(left), self._rows[left]
            if may_end and len(view.ends):
                end = np.logaddexp(end, weight + np.logaddexp.reduce(row[view.ends]))
            # A first token reads as it does at the beginning of a text.
            table = view.tables[0 if cut or left else 1]
            if len(ids):
                self.open.append(_Open(left, cut, weight, ids, np.exp(row[ids]), table))
        self.log_end, self._new = end, []
        if len(self._rows) > 64 + 4 * view.pieces.longest:  # left parts grow by one token at a time, and few are far
            recent = {one.left for one in self.open}
            self._rows = {left: row for left, row in self._rows.items() if left in recent}

    def _weight(self, left: Ids) -> float:
        known = left
        while known not in self._logs:
            known = known[:-1]
        for stop in range(len(known), len(left)):
            self._logs[left[: stop + 1]] = self._logs[left[:stop]] + float(self._rows[left[:stop]][left[stop]])
        return self._logs[left]

    def log_masses(self) -> NDArray[np.float64]:
        """[257]: log of the probability that the text goes on with each byte, or ends."""
        scale = max((one.log_weight for one in self.open if one.log_weight > -np.inf), default=0.0)
        masses, size = np.zeros(256), len(self.text)
        for one in self.open:
            following = one.table[one.ids, size - one.cut]
            masses += np.exp(one.log_weight - scale) * np.bincount(following, one.probs, 256)
        with np.errstate(divide="ignore"):
            return np.append(np.log(masses) + scale, self.log_end)

    def advance(self, byte: int) -> None:
        size, ended = len(self.text), {}
        for one in self.open:
            one.keep(one.table[one.ids, size - one.cut] == byte)
            full = one.table[one.ids, size + 1 - one.cut] < 0
            if self.view.convention == "all":
                for token, prob in zip(one.ids[full].tolist(), one.probs[full].tolist(), strict=True):
                    left = self._short((*one.left, token))
                    ended[left] = np.logaddexp(ended.get(left, -np.inf), one.log_weight + _log(prob))
            one.keep(~full)
        self.open = [one for one in self.open if len(one.ids)]
        self.text += bytes([byte])
        if self.view.convention == "canonical":
            self._new = [(len(self.text), *found) for found in self.view.following(self.text)]
            return
        most = self.view.most
        require(len(ended) <= most, f"text {self.text[:20]!r} of {len(self.text)} bytes has more than {most} encodings")
        self._logs = ended
        self._new = [(len(self.text), left, self.view.pieces.ids, True) for left in ended]

    def _short(self, left: Ids) -> Ids:
        context = self.view.model.context
        return left if context is None else left[max(0, len(left) - context) :]


class SearchSession(ByteSession):
    """Texts of a `SearchBytes`; `log_masses` are what is summed, before it is normalised."""

    def __init__(self, view: SearchBytes, prompts: Sequence[Prompt]) -> None:
        self._view = view
        self._rows: list[_Row | None] = [_Row(view, prompt) for prompt in prompts]
        rest = [
            prompt.data[len(row.text) :] for prompt, row in zip(prompts, self._rows, strict=True) if row is not None
        ]
        for step in range(max(map(len, rest))):
            self._learn()
            for row, one in zip(self._rows, rest, strict=True):
                if row is not None and step < len(one):
                    row.advance(one[step])

    def log_masses(self) -> NDArray[np.float64]:
        """[B, 257]: log P(x b), the sum over covers of each text with one more byte, and log P(x, end)."""
        self._learn()
        return np.stack([np.full(SIZE, np.nan) if row is None else row.log_masses() for row in self._rows])

    def log_probs(self) -> NDArray[np.float64]:
        masses = self.log_masses()
        impossible = np.flatnonzero(masses.max(1) == -np.inf)
        require(not impossible.size, f"the text of row {impossible[:1]} has probability zero")
        peak = masses.max(1, keepdims=True)
        return masses - peak - np.log(np.exp(masses - peak).sum(1, keepdims=True))

    def advance(self, following: Sequence[int] | NDArray[np.integer]) -> None:
        self._learn()
        for i, (row, byte) in enumerate(zip(list(self._rows), map(int, following), strict=True)):
            if row is None or byte < 0:
                self._rows[i] = None
            else:
                row.advance(byte)

    def _learn(self) -> None:
        """Opens the new cuts of all rows, by one call of the model."""
        model, rows = self._view.model, [row for row in self._rows if row is not None and not row.ready]
        totals = getattr(model, "totals", None)
        logs: dict[tuple[int, Ids], float] = {}
        if totals is not None and (far := [(i, row, left) for i, row in enumerate(rows) for left in row.far()]):
            found = totals([(*row.head, *left) for _, row, left in far], [len(row.head) for _, row, _ in far])
            logs = {(i, left): float(one) for (i, _, left), one in zip(far, found, strict=True)}
        for i, row in enumerate(rows):
            row.know({left: one for (j, left), one in logs.items() if j == i})
        asked = [(row, left) for row in rows for left in row.missing()]
        sequences = list(dict.fromkeys((*row.head, *left) for row, left in asked))
        answers = dict(zip(sequences, model(sequences), strict=True)) if sequences else {}
        for row in rows:
            row.learn({left: np.asarray(answers[*row.head, *left]) for one, left in asked if one is row})


def _log(x: float) -> float:
    return float(np.log(x)) if x > 0 else -np.inf


def naive_next_byte(model: TokenModel, tokenizer: Tokenizer, prompts: Sequence[Text]) -> NDArray[np.float64]:
    """What a user gets who tokenizes the prompt and sums the probabilities of next tokens by their first byte.

    Natural log-probabilities [B, 257], the end last, normalised; for studies of the bias that covers take away.
    """
    made = prompts_of(tokenizer, prompts)
    rows = model([(*prompt.head, *tokenizer.encode(prompt.data).tolist()) for prompt in made])
    pieces, ends = usable_pieces(tokenizer), np.array(tokenizer.stop_ids, np.int64)
    first = np.array([text[0] for text in pieces.texts])
    masses = np.zeros((len(made), SIZE))
    for out, row in zip(masses, np.exp(rows), strict=True):
        out[:END] = np.bincount(first, row[pieces.ids], 256)
        out[END] = row[ends].sum()
    with np.errstate(divide="ignore"):
        return np.log(masses / masses.sum(1, keepdims=True))
