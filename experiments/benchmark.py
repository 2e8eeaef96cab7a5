"""Our speed beside that of the peers that happen to be installed, in one run.

    python -m experiments.benchmark --suite=train_step --workdir=runs/bench
    python -m experiments.benchmark --suite=decode --workdir=runs/bench
    python -m experiments.benchmark --suite=attention --workdir=runs/bench
    python -m experiments.benchmark --suite=recurrence --workdir=runs/bench
    python -m experiments.benchmark --suite=delete_gate --workdir=runs/bench
    python -m experiments.benchmark --suite=bytes --workdir=runs/bench --rounds=5 --steps=1
    python -m experiments.benchmark --suite=tokenize --workdir=runs/bench --rounds=5 --steps=1

All contestants live in this process and take turns (`experiments.race`). Writes <suite>.json with command, commit,
hardware and versions, and prints the table that it also writes to <suite>.txt.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: idle threads must not burn what is billed

import importlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402

from absl import flags  # noqa: E402

from experiments import command, startup  # noqa: E402
from experiments.host_memory import keep_freed_memory  # noqa: E402
from jaxlm.core.errors import choose  # noqa: E402

SUITES = ("train_step", "decode", "attention", "recurrence", "tokenize", "delete_gate", "bytes")

FLAGS = flags.FlagValues()
SUITE = flags.DEFINE_string("suite", "train_step", f"what to measure: {', '.join(SUITES)}", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string("workdir", "runs/bench", "folder for the JSON", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer(
    "rounds", 10, "rounds; each contestant runs once a round", lower_bound=1, flag_values=FLAGS
)
STEPS = flags.DEFINE_integer("steps", 3, "steps of a contestant in a round", lower_bound=1, flag_values=FLAGS)
KEEP_MEMORY = flags.DEFINE_boolean(
    "keep_memory",
    True,
    "keep freed memory for all contestants, as the binaries here do; --nokeep_memory as in a program that does not ask",
    flag_values=FLAGS,
)
THREADS = flags.DEFINE_integer("threads", 2, "threads of the peers; decode takes one", lower_bound=1, flag_values=FLAGS)


def main() -> int:
    if KEEP_MEMORY.value:
        keep_freed_memory()  # before jax, whose threads allocate
    suite = importlib.import_module(f"experiments.suites.{choose('suite', SUITE.value, SUITES)}")
    startup.begin(compile_cache=False)  # again, now that the suite has loaded jax
    from experiments import provenance, study  # they load jax, which a suite may have set up first

    folder = study.folder(WORKDIR)
    results = suite.run(ROUNDS.value, STEPS.value, THREADS.value)
    record = {**provenance.collect(), "suite": SUITE.value, **results}  # before a file of ours changes the tree
    folder.mkdir(parents=True, exist_ok=True)
    text = suite.table(results)
    (folder / f"{SUITE.value}.txt").write_text(text, encoding="utf-8")
    (folder / f"{SUITE.value}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__, compile_cache=False))
