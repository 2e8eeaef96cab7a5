"""Completions of many prompts, each up to one of some strings: what question answering and code tasks ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.decode.generate import generate
from jaxlm.eval.likelihood import bucket
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import Tokenizer

EVERY = 16  # tokens between two looks for a stop string


def completions(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[ArrayLike],
    until: Sequence[str] = (),
    *,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    key: jax.Array | None = None,
    **sampling: Any,
) -> list[str]:
    """What the model makes of each prompt, up to the first of the strings ``until`` (left out) or the end of the text.

    Args:
      model, params, tokenizer: the model, and what its ids mean.
      prompts: integers [n_i].
      until: strings that end a completion, wherever tokens are cut.
      max_new_tokens: at most, for each.
      batch_size: prompts run together, those of like length; sampling noise belongs to a prompt's index, not to them.
      key, sampling: further arguments of `jaxlm.generate` (``temperature``, ``top_p``, ...); greedy without.

    Raises `ConfigError` for an empty prompt, or one that leaves the model no room for ``max_new_tokens``.
    """
    require(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
    rows = [np.asarray(prompt) for prompt in prompts]
    empty = [i for i, row in enumerate(rows) if not row.size]
    require(not empty, f"prompt {empty[:1]} is empty; give one token or more")
    most = decoder.max_positions(model.spec)
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    texts = [""] * len(rows)
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        found = [Completion(tokenizer, rows[i], until) for i in batch]
        longest = len(rows[batch[0]])
        prompt = np.zeros((batch_size, bucket(longest, None if most is None else max(most, longest))), np.int32)
        for b, i in enumerate(batch):
            prompt[b, : len(rows[i])] = rows[i]
        fill = batch_size - len(batch)  # rows that make the batch full
        generate(
            model,
            params,
            prompt,
            np.array([max_new_tokens] * len(batch) + [1] * fill),
            key=key,
            prompt_lengths=np.array([len(rows[i]) for i in batch] + [1] * fill),
            stop=tokenizer.stop_ids,
            rows=np.array([*batch, *[0] * fill]),
            stream=lambda new, found=found, fill=fill: [*map(Completion.add, found, new), *[True] * fill],
            stream_every=EVERY,
            **sampling,
        )
        for i, completion in zip(batch, found, strict=True):
            texts[i] = completion.text
    return texts


class Completion:
    """The text of one row as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, until: Sequence[str]) -> None:
        self._tokenizer, self._until = tokenizer, until
        self._ids = self._known(prompt)
        self._before = len(tokenizer.decode_bytes(self._ids))
        self.text = ""

    def add(self, new: np.ndarray) -> bool:
        """Takes further tokens; whether the text has ended."""
        ends = np.flatnonzero(np.isin(new, self._tokenizer.stop_ids))
        self._ids = np.concatenate([self._ids, self._known(new[: ends[0]] if ends.size else new)])
        # Behind its prompt: of some tokenizers the first token of a text loses its space.
        text = self._tokenizer.decode_bytes(self._ids)[self._before :].decode("utf-8", "replace")
        stops = [at for string in self._until if (at := text.find(string)) >= 0]
        self.text = text[: min(stops, default=len(text))]
        return bool(stops or ends.size)

    def _known(self, ids: np.ndarray) -> np.ndarray:
        return ids[ids < self._tokenizer.vocab_size]  # a model may have more ids than its tokenizer
