"""Every target of every task against an oracle that reads the prompt's text and nothing else."""

import dataclasses
import itertools
import string

import numpy as np
import pytest

from jaxlm.core import registry

ORDER = string.digits + string.ascii_letters


def numbers(words, separator):
    return [int(part) for part in "".join(words).split(separator)]


def replace_run(prompt, copies):
    source, arrow, other, colon, *run = prompt
    assert (arrow, colon) == ("->", ":")
    assert set(run) == {source} != {other}
    return [other] * (copies * len(run))


def polynomial(prompt):
    x, expression = " ".join(prompt).removeprefix("x = ").split(" in ")
    return [str(eval(expression, {"x": int(x)}) % 10)]  # the prompt is Python


def lego(prompt):
    text, query = " ".join(prompt).split(" ? ")
    clauses, known = dict(clause.split(" = ") for clause in text.split(" , ")), {"1": 1}
    while len(known) <= len(clauses):  # in whatever order the clauses come
        for name, value in clauses.items():
            sign, of = value[0], value[1:].strip()
            if of in known:
                known[name] = known[of] if sign == "+" else -known[of]
    return [f"{known[query]:+d}"]


def scan(prompt):
    return [action for block in reversed(" ".join(prompt).split(" after ")) for action in scan_block(block)]


def scan_block(block):
    for clause in block.split(" and "):
        words = clause.split()
        times = {"twice": 2, "thrice": 3}.get(words[-1], 1)
        verb, *direction = words[: len(words) - (times > 1)]
        turn = direction[-1].upper() if direction else None
        once = {(): [verb], ("opposite",): [turn, turn, verb], ("around",): [turn, verb] * 4}.get(tuple(direction[:-1]))
        if len(direction) == 1:
            once = [turn, verb]
        yield from [action.upper() for action in once] * times


FUNCTIONS = {"copy": 1, "reverse": 1, "shift": 1, "swap": 1, "echo": 1, "repeat": 1}
FUNCTIONS |= {"append": 2, "prepend": 2, "remove_first": 2, "remove_second": 2}


def pcfg(prompt):
    """A stack machine over the words read from the right: arguments first, then the function in front of them."""
    stack, run = [], []
    for word in reversed(prompt):
        if word not in FUNCTIONS and word != ",":
            run.insert(0, word)
            continue
        if run:
            stack.append(run)
            run = []
        if word == ",":
            continue
        x = stack.pop()
        if FUNCTIONS[word] == 2:
            y = stack.pop()
            stack.append({"append": [*x, *y], "prepend": [*y, *x], "remove_first": y, "remove_second": x}[word])
        elif word == "swap":
            last = len(x) - 1
            stack.append([x[{0: last, last: 0}.get(i, i)] for i in range(len(x))])
        else:
            changed = {
                "copy": [*x],
                "reverse": [*reversed(x)],
                "shift": [*x[1:], x[0]],
                "echo": [*x, x[-1]],
                "repeat": x * 2,
            }
            stack.append(changed[word])
    assert len(stack) == 1
    return stack.pop()


def successor(prompt):
    items, of = (numbers(part.split(), ",") for part in " ".join(prompt).split(" ? "))
    ordered = sorted(set(items)) + ["end"]
    answer = ordered[ordered.index(of[0]) + 1]
    return [answer] if answer == "end" else list(str(answer))


def sort_numbers(prompt):
    return [*",".join(map(str, sorted(numbers(prompt, ","))))]


# name -> (the answer, the length), both from the prompt's words
ORACLES = {
    "copy_rsc": (lambda p: p if len(set(p)) == 1 else None, len),
    "copy_rsc2x": (lambda p: p + p if len(set(p)) == 1 else None, len),
    "copy_rdc": (lambda p: replace_run(p, 1), lambda p: len(p) - 4),
    "copy_rdc2x": (lambda p: replace_run(p, 2), lambda p: len(p) - 4),
    "copy_cmc": (lambda p: p, len),
    "copy_cmc2x": (lambda p: [*p, "[NEXT]", *p], len),
    "reverse_mc": (lambda p: [*reversed(p)], len),
    "reverse_mc2x": (lambda p: [*reversed(p), "[NEXT]", *reversed(p)], len),
    "reverse_mcrv": (lambda p: [*reversed(p), "[NEXT]", *p], len),
    "addition": (lambda p: list(str(sum(numbers(p, "+")))), lambda p: max(map(len, "".join(p).split("+")))),
    "summation": (lambda p: [str(sum(numbers(p, "+")) % 10)], lambda p: p.count("+") + 1),
    "polynomial": (polynomial, lambda p: p.count("**")),
    "sort_single": (lambda p: sorted(p, key=ORDER.index), len),
    "sort_multi": (sort_numbers, lambda p: p.count(",") + 1),
    "successor": (successor, lambda p: p.count(",") + 1),
    "mixture": (lambda p: successor(p) if "?" in p else sort_numbers(p), lambda p: p.count(",") + 1),
    "parity": (lambda p: ["no" if p.count("1") % 2 else "yes"], len),
    "lego": (lego, lambda p: p.count("=")),
    "scan": (scan, lambda p: len(scan(p))),
    "pcfg": (pcfg, lambda p: sum(word in FUNCTIONS for word in p)),
    "passkey": (lambda p: [p[p.index(p[-1]) + 1]], lambda p: len(p) - 3),
}


def test_every_task_has_an_oracle():
    assert ORACLES.keys() == registry.methods("task").keys()


def prompt_of(task, example):
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


# Worked steps, written once more as text templates after the authors' code, each as five parts: input, computation,
# output, variables, remaining input.


def spaced(number):
    return " ".join(str(number))


def addition_steps(prompt):
    numbers_ = "".join(prompt).split("+")
    width, total = max(map(len, numbers_)), sum(map(int, numbers_))
    a, b = (n.zfill(width) for n in numbers_)
    columns = [*zip(reversed(a), reversed(b), strict=True)] + [("0", "0")] * (len(str(total)) > width)
    carry = 0
    for k, (x, y) in enumerate(columns, 1):
        heads = [n[: max(width - k, 0)] for n in (a, b)]
        rest = " + ".join(spaced(int(head)) if head else "" for head in heads)
        pair, column = int(x) + int(y), int(x) + int(y) + carry
        computation = f"comp {x} + {y} + carry = {spaced(pair)} + {carry} = {spaced(column)}"
        carry = column // 10
        yield f"in {x} , {y}", computation, f"out {column % 10}", f"[ carry : {carry} ]", f"re {rest}"


def summation_steps(prompt):
    values = prompt[::2]
    for i, v in enumerate(values):
        before = sum(map(int, values[:i])) % 10
        partial = spaced(before + int(v))
        after = sum(map(int, values[: i + 1])) % 10
        variables = f"[ sum : {partial} = {after} ]"
        yield (
            f"in {v}",
            f"comp {v} + sum = {v} + {before} =",
            f"out {partial}",
            variables,
            f"re {' + '.join(values[i + 1 :])}",
        )


def parity_steps(prompt):
    for i, bit in enumerate(prompt):
        before, after = prompt[:i].count("1") % 2, prompt[: i + 1].count("1") % 2
        rest = " ".join(prompt[i + 1 :])
        yield (
            f"in {bit}",
            f"comp {bit} ** par = {bit} ** {before}",
            f"out {after}",
            f"[ par : {after} ]",
            f"re [ {rest} ]",
        )


def sort_steps(items, key, write, separator):
    items = list(items)
    for i in range(len(items)):
        first = items[i]
        j = min(range(i, len(items)), key=lambda j: key(items[j]))
        items[i], items[j] = items[j], items[i]
        rest = separator.join(write(item) for item in items[i + 1 :])
        yield f"in {write(first)}", "comp min", f"out {write(items[i])}", "", f"re [ {rest} ]"


STEPS = {
    "addition": addition_steps,
    "summation": summation_steps,
    "parity": parity_steps,
    "sort_single": lambda p: sort_steps(p, ORDER.index, str, " "),
    "sort_multi": lambda p: sort_steps(numbers(p, ","), int, spaced, " , "),
}
SWITCHES = ("input", "computation", "output", "variables", "remaining")


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
