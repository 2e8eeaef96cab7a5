"""The loop: what is interrupted ends like what is not; what does not fit is said in one line; nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core.config import to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import flatten
from jaxlm.data.loader import Loader
from jaxlm.data.pack import TokenStream, rows
from jaxlm.data.records import Document
from jaxlm.dist.mesh import Mesh
from jaxlm.objective.next_token import NextToken
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train import evaluate
from jaxlm.train.ahead import ahead
from jaxlm.train.config import TrainConfig
from jaxlm.train.evaluate import Evaluator
from jaxlm.train.loop import fit, make_trainer
from jaxlm.train.lora import Lora
from jaxlm.train.metrics import read_jsonl
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.preemption import Preemption
from jaxlm.train.recorder import Recorder
from jaxlm.train.schedule import Schedule

LENGTH, BATCH = 16, 4
ONE = jax.devices()[:1]


def stream_of(sizes: list[int], seed: int = 0) -> TokenStream:
    """Documents of so many tokens, <bos> and <eos> among them."""
    draw = np.random.default_rng(seed)
    documents = [
        Document(str(i), draw.integers(97, 105, n - 2).astype(np.uint8).tobytes()) for i, n in enumerate(sizes)
    ]
    return TokenStream.encode(documents, ByteTokenizer())


STREAM = stream_of([20, 7, 31, 12, 9, 40, 5, 16] * 3)


def model_of(position: str = "rotary", **fields) -> jaxlm.LanguageModel:
    block = jaxlm.Block(mixer=jaxlm.Attention(heads=2, position=position))
    group = jaxlm.Group((block,), repeats=2)
    return jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=259, width=8, layers=(group,), remat="none", **fields))


MODEL = model_of()
NOISY = model_of("randomized", dropout=0.1)  # draws positions and dropout at every step


def config_of(**fields) -> TrainConfig:
    optimizer = Optimizer(schedule=Schedule("constant", 1e-2, warmup=0), **fields.pop("optimizer", {}))
    return TrainConfig(**{"steps": 10, "batch_size": BATCH, "log_every": 2, "optimizer": optimizer, **fields})


class Source:
    """The rows, with something happening when the batch of a certain step is made."""

    def __init__(self, at: int | None = None, event=None, until: int | None = None):
        self._rows, self._at, self._until, self._event = rows(STREAM, LENGTH), at, until, event

    def loader(self, seed: int = 0) -> Loader:
        outer = self

        class Watched(Loader):
            def __call__(self, step, rows=None):
                batch = super().__call__(step, rows)
                late = outer._at is not None and outer._at <= step < (outer._until or outer._at + 1)
                return outer._event(batch) or batch if late and rows is not None else batch

        return Watched(self._rows, BATCH, seed)


def run(workdir, config, model=MODEL, source=None, **options):
    options = {"devices": ONE, "quiet": True, **options}
    return fit(workdir, model, NextToken(), (source or Source()).loader(config.seed), config, **options)


def run_long(workdir, source=None, **options):
    """The run of `straight`: noise at every step, averages, evaluations, checkpoints."""
    data = {"validation": Loader(rows(STREAM, LENGTH), BATCH, shuffle=False, remainder="pad")}
    return run(workdir, LONG, NOISY, source, evaluations=data, **options)


def lines_of(workdir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock says."""
    lines = read_jsonl(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


LONG = config_of(save_every=3, eval_every=5, optimizer={"ema_decay": 0.9})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was left alone."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return workdir, run_long(workdir)


def test_lines_and_checkpoints(straight):
    workdir, fitted = straight
    lines = lines_of(workdir)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in lines if "validation/loss" in line] == [5, 10]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] and int(fitted.state.step) == 10
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()) == [6, 9, 10]
    assert any("time/tokens_per_second" in line for line in read_jsonl(workdir / "metrics.jsonl"))


def test_a_finished_run_returns_at_once(straight):
    workdir, fitted = straight
    before = (workdir / "metrics.jsonl").read_bytes()
    again = run_long(workdir)
    same_bits(again.state, fitted.state)
    assert (workdir / "metrics.jsonl").read_bytes() == before


KILLED = """
    import os, signal, sys
    sys.path[:0] = {paths!r}
    import test_loop as t
    t.run_long({workdir!r}, t.Source(7, lambda batch: os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_kill_and_rerun_equals_uninterrupted(straight, tmp_path):
    here, root = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
    script = textwrap.dedent(KILLED).format(paths=[str(here), str(root)], workdir=str(tmp_path / "run"))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run/checkpoints/10").exists()
    again = run_long(tmp_path / "run")
    same_bits(again.state, straight[1].state)
    assert lines_of(tmp_path / "run") == lines_of(straight[0])


def test_death_between_checkpoints_repeats_no_line(straight, tmp_path):
    """The loader fails at step 8: checkpoint 6 is the newest, and line 8 may already be on file."""

    def fail(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_long(tmp_path / "run", Source(8, fail))
    same_bits(run_long(tmp_path / "run").state, straight[1].state)
    assert lines_of(tmp_path / "run") == lines_of(straight[0])


def test_sigterm_saves_and_leaves(straight, tmp_path):
    with pytest.raises(SystemExit) as left:
        run_long(tmp_path / "run", Source(4, lambda batch: os.kill(os.getpid(), signal.SIGTERM)))
    assert left.value.code == 143
    model, _ = jaxlm.load_checkpoint(tmp_path / "run")
    assert model.spec == NOISY.spec
    saved = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal())
    assert 2 <= saved < 10
    same_bits(run_long(tmp_path / "run").state, straight[1].state)
    assert lines_of(tmp_path / "run") == lines_of(straight[0])


def test_a_run_of_an_earlier_version_is_resumed(straight, tmp_path):
    """Its folder and its checkpoints lack the fields that have come since; those have their defaults."""
    old = {"model": to_dict(NOISY.spec), "train": to_dict(LONG)}
    del old["model"]["logit_soft_cap"], old["train"]["accumulate"]
    with pytest.raises(SystemExit):
        run_long(tmp_path / "run", Source(7, lambda batch: os.kill(os.getpid(), signal.SIGTERM)), run=old)
    assert "accumulate" not in json.loads((tmp_path / "run/config.json").read_text())["train"]
    same_bits(run_long(tmp_path / "run").state, straight[1].state)


@pytest.mark.parametrize("step", [5, 10])
def test_told_to_stop_where_an_evaluation_is_due(step, straight, tmp_path, monkeypatch):
    """The save comes first, since time is short; the evaluation is made up for by the run that continues."""
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self, done: done == step)
        with pytest.raises(SystemExit):
            run_long(tmp_path / "run")
    assert "validation/loss" not in lines_of(tmp_path / "run")[-1]
    same_bits(run_long(tmp_path / "run").state, straight[1].state)
    assert lines_of(tmp_path / "run") == lines_of(straight[0])


def test_load_checkpoint(straight):
    workdir, fitted = straight
    for folder in (workdir, workdir / "checkpoints"):
        model, params = jaxlm.load_checkpoint(folder)
        assert model == NOISY
        same_bits(params, fitted.params)
    _, last = jaxlm.load_checkpoint(workdir, averaged=False)
    same_bits(last, fitted.state.params)
    with pytest.raises(ConfigError, match="no checkpoint"):
        jaxlm.load_checkpoint(workdir.parent)
    with pytest.raises(ConfigError, match="no such folder"):
        jaxlm.load_checkpoint(workdir / "other")


def test_another_configuration_is_refused_by_its_fields(straight):
    workdir, _ = straight
    changed = config_of(save_every=3, eval_every=5, seed=1, optimizer={"ema_decay": 0.9, "b1": 0.8})
    with pytest.raises(ConfigError, match="train.seed 1 != 0; train.optimizer.b1 0.8 != 0.9") as error:
        run(workdir, changed, NOISY)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="model.layers.0.pattern.0.mixer.args.position.name 'rotary' != 'randomized'"):
        run(workdir, LONG, MODEL)
    (workdir / "config.json").rename(workdir / "kept.json")
    try:
        with pytest.raises(ConfigError, match="holds files but no config.json"):
            run(workdir, LONG, NOISY)
    finally:
        (workdir / "kept.json").rename(workdir / "config.json")
    run(workdir, config_of(log_every=5, keep=9, optimizer={"ema_decay": 0.9}), NOISY)  # these compute the same


@pytest.mark.parametrize(
    "model, config, message",
    [
        (MODEL, {"mesh": Mesh(data=2)}, "does not fit 1 devices"),
        (MODEL, {"batch_size": 8}, "loader's batch_size 4 is not the run's 8"),
        (MODEL, {"accumulate": 3}, "accumulate 3 does not divide"),
        (MODEL, {"writers": ("tensorbord",)}, "did you mean 'tensorboard'"),
        (MODEL, {"optimizer": {"frozen": ("nowhere/*",)}}, "no parameter matches 'nowhere/"),
        (model_of({"name": "learned", "args": {"size": 15}}), {}, "rows of 16 tokens .* beyond the 15 positions"),
        (jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=200)), {}, "outside the model's vocabulary of 200"),
    ],
)
def test_what_does_not_fit_stops_before_any_compile(model, config, message, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *a, **k: pytest.fail("compiled"))
    with pytest.raises(ConfigError, match=message) as error:
        run(tmp_path / "run", config_of(**config), model)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_an_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        run(tmp_path / "file" / "run", config_of())


def test_accumulation_changes_nothing(tmp_path):
    one, four = (run(tmp_path / str(n), config_of(steps=5, accumulate=n)) for n in (1, 4))
    for (path, a), (_, b) in zip(flatten(one.state.params), flatten(four.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max(), err_msg=path)


def test_packed_and_padded_losses_are_equal():
    """Documents that fill packed rows exactly, so that packing cuts none."""
    stream = stream_of([8, 24, 16, 16, 32, 5, 5, 5, 17])
    trainer = make_trainer(MODEL, NextToken(), config_of(), ONE)
    state = trainer.init()
    packed, padded = (
        Evaluator(trainer, Loader(rows(stream, 32, layout), BATCH, shuffle=False, remainder="pad"))(state)
        for layout in ("pack", "pad")
    )
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-6)
    assert packed["accuracy"] == padded["accuracy"]


@pytest.mark.parametrize("behind", [0, 2])
def test_evaluation_runs_ahead_so_far_and_no_further(monkeypatch, behind):
    """Collectives of programs in flight together have locked each other where a CPU plays several devices."""
    assert ahead() == 0 and jax.local_device_count() > 1
    trainer = make_trainer(MODEL, NextToken(), config_of(), ONE)
    data = Loader(rows(STREAM, LENGTH), 2, shuffle=False, remainder="pad")
    evaluator, waited, dispatched = Evaluator(trainer, data), [], []
    sums, wait = evaluator._sums, jax.block_until_ready

    def dispatch(*arguments):
        assert len(dispatched) - len(waited) <= behind
        dispatched.append(sums(*arguments))
        return dispatched[-1]

    monkeypatch.setitem(vars(evaluator), "_sums", dispatch)
    monkeypatch.setattr(evaluate, "ahead", lambda: behind)
    monkeypatch.setattr(jax, "block_until_ready", lambda x: (waited.append(x), wait(x))[1])
    evaluator(trainer.init())
    assert len(dispatched) > 3 and all(a is b for a, b in zip(waited, dispatched, strict=False))


def test_frozen_parameters_stay_bit_for_bit(tmp_path):
    fitted = run(tmp_path / "run", config_of(steps=4, optimizer={"frozen": ("embed/*", "*/mixer/*")}))
    initial = make_trainer(MODEL, NextToken(), config_of(), ONE).init().params
    for (path, new), (_, old) in zip(flatten(fitted.state.params), flatten(initial), strict=True):
        same = bool((np.asarray(new) == np.asarray(old)).all())
        assert same == (path.startswith("embed/") or "/mixer/" in path), path


def test_lora_leaves_the_base_bit_for_bit(tmp_path):
    base = jaxlm.init(MODEL, jax.random.key(7))
    config = config_of(steps=4, lora=Lora(rank=2, patterns=("*/mixer/*",)))
    fitted = run(tmp_path / "run", config, params=base)
    same_bits(fitted.state.params["base"], base)
    model, merged = jaxlm.load_checkpoint(tmp_path / "run")
    same_bits(merged, fitted.params)
    for (path, new), (_, old) in zip(flatten(merged), flatten(base), strict=True):
        assert bool((np.asarray(new) != np.asarray(old)).any()) == path.endswith(("mixer/qkv", "mixer/out")), path
    assert model == MODEL


def test_averages_follow_the_parameters(tmp_path):
    config = config_of(steps=4, save_every=1, keep=9, optimizer={"ema_decay": 0.5})
    data = Loader(rows(STREAM, LENGTH), BATCH, shuffle=False, remainder="pad")
    fitted = run(tmp_path / "run", config, evaluations={"validation": data})
    average = make_trainer(MODEL, NextToken(), config, ONE).init().params
    for step in range(1, 5):
        _, params = jaxlm.load_checkpoint(tmp_path / "run", step=step, averaged=False)
        average = jax.tree.map(lambda e, p: 0.5 * e + 0.5 * p, average, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), fitted.params, average)
    plain = make_trainer(MODEL, NextToken(), config_of(), ONE)
    scores = Evaluator(plain, data)(plain.init(average))  # what the run logged is the averages' loss
    assert lines_of(tmp_path / "run")[-1]["validation/loss"] == pytest.approx(scores["loss"], rel=1e-5)


def poison(batch):
    return {**batch, "weights": batch["weights"] * np.float32("nan")}


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    fitted = run(tmp_path / "run", config_of(steps=6), source=Source(2, poison))
    assert [line["skipped"] for line in lines_of(tmp_path / "run") if "skipped" in line] == [0, 1, 1]
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(fitted.state.params))


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_a_run_of_such_steps_stops_it(log_every, tmp_path):
    """However rarely metrics are fetched, and even if finite steps follow."""
    config = config_of(steps=9, log_every=log_every, optimizer={"skip_limit": 3})
    with pytest.raises(FloatingPointError, match="stopped at step 5: the gradients of the last 3 steps"):
        run(tmp_path / "run", config, source=Source(2, poison, until=5))
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_failed_save_does_not_end_the_run(tmp_path):
    run(tmp_path / "run", config_of(steps=2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_bytes((tmp_path / "run/config.json").read_bytes())
    (tmp_path / "other/checkpoints").write_text("a file where the folder should be")
    fitted = run(tmp_path / "other", config_of(steps=2))
    assert int(fitted.state.step) == 2
    assert lines_of(tmp_path / "other") == lines_of(tmp_path / "run")


class Counted:
    """A metric that counts how often it is fetched."""

    fetched = 0

    def __array__(self, dtype=None, copy=None):
        Counted.fetched += 1
        return np.zeros((), dtype)


def test_metrics_are_fetched_at_log_steps_only_and_one_step_late():
    recorder = Recorder(None, config_of(steps=100, log_every=10), 1, lambda rate: None)
    for step in range(1, 11):
        recorder.add(step, {name: Counted() for name in ("loss", "skipped_in_a_row")})
    assert Counted.fetched == 0
    recorder.add(11, {"loss": Counted(), "skipped_in_a_row": Counted()})
    assert Counted.fetched > 0


@pytest.mark.slow
def test_resume_on_another_mesh(tmp_path):
    """Two steps on one device, then four on eight, against six on one."""
    straight = run(tmp_path / "one", config_of(steps=6))
    with pytest.raises(KeyboardInterrupt):

        def fail(batch):
            raise KeyboardInterrupt

        run(tmp_path / "run", config_of(steps=6, save_every=2), source=Source(4, fail))
    config = config_of(steps=6, save_every=2, mesh=Mesh(data=2, fsdp=2, tensor=2))
    moved = run(tmp_path / "run", config, devices=jax.devices()[:8])
    kernel = moved.state.params["head"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    for (path, a), (_, b) in zip(flatten(moved.state.params), flatten(straight.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=path)


def test_an_objective_by_its_name():
    assert make_trainer(MODEL, "next_token", config_of(), ONE).objective == NextToken()
    with pytest.raises(ConfigError, match="'next_tokne'; did you mean 'next_token'"):
        jaxlm.fit("nowhere", MODEL, "next_tokne", Loader(rows(STREAM, LENGTH), BATCH), config_of(), devices=ONE)
