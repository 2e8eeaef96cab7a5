"""Sample text from a trained model.

    python -m experiments.generate --workdir=runs/lm --prompt='def ' --max_new_tokens=200 --temperature=0.8 --seed=0

Prints the prompt and what the model makes of it, up to the end of the document; each sample has noise of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from jaxlm.core.config import make, require
from jaxlm.core.errors import ConfigError
from jaxlm.decode.generate import generate
from jaxlm.tokenize.base import BOS, EOS
from jaxlm.train.load import load_checkpoint, open_checkpoints

WORKDIR = flags.DEFINE_string("workdir", "runs/train_lm", "of the training run")
PROMPT = flags.DEFINE_string("prompt", "", "the text to continue")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "how much to add at most")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 for the likeliest token each time")
SEED = flags.DEFINE_integer("seed", 0, "of the sampling noise")
SAMPLES = flags.DEFINE_integer("samples", 1, "how many continuations", lower_bound=1)
TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k likeliest tokens; 0 for all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample among the fewest tokens with this probability together")
STEP = flags.DEFINE_integer("step", None, "checkpoint; the newest good one by default")


def sample() -> list[str]:
    """What the flags ask for: one text for each sample, the prompt included."""
    model, params = load_checkpoint(WORKDIR.value, step=STEP.value)
    _, meta = open_checkpoints(WORKDIR.value, STEP.value)
    data = meta["run"].get("data", {})
    require("tokenizer" in data, f"{WORKDIR.value} is not a run on text: its configuration names no tokenizer")
    tokenizer: Any = make("tokenizer", data["tokenizer"])
    prompt = tokenizer.encode(PROMPT.value, bos=BOS in tokenizer.special_ids)
    out = generate(
        model,
        params,
        np.tile(prompt, (SAMPLES.value, 1)),
        MAX_NEW_TOKENS.value,
        TEMPERATURE.value,
        jax.random.key(SEED.value),
        stop=[tokenizer.special_ids[EOS]] if EOS in tokenizer.special_ids else [],
        top_k=TOP_K.value,
        top_p=TOP_P.value,
    )
    known = np.asarray(out) < tokenizer.vocab_size  # a model may have more ids than its tokenizer
    texts = [tokenizer.decode_bytes(row[keep]) for row, keep in zip(np.asarray(out), known, strict=True)]
    return [PROMPT.value + text.decode("utf-8", "replace") for text in texts]


def main(argv: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        require(len(argv) == 1, f"unexpected argument {argv[1:2]}; everything is a flag, written --name=value")
        print("\n---\n".join(sample()))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
