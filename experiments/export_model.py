"""Write a checkpoint as an artifact that runs without jaxlm: StableHLO for CPU, CUDA and TPU, and its weights.

    python -m experiments.export_model --checkpoint=runs/lm --prompt_length=64 --max_length=320 --workdir=runs/lm_export

The checkpoint is a run of ours or a Hugging Face folder. The artifact's README.md has the lines that run it; what is in
it says `jaxlm.interop.export`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import checkpoints, command
from jaxlm.core.config import require
from jaxlm.interop.export import export

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "workdir of a run, or Hugging Face folder", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the artifact, new or empty", flag_values=FLAGS)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace what is in the folder", flag_values=FLAGS)
BATCH = flags.DEFINE_integer("batch", 1, "prompts at a time", flag_values=FLAGS)
PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 64, "of the longest prompt", flag_values=FLAGS)
MAX_LENGTH = flags.DEFINE_integer("max_length", 320, "of prompt and text together", flag_values=FLAGS)
PLATFORMS = flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "what the artifact runs on", flag_values=FLAGS)
DTYPE = flags.DEFINE_string(
    "dtype", None, "of weights and activations; the checkpoint's own by default", flag_values=FLAGS
)
STEP = flags.DEFINE_integer("step", None, "of a run; the newest good one by default", flag_values=FLAGS)


def main() -> int:
    require(CHECKPOINT.value, "--checkpoint: name the folder of a checkpoint")
    require(WORKDIR.value, "--workdir: name the folder of the artifact, new or empty")
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
    print(f"{WORKDIR.value}: {len(manifest['weights'])} weights, for {', '.join(manifest['platforms'])}; see README.md")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
