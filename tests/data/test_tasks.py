"""Laws of every registered task, none of them named: determinism, streams, lengths, bounds, codes, metric."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from jaxlm.core import registry
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.data.batch import pack_batch, pad_batch
from jaxlm.data.tasks.base import BOS, EOS, PAD, SEP, SPECIALS, Example

NAMES = sorted(registry.methods("task"))


def forms(name):
    """The task as it comes, and showing its work if it can."""
    task = registry.get("task", name)()
    return [task] + ([show_work(task)] if hasattr(task, "scratchpad") or hasattr(task, "parts") else [])


def show_work(task):
    if hasattr(task, "parts"):
        first, *others = task.parts
        return dataclasses.replace(task, parts=(dataclasses.replace(first, task=show_work(first.task)), *others))
    return dataclasses.replace(task, scratchpad=dataclasses.replace(task.scratchpad, enabled=True))


def rows(examples):
    return [example.tokens.tolist() for example in examples]


FORMS = [pytest.param(task, id=f"{name}-{i}") for name in NAMES for i, task in enumerate(forms(name))]
every_task = pytest.mark.parametrize("task", FORMS)


@every_task
def test_an_example_is_a_function_of_seed_and_index(task):
    forward = rows(task[i] for i in range(20))
    again = dataclasses.replace(task)
    assert rows(again[i] for i in reversed(range(20)))[::-1] == forward
    assert rows(again.at(12, i) for i in (3, 1, 3)) == rows(task.at(12, i) for i in (3, 1, 3))
    assert rows(dataclasses.replace(task, seed=1)[i] for i in range(20)) != forward
    assert len({tuple(row) for row in forward}) > 10


@every_task
def test_training_and_evaluation_streams_differ(task):
    task = dataclasses.replace(task, train_lengths=(8, 8))
    train, evaluation = rows(task[i] for i in range(20)), rows(task.at(8, i) for i in range(20))
    assert train != evaluation
    # Nor is one a shifted copy of the other: an example means the same only if all its draws agree.
    assert train[1:] != evaluation[:-1]
    assert train[:-1] != evaluation[1:]


@every_task
def test_training_lengths_are_uniform_over_their_range(task):
    task = dataclasses.replace(task, train_lengths=(2, 5))
    counts = Counter(task[i].length for i in range(400))
    assert set(counts) == {2, 3, 4, 5}
    assert min(counts.values()) > 60  # 100 expected, 8.7 the standard deviation


@every_task
def test_layout_and_bound(task):
    for length in range(1, 21):
        for i in range(6):
            example = task.at(length, i)
            tokens = example.tokens
            assert tokens.dtype == np.int32
            assert example.length == length
            assert len(tokens) <= task.tokens_bound(length)
            assert tokens[0] == BOS
            assert tokens[example.prompt_length - 1] == SEP
            assert tokens[-1] == EOS
            assert ((tokens[1:-1] >= len(SPECIALS)) | (tokens[1:-1] == SEP)).all()
            assert (tokens == SEP).sum() == 1
            assert 4 <= example.prompt_length + 1 < len(tokens)  # neither side is empty
    longest = max(len(task.at(20, i).tokens) for i in range(40))
    assert longest >= 0.7 * task.tokens_bound(20), "the bound wastes padding"


@every_task
def test_code_round_trip(task):
    assert task.vocabulary[: len(SPECIALS)] == SPECIALS
    assert (task.vocabulary.index("<pad>"), task.vocab_size) == (PAD, len(set(task.vocabulary)))
    np.testing.assert_array_equal(task.encode(task.vocabulary), np.arange(task.vocab_size))
    example = task[0]
    np.testing.assert_array_equal(task.encode(task.decode(example.tokens)), example.tokens)
    assert task.decode([task.vocab_size, -1]) == [f"<{task.vocab_size}>", "<-1>"]
    with pytest.raises(ConfigError, match=r"unknown token of .*'\?\?\?'"):
        task.encode(["???"])


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(registry.get("task", name), "symbols")])
def test_no_symbol_is_also_a_word(name):
    task = registry.get("task", name)(symbols=582)
    assert len(set(task.vocabulary)) == task.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_every_token_is_used(name):
    examples = [
        (task, e) for task in forms(name) for i in range(max(80, task.vocab_size)) for e in (task.at(15, i), task[i])
    ]
    words = {word for task, example in examples for word in task.decode(example.tokens)}
    assert words == set(forms(name)[0].vocabulary) - {"<pad>"}


@every_task
def test_exact_match(task):
    example = task.at(9, 0)
    target = example.target
    wrong = target.copy()
    wrong[0] = SEP
    assert task.exact_match(example, target)
    assert task.exact_match(example, [*target.tolist(), 7, EOS, PAD])  # what follows the first <eos> is not read
    assert not task.exact_match(example, wrong)
    assert not task.exact_match(example, target[:-1])
    assert not task.exact_match(example, [*target[:-1].tolist(), 7, EOS])
    assert not task.exact_match(example, [])


@every_task
def test_the_answer_ends_at_eos_and_survives_junk(task):
    example = task.at(9, 0)
    answer = task.answer(example.target)
    assert answer
    assert answer == task.answer([*example.target, 5, 6])
    assert task.decode(example.target)[-1 - len(answer) : -1] == answer
    task.answer([10_000, EOS])  # an id of a larger model's vocabulary is a wrong answer, not a crash


@every_task
def test_render_shows_prompt_and_target(task):
    example = task.at(3, 0)
    prompt, target = task.render(example).split("\n")
    read = slice(1, example.prompt_length - 1) if example.labels is None else slice(example.prompt_length, -1)
    assert prompt.split()[1:] == task.decode(example.tokens)[read]
    assert target.split()[1:] == task.decode(example.target)[:-1]


@every_task
def test_configuration_round_trip(task):
    assert from_dict(type(task), to_dict(task)) == task
    assert make("task", {"name": registry.name_of("task", task), "args": to_dict(task)}) == task
    assert len(dataclasses.fields(task)) <= 12
    assert task.paper
    hash(task)


@every_task
def test_bad_input_is_refused_in_one_line(task):
    for changes, message in (
        ({"eval_lengths": (10, 20)}, "overlap"),
        ({"train_lengths": (12, 14)}, "overlap"),
        ({"train_lengths": (0, 5)}, "1 <= first <= last"),
        ({"eval_lengths": (20, 11)}, "1 <= first <= last"),
        ({"size": 0}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": "0"}, "expected int"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            dataclasses.replace(task, **changes)
        assert "\n" not in str(caught.value)


@every_task
def test_index_errors(task):
    task = dataclasses.replace(task, size=5)
    assert len(task) == 5
    assert len(list(task)) == 5  # iteration ends by IndexError
    for index in (5, -1):
        with pytest.raises(IndexError, match=r"outside 0\.\.4"):
            task[index]
        with pytest.raises(IndexError, match=r"outside 0\.\.4"):
            task.at(11, index)
    for length in (0, 21):
        with pytest.raises(IndexError, match=r"outside 1\.\.20"):
            task.at(length, 0)


@every_task
def test_batch_of_a_task(task):
    examples = [task.at(n, 0) for n in (3, 7, 12)]
    batch = pad_batch(examples, task.tokens_bound(12) - 1)
    for row, example in enumerate(examples):
        counted = batch["weights"][row] == 1
        np.testing.assert_array_equal(batch["targets"][row][counted], example.target)
        np.testing.assert_array_equal(batch["tokens"][row][batch["segment_ids"][row] == 1], example.tokens[:-1])


def test_batch_layout():
    short = Example(np.array([BOS, 7, 8, SEP, 9, EOS], np.int32), prompt_length=4, length=1)
    long = Example(np.array([BOS, 7, SEP, 5, 6, 4, EOS], np.int32), prompt_length=3, length=2)
    batch = pad_batch([short, long], 7)
    expected = {
        "tokens": [[BOS, 7, 8, SEP, 9, PAD, PAD], [BOS, 7, SEP, 5, 6, 4, PAD]],
        "targets": [[7, 8, SEP, 9, EOS, PAD, PAD], [7, SEP, 5, 6, 4, EOS, PAD]],
        "weights": [[0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0]],
        "segment_ids": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0]],
        "positions": [[0, 1, 2, 3, 4, 5, 6]] * 2,
    }
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(batch[key], value)
        assert batch[key].dtype == (np.float32 if key == "weights" else np.int32)
    assert pad_batch([long], 6)["targets"][0, -1] == EOS  # T - 1 places are enough
    with pytest.raises(ConfigError, match="example 1 needs 6 places, got length 5"):
        pad_batch([short, long], 5)


def test_batch_of_examples_with_labels():
    tokens, labels = np.array([BOS, 7, SEP, 9, 8, EOS], np.int32), np.array([-1, -1, -1, 5, EOS], np.int32)
    example = Example(tokens, prompt_length=3, length=1, labels=labels)
    assert example.target.tolist() == [5, EOS]
    batch = pad_batch([example], 6)
    np.testing.assert_array_equal(batch["tokens"], [[BOS, 7, SEP, 9, 8, PAD]])
    np.testing.assert_array_equal(batch["targets"], [[7, SEP, 9, 5, EOS, PAD]])
    np.testing.assert_array_equal(batch["weights"], [[0, 0, 0, 1, 1, 0]])


def test_accuracy_of_labels_leaves_the_end_out():
    task = registry.get("task", "mqar")(row_size=16, train_lengths=(4, 4), eval_lengths=(3, 3))
    example = task[0]
    right = example.labels.copy()
    assert task.label_accuracy(example, right) == 1
    right[np.flatnonzero(right >= 0)[0]] = PAD
    right[-1] = PAD
    assert task.label_accuracy(example, right) == 0.75


def test_batch_of_examples_with_places():
    tokens = np.array([BOS, 7, SEP, 9, EOS], np.int32)
    given = Example(tokens, prompt_length=3, length=1, places=np.array([2, 3, 2, 3, 2], np.int32))
    np.testing.assert_array_equal(pad_batch([given], 6)["position_ids"], [[2, 3, 2, 3, 0, 0]])
    with pytest.raises(ConfigError, match="example 1 has no places"):
        pad_batch([given, dataclasses.replace(given, places=None)], 6)


def test_packed_examples_are_whole_and_those_left_out_fit_nowhere():
    task = registry.get("task", "vignettes")(nouns=30, gap=(1, 30), train_lengths=(1, 4), eval_lengths=(5, 5))
    examples, size = [task[i] for i in range(12)], 80
    batch = pack_batch(examples, 5, size)
    alone, found = pad_batch(examples, size), []
    for row in range(5):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            places = np.flatnonzero(batch["segment_ids"][row] == segment)
            assert (np.diff(places) == 1).all()
            names = ("tokens", "targets", "weights", "positions")
            same = [
                all(np.array_equal(batch[name][row, places], alone[name][i, : len(places)]) for name in names)
                and len(example.tokens) - 1 == len(places)
                for i, example in enumerate(examples)
            ]
            found += [int(np.flatnonzero(same)[0])]
    assert len(set(found)) == len(found) and 5 < len(found) < 12
    room = (batch["segment_ids"] == 0).sum(1).max()
    assert all(len(examples[i].tokens) - 1 > room for i in set(range(12)) - set(found))
    empty = batch["segment_ids"] == 0
    assert empty.any() and all(not batch[name][empty].any() for name in ("tokens", "targets", "weights", "positions"))


def test_bad_packing_is_refused():
    task = registry.get("task", "reverse_mc")()
    with pytest.raises(ConfigError, match="pack_batch: example 0 needs 22 places, got length 21"):
        pack_batch([task.at(10, 0)], 2, 21)
    tokens = np.array([BOS, 7, SEP, 9, EOS], np.int32)
    with pytest.raises(ConfigError, match="example 0 has places of its own"):
        pack_batch([Example(tokens, prompt_length=3, length=1, places=np.zeros(5, np.int32))], 1, 8)


def test_the_streams_are_pinned():
    """Published results name a seed: the data behind it may not change with a release."""
    task = registry.get("task", "reverse_mc")(seed=3)
    assert task.render(task[5]) == "prompt: c4 O D\ntarget: D O c4"
    assert task.render(task.at(11, 7)) == "prompt: l c8 d2 A 3 N P E U b1 b9\ntarget: b9 b1 U E P N 3 A d2 c8 l"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("copy_cmc", {"symbols": 583}, r"symbols: allowed 1\.\.582, got 583"),
        ("copy_rdc", {"symbols": 1}, r"symbols: allowed 2\.\."),
        ("reverse_mc", {"symbols": 0}, r"symbols: allowed 1\.\."),
        ("lego", {"eval_lengths": (11, 30)}, r"variables: allowed 30 .* to 52"),
        ("pcfg", {"max_argument": 13}, r"max_argument: allowed 1\.\.max_value \(12\), got 13"),
        ("sort_multi", {"scratchpad": {"enabled": True}}, "no intermediate variables; set variables=False"),
        ("sort_multi", {"numbers": {"least": 5, "below": 5}}, r"0 <= least < below < 2\*\*63, got 5 and 5"),
        ("addition", {"scratchpad": {"enabled": True}, "reverse": True}, "set reverse and coupled to False"),
        ("addition", {"coupled": True, "max_start": -1}, "max_start: expected an integer >= 0, got -1"),
        ("mixture", {"parts": ()}, "parts: expected at least one task"),
        ("mixture", {"parts": ({"weight": 0.0}, {"weight": 1.0})}, "the first above it"),
        ("mixture", {"parts": ({"task": {"name": "addition", "args": {"coupled": True}}},)}, "cannot be mixed"),
        ("parity", {"scratchpad": {"enabled": True, "inputs": False}}, "did you mean 'input'"),
        ("mqar", {"row_size": 78}, "20 pairs and their queries need an even number >= 80, got 78"),
        ("mqar", {"values": 41}, "20 keys from 1 to V / 2 - 1 need V >= 42, got 41"),
        ("mqar", {"power": 0.0}, "power: expected a number > 0"),
        ("mqar", {"filler": "blank"}, "unknown Mqar.filler 'blank'"),
        ("episodes", {"pairs": 33}, r"pairs: allowed 1\.\.32, the keys, got 33"),
        ("episodes", {"values": 0}, "values: expected a positive integer"),
        ("selective_copy", {"kept": 0}, "kept: expected a positive integer"),
        ("induction", {"symbols": 1}, r"symbols: allowed 2\.\."),
        ("delayed_recall", {"recalled": 0}, "recalled: expected a positive integer"),
        ("passkey_stream", {"digits": 0}, "digits: expected a positive integer"),
        ("list_ops", {"depth": 2}, "2 levels of 5 arguments hold 6 operators, and lengths go to 20"),
        ("list_ops", {"arguments": 1}, "arguments: allowed 2 or more"),
        ("curves", {"side": 16}, "curves of 20 dashes need 46 pixels or more, got 16"),
        ("curves", {"distractors": -1}, "distractors: expected an integer >= 0"),
        ("vignettes", {"nouns": 30}, "two lists of 20 need 40, got 30"),
        ("vignettes", {"gap": (9, 3)}, "gap: allowed 1 <= least <= most"),
        ("vignettes", {"condition": "same"}, "unknown Vignettes.condition 'same'"),
        ("vignettes", {"repeats": 2.0}, r"repeats: allowed 0\.\.1, got 2"),
        ("lis", {"numbers": 0}, "numbers: expected a positive integer"),
        ("lis", {"lookback": -1}, "lookback: expected an integer >= 0"),
        ("edit_distance", {"letters": 27}, r"letters: allowed 2\.\.26"),
        ("edit_distance", {"eval_lengths": (90, 100)}, "lengths are 99 or less, got 100"),
        ("translation", {"source": "backward"}, "unknown Translation.source 'backward'"),
        ("translation", {"language": 0}, "language: expected a positive integer"),
    ],
)
def test_bad_settings_of_one_task(name, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        registry.get("task", name)(**changes)
    assert "\n" not in str(caught.value)


def test_a_scratchpad_with_every_part_off_is_refused():
    off = dict.fromkeys(("input", "computation", "output", "variables", "remaining"), False)
    with pytest.raises(ConfigError, match="every part off"):
        registry.get("task", "addition")(scratchpad={"enabled": True, **off})


def test_a_scratchpad_that_never_answers_has_no_answer():
    task = show_work(registry.get("task", "addition")())
    output = task.encode(["in", "1", "#", "out", "1", "<eos>"])
    assert task.answer(output) == []
    assert task.answer(task.encode(["ans", "1", "ans", "2", "<eos>"])) == ["2"]
