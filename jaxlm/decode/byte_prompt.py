"""What a byte-level text begins with: tokens that are given, then bytes whose tokens are left open.

Byte-level answers are those of all encodings that a text may turn out to have, so a prompt is bytes, and its last
tokens depend on what follows. Special tokens are no bytes, and neither is a suffix that stands in front of the place
it is the suffix of (Bavarian et al. 2022, Efficient Training of Language Models to Fill in the Middle): those are
given, as ids, in front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import choose
from jaxlm.tokenize.base import BOS, FIM, Tokenizer, as_bytes, as_text


@dataclasses.dataclass(frozen=True)
class Prompt(Spec):
    """A prompt.

    Attributes:
      head: ids that are as they are.
      text: the bytes behind them, as `str` in the form of `jaxlm.tokenize.base.as_text`.
    """

    head: tuple[int, ...] = ()
    text: str = ""

    @property
    def data(self) -> bytes:
        """The bytes of ``text``."""
        return as_bytes(self.text)


def prompts_of(tokenizer: Tokenizer, prompts: Sequence[str | bytes | Prompt]) -> list[Prompt]:
    """Prompts from texts, behind a BOS where the tokenizer wants one. Raises `ConfigError` for what is no prompt."""
    require(
        isinstance(prompts, Sequence) and not isinstance(prompts, (str, bytes)) and len(prompts),
        "prompts: expected a list of one or more texts, bytes or Prompts",
    )
    head = (tokenizer.special(BOS),) if tokenizer.adds_bos else ()
    found = []
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            require(
                isinstance(prompt, (str, bytes)),
                f"prompts: expected text, bytes or Prompt, got {type(prompt).__name__}",
            )
            prompt = Prompt(head, as_text(prompt))
        wrong = [i for i in prompt.head if not 0 <= i < tokenizer.vocab_size]
        require(not wrong, f"Prompt.head: id {wrong[:1]} is outside 0..{tokenizer.vocab_size - 1}")
        _ = prompt.data  # says what is wrong with the text
        found.append(prompt)
    return found


def fill_in_the_middle(
    tokenizer: Tokenizer,
    prefix: str | bytes,
    suffix: str | bytes,
    *,
    order: str = "spm",
    tokens: tuple[str, str, str] = FIM,
) -> Prompt:
    """The prompt whose continuation is the middle between two texts.

    Args:
      tokenizer: with the special tokens of the model.
      prefix, suffix: what is around.
      order: ``"spm"``, [PRE] [SUF] suffix [MID] prefix | middle: the prefix is text, so that a token may span the
        border and its last tokens are left open; ``"psm"``, [PRE] prefix [SUF] suffix [MID] | middle, and
        ``"spm_plain"``, [SUF] suffix [PRE] prefix [MID] | middle: the middle begins with a token of its own, as it did
        in training if that was cut between characters. In all three the suffix begins a token.
      tokens: names of the special tokens in front of prefix, suffix and middle.

    Raises `ConfigError` for special tokens that the tokenizer lacks, or an unknown order.
    """
    pre, suf, mid = map(tokenizer.special, tokens)
    bos = [tokenizer.special(BOS)] if tokenizer.adds_bos else []
    behind = tokenizer.encode(suffix).tolist()
    if choose("order", order, ("spm", "psm", "spm_plain")) == "spm":
        return Prompt((*bos, pre, suf, *behind, mid), as_text(prefix))
    before = tokenizer.encode(prefix).tolist()
    parts = (pre, *before, suf, *behind) if order == "psm" else (suf, *behind, pre, *before)
    return Prompt((*bos, *parts, mid), "")
