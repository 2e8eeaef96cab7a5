"""Write a checkpoint as an artifact that runs without jaxlm: StableHLO for CPU, CUDA and TPU, and its weights.

    python -m experiments.export_model --checkpoint=runs/lm --prompt_length=64 --max_length=320 --workdir=runs/lm_export

The checkpoint is a run of ours or a Hugging Face folder. The artifact's README.md has the lines that run it; what is in
it says `jaxlm.interop.export`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from experiments import checkpoints
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.interop.export import export

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir of a run, or Hugging Face folder", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the artifact, new or empty", required=True)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace what is in the folder")
BATCH = flags.DEFINE_integer("batch", 1, "prompts at a time")
PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 64, "of the longest prompt")
MAX_LENGTH = flags.DEFINE_integer("max_length", 320, "of prompt and text together")
PLATFORMS = flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "what the artifact runs on")
DTYPE = flags.DEFINE_string("dtype", None, "of weights and activations; the checkpoint's own by default")
STEP = flags.DEFINE_integer("step", None, "of a run; the newest good one by default")


def main(argv: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        require(len(argv) == 1, f"unexpected argument {argv[1:2]}; everything is a flag, written --name=value")
        model, params = checkpoints.load(Path(str(CHECKPOINT.value)), DTYPE.value, STEP.value)
        manifest = export(
            model,
            params,
            str(WORKDIR.value),
            batch=BATCH.value,
            prompt_length=PROMPT_LENGTH.value,
            max_length=MAX_LENGTH.value,
            platforms=PLATFORMS.value or (),
            overwrite=OVERWRITE.value,
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{WORKDIR.value}: {len(manifest['weights'])} weights, for {', '.join(manifest['platforms'])}; see README.md")


if __name__ == "__main__":
    app.run(main)
