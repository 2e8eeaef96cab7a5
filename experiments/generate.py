"""Continue texts with any checkpoint: a run of ours, or a Hugging Face folder.

    python -m experiments.generate --workdir=runs/lm --prompt='def ' --max_new_tokens=200 --temperature=0.8 --seed=0
    python -m experiments.generate --checkpoint=models/llama --prompt='Once' --prompt='Twice' --top_p=0.9 --stop='. '
    python -m experiments.generate --checkpoint=models/llama --prompts=book.txt --extend=self_extend:4:8192
    python -m experiments.generate --workdir=runs/infill --prompt='def add(a, b):' --suffix='    return c'

Prints each prompt and what the model makes of it, up to the end of the document or the first of the stop strings. A
single text is printed as it comes. Each sample of each prompt has noise of its own, whatever else is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import checkpoints, command
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.decode.byte_prompt import fill_in_the_middle
from jaxlm.decode.generate import generate
from jaxlm.decode.processors.suppress import Suppress
from jaxlm.eval.completion import Completion
from jaxlm.model import extend
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import FIM, Tokenizer

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/train_lm", "checkpoint: of a training run, or a Hugging Face folder", flag_values=FLAGS
)
flags.DEFINE_alias("checkpoint", "workdir", flag_values=FLAGS)
PROMPT = flags.DEFINE_multi_string("prompt", [""], "a text to continue; may be repeated", flag_values=FLAGS)
PROMPTS = flags.DEFINE_string("prompts", None, "file of further texts to continue, one a line", flag_values=FLAGS)
SUFFIX = flags.DEFINE_string(
    "suffix",
    None,
    "what comes behind: each prompt is filled up to it, by a model trained to fill in the middle",
    flag_values=FLAGS,
)
FIM_TOKENS = flags.DEFINE_list(
    "fim_tokens", list(FIM), "the checkpoint's marks of prefix, suffix and middle, for --suffix", flag_values=FLAGS
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "how much to add at most", flag_values=FLAGS)
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 for the likeliest token each time", flag_values=FLAGS)
SEED = flags.DEFINE_integer("seed", 0, "of the sampling noise", flag_values=FLAGS)
SAMPLES = flags.DEFINE_integer(
    "samples", 1, "continuations of each prompt", lower_bound=1, upper_bound=1 << 16, flag_values=FLAGS
)
TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k likeliest tokens; 0 for all", flag_values=FLAGS)
TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "sample among the fewest tokens with this probability together", flag_values=FLAGS
)
MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "sample among tokens with at least this share of the likeliest one's chance", flag_values=FLAGS
)
PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "above 1 discourages tokens that are there already", flag_values=FLAGS
)
STOP = flags.DEFINE_multi_string("stop", [], "a string that ends a text, left out; may be repeated", flag_values=FLAGS)
STREAM = flags.DEFINE_bool("stream", True, "print a single text as it comes", flag_values=FLAGS)
DTYPE = flags.DEFINE_string(
    "dtype", None, "of weights and activations; the checkpoint's own by default", flag_values=FLAGS
)
EXTEND = flags.DEFINE_string(
    "extend",
    None,
    "METHOD:FACTOR:ORIGINAL, a longer context without training (jaxlm.extend); ORIGINAL in tokens",
    flag_values=FLAGS,
)
STEP = flags.DEFINE_integer("step", None, "checkpoint of a run; the newest good one by default", flag_values=FLAGS)


def sample(show: Callable[[str], None] | None = None) -> list[str]:
    """What the flags ask for: one text for each sample of each prompt, the prompt included.

    ``show`` is called with the pieces of the text as they come, if there is only one.
    """
    folder = Path(WORKDIR.value)
    prompts = _prompts()
    model, params = checkpoints.load(folder, DTYPE.value, STEP.value)
    tokenizer = checkpoints.tokenizer_of(folder, model, STEP.value)
    model, cache = _extended(model)
    beginnings = [_ids(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, beginnings, strict=True):
        require(len(ids), f"--prompt={prompt!r} is no token of this checkpoint; give a text to continue")
    rows = [(i, n) for i in range(len(prompts)) for n in range(SAMPLES.value)]
    completions = [Completion(tokenizer, beginnings[i], STOP.value) for i, _ in rows]
    lengths = np.array([len(beginnings[i]) for i, _ in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, (i, _) in zip(tokens, rows, strict=True):
        row[: len(beginnings[i])] = beginnings[i]
    alone = Printer(prompts[0], STOP.value, show) if show and len(rows) == 1 else None

    def take(new: list[np.ndarray]) -> list[bool]:
        ended = [completion.add(ids) for completion, ids in zip(completions, new, strict=True)]
        if alone:
            alone.update(completions[0].text, ended[0])
        return ended

    generate(
        model,
        params,
        tokens,
        MAX_NEW_TOKENS.value,
        TEMPERATURE.value,
        jax.random.key(SEED.value),
        lengths,
        tokenizer.stop_ids,
        TOP_K.value,
        TOP_P.value,
        min_p=MIN_P.value,
        repetition_penalty=PENALTY.value,
        processors=_only_known(tokenizer, model.spec.vocab_size),
        cache=cache,
        rows=[i * (1 << 16) + n for i, n in rows],
        stream=take,
        stream_every=1 if alone else 16,
    )
    behind = SUFFIX.value or ""
    if alone:
        alone.update(completions[0].text + behind, ended=True)
    return [prompts[i] + completion.text + behind for (i, _), completion in zip(rows, completions, strict=True)]


class Printer:
    """Shows a growing text, holding back what the next token may still change: half a character, half a stop string."""

    def __init__(self, prompt: str, stop: Sequence[str], show: Callable[[str], None]):
        self._stop, self._show, self._shown = stop, show, 0
        show(prompt)

    def update(self, text: str, ended: bool) -> None:
        """The text so far; ``ended`` if it is all."""
        if not ended:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            halves = [n for string in self._stop for n in range(1, len(string)) if text.endswith(string[:n])]
            text = text[: len(text) - max(halves, default=0)]
        self._show(text[self._shown :])
        self._shown = max(self._shown, len(text))


def _prompts() -> list[str]:
    """The prompts of the flags. Raises `ConfigError` for a file that cannot be read."""
    if PROMPTS.value is None:
        return list(PROMPT.value)
    try:
        lines = Path(PROMPTS.value).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts={PROMPTS.value} cannot be read: {error}") from None
    require(lines, f"--prompts={PROMPTS.value} is empty; expected a prompt a line")
    return [*(PROMPT.value if FLAGS["prompt"].present else []), *lines]


def _ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """A prompt's tokens; with --suffix, what asks for the middle between the two."""
    if SUFFIX.value is None:
        return tokenizer.encode(prompt, bos=tokenizer.adds_bos)
    marks = FIM_TOKENS.value
    require(len(marks) == 3, f"--fim_tokens={','.join(marks)}: expected three, of prefix, suffix and middle")
    asked = fill_in_the_middle(tokenizer, prompt, SUFFIX.value, order="psm", tokens=(marks[0], marks[1], marks[2]))
    return np.array(asked.head, np.int32)


def _extended(model: LanguageModel) -> tuple[LanguageModel, Any]:
    """The model with the longer context that is asked for, and its cache."""
    if EXTEND.value is None:
        return model, "full"
    method, *numbers = EXTEND.value.split(":")
    try:
        factor, original = float(numbers[0]), int(numbers[1])
        require(len(numbers) == 2, "")
    except (ConfigError, IndexError, ValueError):
        raise ConfigError(
            f"--extend={EXTEND.value}: expected METHOD:FACTOR:ORIGINAL, such as self_extend:4:8192; methods: "
            + ", ".join(extend.METHODS)
        ) from None
    return extend.extend(model, method, factor=factor, original=original), extend.cache(method, original)


def _only_known(tokenizer: Tokenizer, vocab_size: int) -> list[Suppress]:
    """A model may have more ids than its tokenizer; they stand for nothing."""
    unknown = tuple(range(tokenizer.vocab_size, vocab_size))
    return [Suppress(unknown)] if unknown else []


def main() -> int:
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        print(text, end="", flush=True)

    texts = sample(show if STREAM.value else None)
    print() if pieces else print("\n---\n".join(texts))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
