"""Models without an alphabet: symbols drawn anew for each row (Huang et al. 2023, Lexinvariant Language Models).

One text of characters, one model, and one difference: the usual model has a table of symbols, the lexinvariant one
draws a table for each row. Read by position in the row, on held-out text: as it is, and under a substitution cipher for
each row. And whether the lexinvariant model finds the plain letters: a linear map from its hidden states to the usual
model's embeddings, fitted on other rows under other tables (`jaxlm.eval.deciphering`), at each depth.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, of_text
from experiments.tokenization.texts import Texts
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.data.pack import TokenStream
from jaxlm.eval.deciphering import Decipherer, accuracy
from jaxlm.model.decoder import Decoder
from jaxlm.model.inputs import begin
from jaxlm.model.layers import apply_layers
from jaxlm.objective.lexinvariant import Lexinvariant
from jaxlm.objective.next_token import NextToken
from jaxlm.ops.drawn_table import row_keys, with_tables

USUAL, ANEW = "usual", "lexinvariant"
TEXTS = ("plain", "cipher")
LOSS, DECIPHERED = "nats per character", "deciphered"
ROWS = 16  # read at once
BINS = 16  # of a row, for the figure


@dataclasses.dataclass(frozen=True)
class Lexinvariance(Study):
    """The study of lexinvariant models.

    Attributes:
      symbols: characters; the rarer ones are one symbol together.
      shares: of rows with a drawn table that further models are trained with (as a regulariser).
      model: the transformer; a row has as many characters as ``row_bytes``.
      early, late: positions of a row that are compared, from and up to.
      rows: of held-out text that are read, and of training text that the probe is fitted on.
      texts: what is learned and read.
    """

    name: ClassVar[str] = "lexinvariance"
    claim: ClassVar[str] = (
        "the loss of a model without fixed embeddings approaches that of a usual one as the context grows, a "
        "substitution cipher changes nothing, and the plain letters can be read off its states (Huang et al. 2023)"
    )
    axes: ClassVar[tuple[str, str]] = ("position in the row", LOSS)

    symbols: int = 64
    shares: tuple[float, ...] = ()
    model: SmallModel = SmallModel(layers=3, batch_size=8, steps=1500, rate=1e-3)
    early: tuple[int, int] = (10, 31)
    late: tuple[int, int] = (200, 256)
    rows: int = 128
    texts: Texts = Texts()

    def check(self) -> None:
        super().check()
        require(2 <= self.symbols <= 257, f"Lexinvariance.symbols: expected 2 to 257, got {self.symbols}")
        require(self.rows > 0, f"Lexinvariance.rows: expected a positive number, got {self.rows}")
        odd = [share for share in self.shares if not 0 < share < 1]
        require(not odd, f"Lexinvariance.shares: expected shares in (0, 1), got {odd[:1]}")
        for name in ("early", "late"):
            place = getattr(self, name)
            require(
                len(place) == 2 and 0 <= place[0] < place[1] <= self.model.row_bytes,
                f"Lexinvariance.{name}: expected positions within {self.model.row_bytes}, got {place}",
            )

    def arms(self) -> Sequence[Arm]:
        names = (USUAL, ANEW, *(f"{share:g} of the rows" for share in self.shares))
        return [Arm("", name, self.model.steps) for name in names]

    def objective(self, label: str) -> NextToken | Lexinvariant:
        if label == USUAL:
            return NextToken()
        return Lexinvariant() if label == ANEW else Lexinvariant(share=float(label.partition(" ")[0]))

    @functools.cached_property
    def characters(self) -> dict[str, NDArray[np.int32]]:
        """The texts in symbols, the most frequent character first."""
        train, test = (np.frombuffer(b"\n".join(t), np.uint8) for t in (self.texts.train_texts, self.texts.test_texts))
        order = np.argsort(-np.bincount(train, minlength=256), kind="stable")
        symbol = np.full(256, self.symbols - 1, np.int32)
        symbol[order[: self.symbols - 1]] = np.arange(self.symbols - 1)
        return {"train": symbol[train], "test": symbol[test]}

    def read(self, part: str) -> NDArray[np.int32]:
        """So many rows of a text, one character longer than the model's, [rows, L + 1]."""
        text, length = self.characters[part], self.model.row_bytes + 1
        require(len(text) >= length, f"Lexinvariance.texts: {len(text)} characters make no row of {length}")
        return text[: len(text) // length * length].reshape(-1, length)[: self.rows]

    def training(self, label: str, progress: frame.Report) -> Training:
        train = self.characters["train"]
        stream = TokenStream(train.astype(np.uint16), np.array([len(train)]), np.array([1]))
        batches = of_text(self.model, stream, self.model.row_bytes)
        return Training(self.model, self.symbols, batches, progress, self.objective(label))

    @functools.cached_property
    def usual(self) -> Usual:
        return Usual(self)

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        training = self.training(arm.label, progress)

        def run(seed: int) -> Iterator[Found]:
            params = self.usual(seed, training) if arm.label == USUAL else training(seed)[0]
            rows = self.read("test")
            draws = np.random.default_rng((seed, 2))
            cipher = np.stack([draws.permutation(self.symbols) for _ in rows]).astype(np.int32)
            texts = {"plain": rows, "cipher": np.take_along_axis(cipher, rows, 1)}
            for setting, text in texts.items():
                for tables in ("drawn", "learned") if arm.label not in (USUAL, ANEW) else ("",):
                    drawn = tables == "drawn" or arm.label == ANEW
                    nats = _by_position(training.model, params, text, seed if drawn else None)
                    where = f"{setting}, {tables}" if tables else setting
                    yield Found(LOSS, float(nats.mean()), 0, where)
                    for name, (start, stop) in {"early": self.early, "late": self.late}.items():
                        yield Found(name, float(nats[:, start:stop].mean()), 0, where)
                    for part in np.array_split(np.arange(nats.shape[1]), min(BINS, nats.shape[1])):
                        yield Found(LOSS, float(nats[:, part].mean()), int(part.mean()) + 1, where)
            if arm.label == ANEW:
                embeddings = np.asarray(self.usual(seed, self.training(USUAL, progress))["embed"]["table"])
                yield from self._deciphered(training.model, params, embeddings, seed)

        return run

    def _deciphered(self, model: Decoder, params: Params, embeddings: NDArray, seed: int) -> Iterator[Found]:
        fitted, rows = self.read("train")[:, :-1], self.read("test")[:, :-1]
        for depth in range(1, self.model.layers + 1):
            states = _states(model, params, fitted, depth, (seed, 3))
            probe = Decipherer.fit(states.reshape(-1, states.shape[-1]), fitted.reshape(-1), embeddings)
            found = probe(_states(model, params, rows, depth, (seed, 4)))
            for name, (start, stop) in {"early": self.early, "late": self.late}.items():
                yield Found(DECIPHERED, accuracy(found, rows, start, stop), depth, name)
        guess = np.bincount(fitted.reshape(-1), minlength=self.symbols).argmax()
        yield Found("most frequent", float((rows == guess).mean()))

    def lines(self, found: Results) -> Iterator[Line]:
        values = lambda label, measure, setting: found.of("", label, measure, 0, setting)
        early, late = (values(ANEW, name, "plain") for name in ("early", "late"))
        if early:
            yield Line("lexinvariant: late loss over early loss", 0.6, False, between(late, early, operator.truediv))
            plain, cipher = (values(ANEW, LOSS, text) for text in TEXTS)
            apart = {seed: abs(cipher[seed] - plain[seed]) for seed in plain}
            yield Line("lexinvariant: what a fresh cipher changes, nats", 0.02, False, apart)
        if values(USUAL, LOSS, "plain"):
            plain, cipher = (values(USUAL, LOSS, text) for text in TEXTS)
            yield Line(
                "usual: loss under a cipher over that without", 2.0, True, between(cipher, plain, operator.truediv)
            )
        if depths := found.curve("", ANEW, DECIPHERED, "late"):
            best = {seed: max(by_seed[seed] for _, by_seed in depths) for seed in depths[0][1]}
            yield Line("lexinvariant: plain letters found late, at the best depth", 0.8, True, best)

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        settings = [*TEXTS, *(f"{text}, {tables}" for text in TEXTS for tables in ("drawn", "learned") if self.shares)]
        out: dict[str, Callable[[str], dict[int, float]]] = {}
        for setting in settings:
            for name in ("early", "late"):
                of = lambda label, name=name, setting=setting: found.of("", label, name, 0, setting)
                out[f"{setting}: {name}"] = of
        for depth in range(1, self.model.layers + 1):
            of = lambda label, depth=depth: found.of("", label, DECIPHERED, depth, "late")
            out[f"letters, layer {depth}"] = of
        return out

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            for setting in sorted({row.setting for row in found.rows if row.arm == arm.label and row.measure == LOSS}):
                points = [(x, values) for x, values in found.curve("", arm.label, LOSS, setting) if x]
                panels.add(out, setting.partition(",")[0], arm.label + setting.partition(",")[2], points)
        return out


class Usual:
    """The usual model of each seed, which is trained once: its arm and the probe of the other may ask at one time."""

    def __init__(self, study: Lexinvariance):
        self._locks = {seed: threading.Lock() for seed in study.seeds}
        self._params: dict[int, Params] = {}

    def __call__(self, seed: int, training: Training) -> Params:
        with self._locks[seed]:
            if seed not in self._params:
                self._params[seed], _ = training(seed)
            return self._params[seed]


@jax.jit(static_argnums=0)
def _nats(model: Decoder, params: Params, rows: jax.Array) -> jax.Array:
    logits = model(params, rows[:, :-1], ordered=True).logits
    assert logits is not None
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, 1:, None], -1)[..., 0]


def _by_position(model: Decoder, params: Params, rows: NDArray, seed: int | None) -> NDArray[np.float32]:
    """The loss of each prediction [N, L]; with a ``seed``, under a table drawn for each row."""
    out = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        own = params if seed is None else _drawn(params, (seed, 1), start, len(part))
        out.append(np.asarray(_nats(model, own, part)))
    return np.concatenate(out)


def _drawn(params: Params, key: tuple[int, int], start: int, number: int) -> Params:
    base = jax.random.fold_in(jax.random.key(key[0]), key[1])
    return with_tables(params, row_keys(base, jnp.arange(start, start + number)))


@jax.jit(static_argnums=(0, 3))
def _after(model: Decoder, params: Params, rows: jax.Array, depth: int) -> jax.Array:
    x, ctx, _ = begin(model.spec, params, rows)
    return apply_layers(model.spec, params, x, ctx, layers=(0, depth))[0]


def _states(model: Decoder, params: Params, rows: NDArray, depth: int, key: tuple[int, int]) -> NDArray[np.float32]:
    """The stream behind ``depth`` layers [N, L, D], under a table drawn for each row."""
    parts = range(0, len(rows), ROWS)
    cut = lambda i: rows[i : i + ROWS]
    return np.concatenate(
        [np.asarray(_after(model, _drawn(params, key, i, len(cut(i))), cut(i), depth)) for i in parts]
    )
