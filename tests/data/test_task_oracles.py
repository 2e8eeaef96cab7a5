"""Every target of every task against an oracle that reads the prompt's text and nothing else."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxlm.core import registry
from tests.data.oracles import (
    FUNCTIONS,
    ORACLES,
    ORDER,
    STEPS,
    SWITCHES,
    edit_distance,
    lego,
    lis,
    lis_stream,
    nouns_after,
    numbers,
    pcfg,
    sort_steps,
)  # fmt: skip


def test_every_task_has_an_oracle():
    assert ORACLES.keys() == registry.methods("task").keys()


def prompt_of(task, example):
    """What a target is told by: the prompt; or the whole text, where that is one constant word."""
    if example.labels is not None:
        return task.row(example)
    if example.prompt_length == 3 and task.vocabulary[example.tokens[1]] == "text":
        return task.decode(example.target)[:-1]
    return task.decode(example.tokens)[1 : example.prompt_length - 1]


@pytest.mark.parametrize("name", ORACLES)
def test_targets_are_correct(name):
    task = registry.get("task", name)()
    answer, length = ORACLES[name]
    examples = [task[i] for i in range(200)] + [task.at(n, i) for n in range(1, 21) for i in range(5)]
    for example in examples:
        prompt = prompt_of(task, example)
        assert task.decode(example.target) == [*answer(prompt), "<eos>"]
        assert length(prompt) == example.length


@pytest.mark.parametrize("permute", [False, True])
def test_lego_order_and_question(permute):
    task = registry.get("task", "lego")(permute=permute)
    chains = 0
    for i in range(60):
        example = task.at(12, i)
        prompt = prompt_of(task, example)
        assert task.decode(example.target)[:-1] == lego(prompt)
        clauses = " ".join(prompt).split(" ? ")[0].split(" , ")
        in_order = all(later.split()[-1] == earlier.split()[0] for earlier, later in itertools.pairwise(clauses))
        chains += in_order
        if in_order:
            assert [c.split()[0] for c in clauses].index(prompt[-1]) >= 6  # the later half of the chain
    assert chains == (0 if permute else 60)


def test_pcfg_nests_functions_on_both_sides():
    task = registry.get("task", "pcfg")()
    prompts = [prompt_of(task, task.at(6, i)) for i in range(400)]
    after_binary = {FUNCTIONS.get(p[1]) for p in prompts if FUNCTIONS[p[0]] == 2}
    after_comma = {FUNCTIONS.get(word) for p in prompts for comma, word in itertools.pairwise(p) if comma == ","}
    assert after_binary == after_comma == {None, 1, 2}  # a symbol, a unary and a binary function
    assert {len(pcfg(p)) for p in prompts} >= {1, task.max_value}


def test_sorting_work_with_ties():
    task = registry.get("task", "sort_single")(symbols=3, scratchpad={"enabled": True, "variables": False})
    for i in range(20):
        example = task.at(9, i)
        steps = [" ".join(step).split() for step in sort_steps(prompt_of(task, example), ORDER.index, str, " ")]
        assert " # ".join(map(" ".join, steps)) == task.render(example).split("target: ")[1].split(" ans ")[0]


def test_addition_tests_every_pair_with_one_long_number():
    task = registry.get("task", "addition")(train_lengths=(2, 4), eval_lengths=(5, 6))
    pairs = {tuple(len(n) for n in "".join(prompt_of(task, task.at(6, i))).split("+")) for i in range(300)}
    assert pairs == {(6, n) for n in range(2, 7)} | {(n, 6) for n in range(2, 7)}


def test_reversed_addition_is_addition_read_backwards():
    plain = registry.get("task", "addition")()
    task = dataclasses.replace(plain, reverse=True)
    for i in range(50):
        for one, other in ((task[i], plain[i]), (task.at(12, i), plain.at(12, i))):
            a, b = "".join(prompt_of(task, one)).split("+")
            assert f"{a[::-1]}+{b[::-1]}" == "".join(prompt_of(plain, other))
            answer = "".join(task.decode(one.target)[:-1])
            assert int(answer[::-1]) == int(a[::-1]) + int(b[::-1])


@pytest.mark.parametrize("reverse", [False, True])
def test_coupled_digits_of_equal_weight_share_a_place(reverse):
    task = registry.get("task", "addition")(reverse=reverse, coupled=True, max_start=6)
    plain = dataclasses.replace(task, coupled=False)
    starts = []
    for i in range(300):
        for example, training in ((task[i], True), (task.at(13, i % 100), False)):
            words, start = task.decode(example.tokens), int(example.places[0])
            assert training or start == 0
            starts += [start] * training
            ids = [[]]  # of each number's digits
            for word, place in zip(words[:-1], example.places.tolist(), strict=False):
                if word.isdigit():
                    ids[-1].append(place - start)
                else:
                    assert place == start
                    ids += [[]]
            first, second, answer = [n for n in ids if n]
            for number in (first, second, answer):
                rising = list(range(1, len(number) + 1))
                assert number == (rising if reverse else rising[::-1])
    assert set(starts) == set(range(7))
    assert all((task[i].tokens == plain[i].tokens).all() for i in range(20))
    assert plain[0].places is None


def test_a_mixture_draws_by_weight_and_evaluates_the_first():
    mixture = registry.get("task", "mixture")
    own = {"train_lengths": (5, 10), "eval_lengths": (11, 20), "size": 4000}
    small = {"least": 0, "below": 50}
    parts = [{"task": {"name": name, "args": {"numbers": small}}} for name in ("sort_multi", "successor")]
    task = mixture(parts=({**parts[0], "weight": 3.0}, {**parts[1], "weight": 1.0}), **own)
    prompts = [prompt_of(task, task[i]) for i in range(4000)]
    assert abs(np.mean(["?" in p for p in prompts]) - 0.25) < 0.03  # 4 standard deviations
    assert {p.count(",") + 1 for p in prompts} == set(range(5, 11))
    assert {n for p in prompts for n in numbers(" ".join(p).split(" ? ")[0].split(), ",")} == set(range(50))
    assert not any("?" in prompt_of(task, task.at(length, i)) for length in (5, 20) for i in range(50))
    alone = mixture(parts=(parts[0], {**parts[1], "weight": 0.0}), **own)
    assert alone.vocabulary == task.vocabulary
    assert not any("?" in prompt_of(alone, alone[i]) for i in range(200))


def test_every_scratchpad_has_an_oracle():
    assert STEPS.keys() == {name for name in ORACLES if hasattr(registry.get("task", name), "scratchpad")}


@pytest.mark.parametrize("name", STEPS)
def test_scratchpads_are_correct_under_every_combination_of_switches(name):
    plain = registry.get("task", name)()
    for on in itertools.product([False, True], repeat=5):
        if not any(on) or (name.startswith("sort") and on[3]):
            continue
        task = dataclasses.replace(plain, scratchpad={"enabled": True, **dict(zip(SWITCHES, on, strict=True))})
        assert task.vocabulary == plain.vocabulary
        for length, i in itertools.product((1, 2, 5, 16), range(3)):
            example = task.at(length, i)
            prompt = prompt_of(task, example)
            assert prompt == prompt_of(plain, plain.at(length, i))
            answer = ORACLES[name][0](prompt)
            steps = [" ".join(itertools.compress(step, on)) for step in STEPS[name](prompt)]
            assert task.decode(example.target) == [*" # ".join(steps).split(), "ans", *answer, "<eos>"]
            assert task.answer(example.target) == answer


def test_a_worked_addition():
    """Checked by hand against the authors' template: a two-digit column, a padded column, a carry that is left over."""
    task = registry.get("task", "addition")(scratchpad={"enabled": True})
    assert task.render(task.at(2, 4)).split("\n") == [
        "prompt: 8 + 9 3",
        "target: in 8 , 3 comp 8 + 3 + carry = 1 1 + 0 = 1 1 out 1 [ carry : 1 ] re 0 + 9 # "
        "in 0 , 9 comp 0 + 9 + carry = 9 + 1 = 1 0 out 0 [ carry : 1 ] re + # "
        "in 0 , 0 comp 0 + 0 + carry = 0 + 1 = 1 out 1 [ carry : 0 ] re + ans 1 0 1",
    ]


BOUNDED = {"lis": lis, "lis_stream": lis_stream, "edit_distance": edit_distance}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("lookback", [1, 3])
def test_a_bounded_look_back(name, lookback):
    task, oracle = registry.get("task", name)(lookback=lookback), BOUNDED[name]
    given = lambda prompt: prompt[::5] if name == "lis_stream" else prompt  # cells stand between its items
    plain, differ = dataclasses.replace(task, lookback=0), 0
    for i in range(20):
        example = task.at(12, i)
        prompt = prompt_of(task, example)
        assert task.decode(example.target)[:-1] == oracle(prompt, lookback)
        assert given(prompt) == given(prompt_of(plain, plain.at(12, i)))
        differ += task.answer(example.target)[-1] != plain.answer(plain.at(12, i).target)[-1]
    assert differ > 3 or lookback > 1


def test_a_reversed_source_has_the_same_target():
    forward, backward = (registry.get("task", "translation")(source=order) for order in ("forward", "reversed"))
    for i in range(20):
        one, other = forward.at(15, i), backward.at(15, i)
        assert prompt_of(forward, one) == prompt_of(backward, other)[::-1]
        np.testing.assert_array_equal(one.target, other.target)


def test_vignettes_of_every_condition():
    for condition in ("repeat", "permute", "novel"):
        task = registry.get("task", "vignettes")(condition=condition, gap=(25, 25))
        for length in (2, 7):
            for i in range(20):
                example = task.at(length, i)
                first, second = (task.decode(example.tokens[span]) for span in task.spans(example))
                document = prompt_of(task, example)
                assert (first, second) == tuple(nouns_after(document, p) for p, w in enumerate(document) if w == ":")
                assert (first == second) == (condition == "repeat")
                assert (set(first) == set(second)) == (condition != "novel")
                assert set(first).isdisjoint(second) == (condition == "novel")
                assert document.index("when") - document.index(".") == 26
    lists = [[set(task.decode(task[i].tokens[span])) for span in task.spans(task[i])] for i in range(400)]
    assert 0.4 < np.mean([first == second for first, second in lists]) < 0.6


def test_mqar_between_random_words():
    task = registry.get("task", "mqar")(row_size=32, filler="random", train_lengths=(4, 4), eval_lengths=(5, 5))
    plain = dataclasses.replace(task, filler="zero")
    for i in range(20):
        example, other = task[i], plain[i]
        row, without = prompt_of(task, example), prompt_of(plain, other)
        kept = [place for place, word in enumerate(without) if word != "0"]
        assert len(kept) == 12 and [row[place] for place in kept] == [without[place] for place in kept]
        assert task.asked(example) == plain.asked(other) and sum(word == "0" for word in row) < 8
        assert [row[place] for place, word in enumerate(task.asked(example)) if word] == [without[p] for p in kept[8:]]


def test_list_ops_are_as_deep_as_allowed():
    task = registry.get("task", "list_ops")(depth=2, arguments=4, train_lengths=(1, 3), eval_lengths=(5, 5))
    counts = set()
    for i in range(50):
        words, depth, deepest = prompt_of(task, task.at(5, i)), 0, 0
        for word in words:
            depth += (word[0] == "[") - (word == "]")
            deepest = max(deepest, depth)
        assert deepest == 2 and words.count("]") == 5
        counts.add(len(words))
    assert len(counts) > 3


def test_dots_are_joined_in_half_of_the_pictures():
    task = registry.get("task", "curves")()
    assert 0.4 < np.mean([task.answer(task[i].target) == ["yes"] for i in range(200)]) < 0.6


def test_where_a_passkey_is():
    task = registry.get("task", "passkey_stream")(digits=3)
    depths = [task.depth(task.at(20, i)) for i in range(300)]
    assert min(depths) == 0 and max(depths) == 1 and 0.4 < np.mean(depths) < 0.6
    words = prompt_of(task, task.at(20, 0))
    assert task.answer(task.at(20, 0).target) == words[words.index("pass") + 3 :][:3]
