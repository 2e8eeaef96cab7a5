"""Evaluation from the command line: a task in a YAML file, on local documents, without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

import jaxlm
from experiments import command, evaluate
from jaxlm.core.config import to_dict
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.config import VERSION, TrainConfig
from tests.conftest import ROOT
from tests.tiny import params_of, tiny

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {documents}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} is"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
DOCUMENTS = [
    {"question": "the sky", "choices": ["blue", "red"], "answer": 0},
    {"question": "blood, and the planet Mars", "choices": ["blue", "red"], "answer": 1},
]


@pytest.fixture
def run_folder(tmp_path):
    """A checkpoint of a run on bytes."""
    spec = tiny(mixer={"position": "rotary"}, repeats=1, vocab_size=ByteTokenizer().vocab_size)
    run = {"data": {"tokenizer": {"name": "byte", "args": {}}}}
    meta = {"config_version": VERSION, "model": to_dict(spec), "train": to_dict(TrainConfig()), "run": run}
    with Checkpointer(tmp_path / "run" / "checkpoints", asynchronous=False) as checkpoints:
        assert checkpoints.save(0, {"params": params_of(spec)}, meta)
    assert jaxlm.load_checkpoint(tmp_path / "run")[0].spec == spec
    return tmp_path / "run"


@installed
def test_a_task_in_a_file(run_folder, tmp_path):
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(documents=tmp_path / "documents.jsonl"))
    arguments = ["--tasks=colours", f"--include_path={tmp_path / 'tasks'}", f"--workdir={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "experiments.evaluate", f"--checkpoint={run_folder}", "--max_length=32",
               "--max_gen_toks=8", *arguments]  # fmt: skip
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|colours|" in done.stdout and "2 requests were longer than 32 tokens" in done.stdout
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["results"]["colours"]["acc,none"] in (0.0, 0.5, 1.0) and kept["max_length"] == 32
    assert "experiments.evaluate" in json.loads((tmp_path / "out" / "provenance.json").read_text())[0]["command"]


@installed
def test_an_unknown_task(run_folder, capsys):
    argv = ["evaluate", f"--checkpoint={run_folder}", "--tasks=arc_eazy"]
    assert command.run(evaluate.main, evaluate.FLAGS, evaluate.__doc__, argv) == 2
    error = capsys.readouterr().err
    assert "the harness has no task 'arc_eazy'; near: arc_easy" in error and "\n" not in error.strip()


def test_without_the_harness(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    for arguments, message in [
        ([f"--checkpoint={run_folder}", "--tasks=arc_easy"], "not installed: pip install 'jaxlm[eval]'"),
        ([], "--checkpoint: name the folder of a checkpoint"),
    ]:
        assert command.run(evaluate.main, evaluate.FLAGS, evaluate.__doc__, ["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
