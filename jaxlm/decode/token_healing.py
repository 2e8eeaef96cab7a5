"""Token healing: the last token of a prompt is taken back, and what comes next must begin with its text.

Lundberg and Ribeiro 2023, The Art of Prompt Design: Prompt Boundaries and Token Healing (the library guidance). The
baseline of `jaxlm.decode.byte_level`: it repairs a prompt that ends inside a token as long as the token before the
taken one is the right one, and is wrong where boundaries shift further back.

    healed = heal(tokenizer, ["The link is <a href=\\"http:"])
    new = jaxlm.generate(model, params, healed.prompt, 20, prompt_lengths=healed.lengths, processors=[healed.processor])
    text = tokenizer.decode_bytes(new[0])           # begins with healed.texts[0], which the prompt had already
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.decode.byte_model import END, SIZE, Text
from jaxlm.decode.byte_prompt import prompts_of
from jaxlm.decode.processor import Processor
from jaxlm.decode.token_model import TokenModel
from jaxlm.tokenize.base import Tokenizer, as_bytes
from jaxlm.tokenize.covers import usable_pieces


@dataclasses.dataclass(frozen=True, eq=False)
class Healing(Processor):
    """Until each row's text is spelt, only tokens that spell more of it; a token may go on behind it.

    Attributes:
      texts: int32 [B, K], the bytes that rows must begin with, -1 behind them.
      pieces: int32 [V, L], the bytes of each token, -1 behind them.
      shorter: whether tokens may spell a part of what is left; otherwise one must begin with it all.
    """

    paper: ClassVar[str] = "Lundberg and Ribeiro 2023, The Art of Prompt Design: Prompt Boundaries and Token Healing"

    texts: Any = None
    pieces: Any = None
    shorter: bool = dataclasses.field(default=False, metadata={"static": True})

    def check_vocabulary(self, size: int) -> None:
        require(len(self.pieces) <= size, f"token healing: {len(self.pieces)} tokens, the model's vocabulary is {size}")

    def init(self, prompt_BL: jax.Array, real_BL: jax.Array, vocab_size: int) -> jax.Array:
        """int32 [B]: how many bytes of the text are spelt."""
        rows = len(self.texts)
        require(len(prompt_BL) == rows, f"token healing: prepared for {rows} rows, the prompt has {len(prompt_BL)}")
        return jnp.zeros(rows, jnp.int32)

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        extra = logits_BV.shape[1] - len(self.pieces)
        pieces = jnp.pad(jnp.asarray(self.pieces), ((0, extra), (0, 0)), constant_values=-1)
        lengths, texts = (pieces >= 0).sum(1), jnp.asarray(self.texts)
        if token_B is not None:
            state = jnp.minimum(state + lengths[token_B], texts.shape[1])
        size = pieces.shape[1]
        padded = jnp.pad(texts, ((0, 0), (0, size + texts.shape[1])), constant_values=-1)
        rest = jax.vmap(lambda row, at: jax.lax.dynamic_slice(row, (at,), (size + texts.shape[1],)))(padded, state)
        left = (rest >= 0).sum(1)
        near = rest[:, None, :size]
        allowed = ((pieces == near) | (pieces < 0) | (near < 0)).all(-1) & (lengths > 0)
        if not self.shorter:
            allowed &= lengths >= left[:, None]
        return jnp.where(allowed | (left == 0)[:, None], logits_BV, -jnp.inf), state


class Healed(NamedTuple):
    """Prompts ready for `jaxlm.generate`.

    Attributes:
      prompt: int32 [B, L], padded on the right. lengths: int32 [B].
      texts: the bytes that each row's new tokens begin with; the prompt ended in them.
      processor: what makes them.
    """

    prompt: NDArray[np.int32]
    lengths: NDArray[np.int32]
    texts: tuple[bytes, ...]
    processor: Healing


def take_back(
    tokenizer: Tokenizer, prompt: str | bytes, tokens: int = 1, usable_ids: Iterable[int] | None = None
) -> tuple[list[int], bytes, NDArray[np.int64]]:
    """The tokens that a prompt keeps, the bytes of the others, and the tokens that begin with all of these.

    Raises `ConfigError` for a prompt without text, or fewer than one token taken back.
    """
    require(tokens >= 1, f"tokens: expected to take back 1 token or more, got {tokens}")
    ids = tokenizer.encode(as_bytes(prompt)).tolist()
    require(ids, "token healing: the prompt is empty, there is no token to take back")
    text = tokenizer.decode_bytes(np.array(ids)).removeprefix(tokenizer.decode_bytes(np.array(ids[:-tokens], np.int64)))
    return ids[:-tokens], text, np.sort(usable_pieces(tokenizer, usable_ids).starting_with(text))


def heal(tokenizer: Tokenizer, prompts: Sequence[Text], tokens: int = 1) -> Healed:
    """Takes back the last ``tokens`` tokens of each prompt. If several, new tokens may be shorter than their text.

    Raises `ConfigError` for a prompt without text, or one that nothing is left of (it then needs a BOS, or a head).
    """
    made = prompts_of(tokenizer, prompts)
    parts = [take_back(tokenizer, prompt.data, tokens)[:2] for prompt in made]
    rows = [[*prompt.head, *kept] for prompt, (kept, _) in zip(made, parts, strict=True)]
    require(all(rows), "token healing: nothing is left of a prompt; begin it with a BOS, or a longer text")
    texts = tuple(text for _, text in parts)
    lengths = np.array([len(row) for row in rows], np.int32)
    prompt = np.zeros((len(rows), lengths.max()), np.int32)
    for b, row in enumerate(rows):
        prompt[b, : len(row)] = row
    processor = Healing(_bytes_of(texts), _bytes_of(tokenizer.token_bytes), tokens > 1)
    return Healed(prompt, lengths, texts, processor)


def healed_next_byte(model: TokenModel, tokenizer: Tokenizer, prompts: Sequence[Text]) -> NDArray[np.float64]:
    """What one-token healing says of the next byte: natural log-probabilities [B, 257], the end last, normalised.

    Tokens longer than the one taken back say it themselves; if it comes again, the token behind it does.
    """
    made, pieces = prompts_of(tokenizer, prompts), usable_pieces(tokenizer)
    ends, first = np.array(tokenizer.stop_ids, np.int64), np.array([text[0] for text in pieces.texts])
    parts = [take_back(tokenizer, prompt.data) for prompt in made]
    again = [tokenizer.encode(prompt.data).tolist() for prompt in made]
    kept = [(*prompt.head, *ids) for prompt, (ids, _, _) in zip(made, parts, strict=True)]
    rows = np.exp(model([*kept, *((*prompt.head, *ids) for prompt, ids in zip(made, again, strict=True))]))
    masses = np.zeros((len(made), SIZE))
    for out, before, behind, ids, (_, text, allowed) in zip(
        masses, rows[: len(made)], rows[len(made) :], again, parts, strict=True
    ):
        for i in allowed.tolist():
            if i != ids[-1] and len(tokenizer.token_bytes[i]) > len(text):
                out[tokenizer.token_bytes[i][len(text)]] += before[i]
        out[:END] += before[ids[-1]] * np.bincount(first, behind[pieces.ids], 256)
        out[END] = before[ids[-1]] * behind[ends].sum()
    with np.errstate(divide="ignore"):
        return np.log(masses / masses.sum(1, keepdims=True))


def _bytes_of(texts: Sequence[bytes]) -> NDArray[np.int32]:
    """int32 [n, longest], -1 behind the end of each."""
    table = np.full((len(texts), max(1, *map(len, texts))), -1, np.int32)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = list(text)
    return table
