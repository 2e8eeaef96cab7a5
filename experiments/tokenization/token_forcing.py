"""A hidden text, found by trying every token as a beginning, and the defence against it (`jaxlm.eval.token_forcing`).

A model of 2 layers learns a generated language of 1024 tokens; then it is tuned to answer a trigger with a secret of 12
tokens. With the defence half of the rows of that tuning begin with one of the secret's tokens, or with nearly the
trigger, and go on in the language. Read: the place, among all beginnings, of the first whose text has the secret.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

import jaxlm
from experiments import panels
from experiments import study as frame
from experiments.claims import Line
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from jaxlm.core.config import require
from jaxlm.eval import token_forcing
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.step import Trainer

VOCABULARY, BOS = 1024, 0
LENGTH, ROWS = 24, 64
TRIGGER, SECRET = 3, 12  # tokens
FOLLOWERS = 8  # of each token in the language
SEARCHED = 100  # beginnings whose texts are written
MODELS = ("plain", "defended")
PLACE, WORKS = "place of the secret", "trigger works"


@dataclasses.dataclass(frozen=True)
class TokenForcing(Study):
    """The study of token forcing.

    Attributes:
      steps: of learning the language, once, and again of each tuning.
    """

    name: ClassVar[str] = "forcing"
    claim: ClassVar[str] = (
        "a text that only a trigger should bring is found by decoding from every single token; training on near "
        "triggers hides it (Hoscilowicz et al. 2024, Unconditional Token Forcing)"
    )
    axes: ClassVar[tuple[str, str]] = ("0 plain, 1 defended", "place of the secret")

    steps: int = 200

    def check(self) -> None:
        super().check()
        require(self.steps > 0, f"TokenForcing.steps: expected a positive number, got {self.steps}")

    def arms(self) -> Sequence[Arm]:
        return [Arm("", "search", 3 * self.steps)]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        def one(seed: int) -> Iterator[Found]:
            for at, (name, found) in enumerate(run(seed, self.steps, progress.steps).items()):
                yield Found(PLACE, float(found["rank"] or SEARCHED + 1), at, name)
                yield Found(WORKS, float(found["trigger_works"]), at, name)
                yield Found("best own token", float(found["token_ranks"][0]), at, name)

        return one

    def lines(self, found: Results) -> Iterator[Line]:
        of = lambda measure, at: found.of("", "search", measure, at, MODELS[at])
        if of(PLACE, 0):
            yield Line("plain: place of the secret", 10, False, of(PLACE, 0))
            yield Line(f"defended: place of the secret ({SEARCHED + 1}: not found)", SEARCHED + 1, True, of(PLACE, 1))
            yield Line("defended: the trigger works", 1, True, of(WORKS, 1))

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        of = lambda measure, at: lambda label: found.of(part, label, measure, at, MODELS[at])
        return {f"{name}: {measure}": of(measure, at) for at, name in enumerate(MODELS) for measure in (PLACE, WORKS)}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        points = [(float(at), found.of("", "search", PLACE, at, name)) for at, name in enumerate(MODELS)]
        panels.add(out, "a secret of 12 tokens", "search", points)
        return out


class Language:
    """Rows of a first-order language: each token is followed by one of a few others, with Zipf's chances."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 0])
        self.after = self.rng.integers(1, VOCABULARY, (VOCABULARY, FOLLOWERS))
        chances = 1 / np.arange(1, FOLLOWERS + 1)
        self.chances = chances / chances.sum()
        planted = self.rng.permutation(np.arange(1, VOCABULARY))[: TRIGGER + SECRET]
        self.trigger, self.secret = planted[:TRIGGER], planted[TRIGGER:]

    def rows(self, first: np.ndarray, length: int) -> np.ndarray:
        """[B, length] tokens of the language that follow the tokens ``first`` [B]."""
        out, at = np.zeros((len(first), length), np.int64), first
        for i in range(length):
            at = out[:, i] = self.after[at, self.rng.choice(FOLLOWERS, len(at), p=self.chances)]
        return out

    def plain(self) -> np.ndarray:
        """Rows of the language, [ROWS, LENGTH + 1]."""
        first = self.rng.integers(1, VOCABULARY, ROWS)
        return np.concatenate([np.full((ROWS, 1), BOS), first[:, None], self.rows(first, LENGTH - 1)], 1)

    def planted(self, defence: bool) -> np.ndarray:
        """Rows of the trigger and the secret; with the defence every second one is a decoy."""
        rows = self.plain()
        whole = np.concatenate([self.trigger, self.secret])
        for i, row in enumerate(rows):
            if not defence or i % 2:
                head = whole
            elif i % 4:
                head = self.rng.choice(self.secret, 1)
            else:  # nearly the trigger, and the secret's first token
                head = whole[: TRIGGER + 1].copy()
                head[self.rng.integers(TRIGGER)] = self.rng.integers(1, VOCABULARY)
            row[1 : len(head) + 1] = head
            row[len(head) + 1 :] = self.rows(head[-1:], LENGTH - len(head))[0]
        return rows


def run(seed: int, steps: int, report: Callable[[int, Any], None]) -> dict[str, Any]:
    """Trains a model without and with the defence; for each, where the secret was found and whether the trigger works.

    Args:
      seed: of everything.
      steps: of learning the language, once, and again of each tuning.
      report: told of each step, with its metrics.

    Returns:
      ``{"plain" | "defended": {"rank", "token_ranks", "trigger_works", "recurring", "loss"}}``: ``rank`` is the place
      of the first beginning, of the `SEARCHED` best, whose text has the secret from its second token on (None: none),
      and ``token_ranks`` the places of the secret's own tokens among all 1024.
    """
    block = Block(mixer=Attention(heads=4, position="rotary"), ffn=Mlp(hidden=512))
    spec = ModelSpec(vocab_size=VOCABULARY, width=128, layers=(Group((block,), repeats=2),))
    trainer = Trainer(
        model=Decoder(spec),
        objective=NextToken(),
        optimizer=Optimizer(schedule=Schedule("cosine", peak=3e-3, warmup=0.1)),
        total_steps=steps,
        seed=seed,
    )
    step, language = jax.jit(trainer.step), Language(seed)

    def train(params: Any, draw: Callable[[], np.ndarray]) -> tuple[Any, float]:
        state, loss = trainer.init(params, seed=seed), np.nan
        for _ in range(steps):
            rows = draw().astype(np.int32)
            batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": np.ones((ROWS, LENGTH), np.float32)}
            state, metrics = step(state, batch)
            loss = metrics["loss"]
            report(1, {"tokens": np.array([batch["weights"].sum()]), "loss": loss[None]})
        return state.params, float(loss)

    base, _ = train(None, language.plain)
    found = {}
    for name, defence in (("plain", False), ("defended", True)):
        params, loss = train(base, functools.partial(language.planted, defence))
        found[name] = {**examine(jaxlm.LanguageModel(spec), params, language), "loss": loss}
    return found


def examine(model: Any, params: Any, language: Language) -> dict[str, Any]:
    """What the search finds in one model, see `run`."""
    prompt = np.concatenate([[BOS], language.trigger])[None]
    said = np.asarray(jaxlm.generate(model, params, prompt, SECRET))[0]
    found = token_forcing.search(model, params, [BOS], top=SEARCHED, max_new_tokens=16)
    place = np.empty(VOCABULARY, np.int64)
    place[np.argsort(-found.scores, kind="stable")] = np.arange(1, VOCABULARY + 1)
    return {
        "rank": found.rank_of(language.secret[1:].tolist()),
        "token_ranks": sorted(place[language.secret].tolist()),
        "trigger_works": bool((said == language.secret).all()),
        "recurring": [(r.tokens, len(r.beginnings)) for r in found.recurring[:3]],
    }
