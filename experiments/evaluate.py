"""Evaluate a checkpoint, of ours or Hugging Face's, on tasks of the lm-evaluation-harness (extra ``eval``).

    python -m experiments.evaluate --checkpoint=SmolLM2-135M --tasks=arc_easy,hellaswag --limit=200 --workdir=runs/arc
    python -m experiments.evaluate --checkpoint=runs/lm --tasks=mine --include_path=tasks --num_fewshot=2

Tasks are names of the harness or of the YAML files in --include_path. Prints the harness's table, and writes
results.json and provenance.json to --workdir.
"""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments import checkpoints, command, provenance
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.eval.harness import harness

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "workdir of a run, or Hugging Face folder", flag_values=FLAGS)
STEP = flags.DEFINE_integer("step", None, "of a run; the newest good one by default", flag_values=FLAGS)
DTYPE = flags.DEFINE_string("dtype", None, "of the model; the checkpoint's own by default", flag_values=FLAGS)
TASKS = flags.DEFINE_list("tasks", [], "names, with commas between", flag_values=FLAGS)
INCLUDE_PATH = flags.DEFINE_string("include_path", None, "folder with further tasks", flag_values=FLAGS)
NUM_FEWSHOT = flags.DEFINE_integer("num_fewshot", None, "examples in a prompt; the task's own", flag_values=FLAGS)
LIMIT = flags.DEFINE_integer("limit", None, "documents of each task; all by default", flag_values=FLAGS)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "rows run together", flag_values=FLAGS)
MAX_LENGTH = flags.DEFINE_integer("max_length", None, "tokens fed at once", flag_values=FLAGS)
MAX_GEN_TOKS = flags.DEFINE_integer("max_gen_toks", 256, "new tokens where a task does not say", flag_values=FLAGS)
SEED = flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string("workdir", "runs/evaluate", "folder to write to", flag_values=FLAGS)


def main() -> int:
    """Evaluates as the flags say."""
    require(CHECKPOINT.value, "--checkpoint: name the folder of a checkpoint")
    folder, workdir = Path(str(CHECKPOINT.value)), Path(str(WORKDIR.value))
    manager = _manager()
    model, params = checkpoints.load(folder, DTYPE.value, STEP.value)
    lm = harness(
        model,
        params,
        checkpoints.tokenizer_of(folder, model, STEP.value),
        batch_size=BATCH_SIZE.value or 8,
        max_length=MAX_LENGTH.value,
        max_gen_toks=MAX_GEN_TOKS.value or 256,
        seed=SEED.value or 0,
    )
    import lm_eval
    from lm_eval.utils import make_table

    found: Any = lm_eval.simple_evaluate(
        lm, tasks=TASKS.value, num_fewshot=NUM_FEWSHOT.value, limit=LIMIT.value, task_manager=manager, log_samples=False
    )
    print(make_table(found))
    if lm.truncated:
        print(f"{lm.truncated} requests were longer than {lm.max_length} tokens and lost their beginning")
    kept = {name: found[name] for name in ("results", "versions", "n-shot", "n-samples", "higher_is_better")}
    kept |= {"max_length": lm.max_length, "truncated": lm.truncated}
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(kept, indent=1, default=float) + "\n", encoding="utf-8")
    provenance.write(workdir)
    return 0


def _manager() -> Any:
    """The harness's table of tasks. Raises `ConfigError` if it is not installed, or lacks one that is asked for."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("the evaluation harness is not installed: pip install 'jaxlm[eval]'") from None
    include = INCLUDE_PATH.value
    require(include is None or Path(include).is_dir(), f"--include_path={include}: no such folder")
    require(TASKS.value, "--tasks: name one or more, such as --tasks=arc_easy,hellaswag")
    manager = TaskManager(include_path=include)
    for name in TASKS.value or []:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise ConfigError(f"--tasks: the harness has no task {name!r}; near: {', '.join(near) or '(none)'}")
    return manager


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
