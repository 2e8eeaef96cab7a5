"""A model of ours as the lm-evaluation-harness takes it (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness).

    results = lm_eval.simple_evaluate(harness(model, params, tokenizer), tasks=["arc_easy"])

The harness (extra ``eval``) makes requests of texts, this file turns them into tokens, and `jaxlm.eval.likelihood` and
`jaxlm.eval.completion` do the work. A text begins with BOS if the tokenizer says so; an empty context is BOS, or EOS in
a vocabulary without one. What is too long loses its beginning, and a warning says how many requests did.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.types import Params
from jaxlm.eval.completion import completions
from jaxlm.eval.likelihood import loglikelihoods, rolling_windows
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import BOS, EOS, Tokenizer

log = logging.getLogger(__name__)

MAX_LENGTH = 2048  # of models whose position encoding sets no limit
_NEW = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness has them all
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = ("until", "do_sample")


def harness(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    max_gen_toks: int = 256,
    seed: int = 0,
) -> Any:
    """An ``lm_eval.api.model.LM``.

    Args:
      model, params, tokenizer: the model, and what its ids mean.
      batch_size: rows run together.
      max_length: tokens fed at once, the new ones included; by default what the position encoding can represent, or
        2048 if that has no limit.
      max_gen_toks: new tokens at most, where a task does not say.
      seed: of sampling, for tasks that sample.

    Its attribute ``truncated`` counts the requests that lost their beginning. Raises `ConfigError` if lm-eval is not
    installed, or the numbers do not fit the model.
    """
    most = decoder.max_positions(model.spec)
    length = max_length or most or MAX_LENGTH
    require(most is None or length <= most, f"max_length {length}: the model's position encoding can represent {most}")
    require(1 <= max_gen_toks < length, f"max_gen_toks {max_gen_toks}: expected 1..{length - 1}, within max_length")
    lm = _class()()
    lm.model, lm.params, lm.tokenizer = model, params, tokenizer
    lm.batch_size, lm.max_length, lm.max_gen_toks, lm.seed = batch_size, length, max_gen_toks, seed
    lm.truncated = 0
    return lm


class _Requests:
    """What the harness asks of a model."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    batch_size: int
    max_length: int
    max_gen_toks: int
    seed: int
    truncated: int

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.special(EOS)

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer.special(BOS if BOS in self.tokenizer.special_ids else EOS)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        bos = self.tokenizer.adds_bos if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, bos=bos and BOS in self.tokenizer.special_ids).tolist()

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> Any:
        counts = [len(continuation) for _, _, continuation in requests]
        longest = max(counts, default=0)
        require(longest <= self.max_length, f"a continuation of {longest} tokens is longer than {self.max_length}")
        rows = self._kept([context + continuation for _, context, continuation in requests], self.max_length + 1)
        scores = loglikelihoods(self.model, self.params, rows, counts, batch_size=self.batch_size)
        return [(score.total, bool(score.greedy.all())) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        windows = [
            (i, *window)
            for i, text in enumerate(texts)
            for window in rolling_windows(text, self.prefix_token_id, self.max_length)
        ]
        rows, counts = [row for _, row, _ in windows], [count for _, _, count in windows]
        totals = [0.0] * len(requests)
        scores = loglikelihoods(self.model, self.params, rows, counts, batch_size=self.batch_size)
        for (i, _, _), score in zip(windows, scores, strict=True):
            totals[i] += score.total
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(_settings(request.args[1], self.max_gen_toks), []).append(i)
        texts = [""] * len(requests)
        for (until, new, sampling), members in groups.items():
            room = self.max_length - new
            require(room > 0, f"max_gen_toks {new} leaves no room for a prompt within max_length {self.max_length}")
            encoded = [self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in members]
            found = completions(
                self.model,
                self.params,
                self.tokenizer,
                self._kept(encoded, room),
                until,
                max_new_tokens=new,
                batch_size=self.batch_size,
                key=jax.random.key(self.seed),
                **dict(sampling),
            )
            for i, text in zip(members, found, strict=True):
                texts[i] = text
        return texts

    def _kept(self, rows: list[list[int]], room: int) -> list[list[int]]:
        """The last ``room`` tokens of each row."""
        long = sum(len(row) > room for row in rows)
        if long:
            log.warning("%d of %d requests are longer than %d tokens and lose their beginning", long, len(rows), room)
        self.truncated += long
        return [row[-room:] for row in rows]


def _settings(kwargs: Mapping[str, Any], max_gen_toks: int) -> tuple[tuple[str, ...], int, tuple[tuple[str, Any], ...]]:
    """(strings that end it, new tokens at most, arguments of `jaxlm.generate`) of a task's ``generation_kwargs``."""
    for name in kwargs:
        choose("generation_kwargs field", name, (*_NEW, *_SAMPLING, *_IGNORED))
    until = kwargs.get("until") or ()
    new = next((kwargs[name] for name in _NEW if kwargs.get(name) is not None), max_gen_toks)
    sampling = {name: kwargs[name] for name in _SAMPLING if kwargs.get(name) is not None}
    if not kwargs.get("do_sample", sampling.get("temperature", 0) > 0):
        sampling = {name: value for name, value in sampling.items() if name == "repetition_penalty"}
    else:
        sampling.setdefault("temperature", 1.0)
    return (until,) if isinstance(until, str) else tuple(until), int(new), tuple(sorted(sampling.items()))


@functools.cache
def _class() -> type:
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise ConfigError("the evaluation harness is not installed: pip install 'jaxlm[eval]'") from None
    return type("JaxLM", (_Requests, TemplateLM), {"__doc__": "A jaxlm model."})
