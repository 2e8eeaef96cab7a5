"""The study end to end at toy size: what it writes, that it continues, what it refuses; and the report's arithmetic."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxlm
from experiments import length_generalization as study
from experiments import length_generalization_report as report
from experiments import study as frame
from jaxlm.core import config as configs
from jaxlm.core.config import make
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.path import Path
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.learned import Learned
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule


def toy(**changes) -> study.RunConfig:
    task = make("task", {"name": "copy_rsc", "args": {"symbols": 3, "train_lengths": (1, 3), "eval_lengths": (4, 5)}})
    fields = {
        "studies": (study.Study(task, 90),),
        "encodings": (study.Encoding("none", "none"), study.Encoding("rotary", "rotary")),
        "seeds": (0, 1),
        "model": ModelSpec(8, 32, (Group((Block(mixer=Attention(heads=4)),), 2),), remat="none"),
        "optimizer": Optimizer(schedule=Schedule("linear", 5e-3, warmup=0)),
        "batch_size": 16,
        "eval_examples": 6,
        "steps_per_call": 30,
        "workers": 1,
    }
    return study.RunConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, study.run(toy(), folder)


def test_a_row_for_each_task_position_seed_and_length(finished):
    folder, rows = finished
    header, *lines = (folder / "results.csv").read_text().splitlines()
    assert header == "task,position,seed,length,exact_match"
    keys = {tuple(line.split(",")[:4]) for line in lines}
    assert keys == {("copy_rsc", p, str(s), str(n)) for p in ("none", "rotary") for s in (0, 1) for n in range(1, 6)}
    assert len(lines) == len(rows) == 20
    assert np.mean([r.exact_match for r in rows if r.length <= 3]) > 0.5, "the toy must have learned something"
    provenance = json.loads((folder / "provenance.json").read_text())[0]
    assert {"command", "commit", "hardware", "versions", "seconds"} <= set(provenance)


@pytest.mark.slow
def test_tasks_and_encodings_of_other_kinds(tmp_path):
    """Abacus embeddings, coupled positions, another mixer, and a mixture beside its main task alone, under labels."""
    lengths = {"train_lengths": (1, 2), "eval_lengths": (3, 4)}
    addition = make("task", {"name": "addition", "args": {"reverse": True, "max_start": 5, **lengths}})
    coupled = study.Encoding("coupled", Learned(size=11), coupled=True)
    others = (study.Encoding("abacus", "abacus"), study.Encoding("path", mixer=Path(heads=4)))
    model = dataclasses.replace(toy().model, vocab_size=27)
    one = toy(studies=(study.Study(addition, 2, "sums"),), encodings=(*others, coupled), model=model, seeds=(0,))
    assert {(r.task, r.position) for r in study.run(one, tmp_path)} == {
        ("sums", label) for label in ("abacus", "path", "coupled")
    }
    with pytest.raises(ConfigError, match="'coupled' represents 10 positions; the longest test example has 11"):
        dataclasses.replace(one, encodings=(dataclasses.replace(coupled, position=Learned(size=10)),))


def test_an_interrupted_study_continues_and_ends_the_same(finished, tmp_path):
    folder, rows = finished
    frame.save([r for r in rows if (r.position, r.seed) != ("rotary", 1)], tmp_path, report.Row)
    study.run(toy(), tmp_path)
    assert (tmp_path / "results.csv").read_text() == (folder / "results.csv").read_text()


def test_a_finished_study_trains_nothing(finished, monkeypatch):
    folder, rows = finished
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("trained again"))
    assert sorted(study.run(toy(), folder)) == sorted(rows)


def test_a_seed_decides_initial_values_and_data():
    config = toy()
    model = study.Decoder(study.model_spec(config, config.encodings[0]))
    trainer = study.Trainer(model, study.NextToken(), config.optimizer, 1)
    first, again, other = (jax.tree.leaves(trainer.init(seed=s).params)[0] for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    task = config.studies[0].task
    loader = study.Loader(task, 16, collate=lambda rows: study.training_batch(rows, 8))
    assert not np.array_equal(loader(0)["tokens"], dataclasses.replace(loader, seed=1)(0)["tokens"])


def test_exact_match_is_that_of_greedy_decoding():
    config = toy()
    setting, encoding = config.studies[0], config.encodings[1]  # rotary: right where trained, wrong beyond
    task = setting.task
    trainer = study.Trainer(
        study.Decoder(study.model_spec(config, encoding)), study.NextToken(), config.optimizer, setting.steps
    )
    size = task.tokens_bound(3) - 1
    loader = study.Loader(task, 16, collate=lambda rows: study.training_batch(rows, size))
    params = study.train(trainer, loader, config.steps_per_call, lambda *_: None).params
    examples = [task.at(n, i) for n in range(1, 6) for i in range(4)]
    batch = study.training_batch(examples, study.places(task))
    forced = np.asarray(study.exact_matches(trainer.model, params, batch, jax.random.key(0)))
    model = jaxlm.LanguageModel(trainer.model.spec)
    prompts = np.zeros((len(examples), 8), np.int32)
    for row, example in enumerate(examples):
        prompts[row, : example.prompt_length] = example.tokens[: example.prompt_length]
    lengths = np.array([example.prompt_length for example in examples], np.int32)
    output = np.asarray(jaxlm.generate(model, params, prompts, max_new_tokens=6, prompt_lengths=lengths))
    greedy = [task.exact_match(example, out) for example, out in zip(examples, output, strict=True)]
    assert forced.tolist() == greedy
    assert 0 < sum(greedy) < len(greedy), "both outcomes must occur for this to mean anything"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {"model": dataclasses.replace(c.model, vocab_size=6)}, ("vocab_size 6", "task's 7")),
        (lambda c: {"model": dataclasses.replace(c.model, width=30)}, ("width 30", "4 attention heads")),
        (lambda c: {"encodings": (study.Encoding("a", Learned(size=8)),)}, ("'a'", "8 positions")),
        (lambda c: {"encodings": c.encodings + c.encodings}, ("labels must differ",)),
        (lambda c: {"seeds": (1, 1)}, ("distinct seeds",)),
        (lambda c: {"studies": c.studies * 2}, ("RunConfig.studies: labels must differ",)),
        (lambda c: {"encodings": (study.Encoding("a", coupled=True),)}, ("'a'", "'copy_rsc' gives no positions")),
        (lambda c: {"encodings": ({"label": "a", "position": "rotary", "mixer": "path"},)}, ("'a'", "of its own")),
    ],
)
def test_a_study_that_cannot_work_is_refused_in_one_line(change, words):
    with pytest.raises(ConfigError) as caught:
        toy(**change(toy()))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_overlapping_lengths_are_refused():
    with pytest.raises(ConfigError, match="overlap"):
        make("task", {"name": "copy_rsc", "args": {"train_lengths": (1, 10), "eval_lengths": (10, 20)}})


def test_the_configuration_survives_json():
    config = toy()
    assert configs.from_dict(study.RunConfig, json.loads(json.dumps(configs.to_dict(config)))) == config


def test_equal_values_share_the_mean_rank():
    assert report.ranks([0.5, 0.9, 0.5, 0.1]).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert report.ranks([0.0, 0.0, 0.0]).tolist() == [2.0, 2.0, 2.0]


def test_reciprocal_ranks_and_table():
    task = make("task", "copy_rsc")
    rows = [
        report.Row("copy_rsc", label, seed, length, value if length > 10 else 1.0)
        for label, value in (("none", 0.9), ("alibi", 0.25), ("rotary", 0.0))
        for seed in (0, 1)
        for length in (5, 15)
    ]
    lengths = report.split_lengths(rows, {"copy_rsc": task})
    ranked = report.reciprocal_ranks(rows, lengths, ["none", "alibi", "rotary"])
    assert ranked == {"none": [1.0, 1.0], "alibi": [0.5, 0.5], "rotary": [1 / 3, 1 / 3]}
    lines = report.table(rows, ["none", "alibi", "rotary"], {"copy_rsc": task}).splitlines()
    none = next(line for line in lines if line.startswith("  none")).split()
    assert none == ["none", "1.000", "0.900", "(0.90-0.90)", "0.000", "0.986"]


def test_replotting_needs_results_and_names_a_foreign_file(tmp_path):
    with pytest.raises(ConfigError, match=r"results\.csv does not exist"):
        frame.read(tmp_path, report.Row)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="expected the columns task,position,seed,length,exact_match"):
        frame.read(tmp_path, report.Row)


def test_figures_are_drawn_from_the_results(finished, tmp_path):
    pytest.importorskip("matplotlib")
    _, rows = finished
    text = report.write(rows, tmp_path, ["none", "rotary"], {"copy_rsc": toy().studies[0].task})
    for name in ("curves.png", "heat_maps.png"):
        assert name in text and (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
