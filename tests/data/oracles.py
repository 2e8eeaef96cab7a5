"""Oracles of tasks and scratchpads: each reads the words of a prompt and nothing else, and knows none of our code."""

from __future__ import annotations

import bisect
import functools
import statistics
import string

import numpy as np

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


def mqar(row):
    pairs = sum(word != "0" for word in row) // 3
    known = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
    assert len(known) == pairs == len(set(known.values()))
    queries = [word for word in row[2 * pairs :] if word != "0"]
    assert sorted(queries) == sorted(known)
    return [known[query] for query in queries]


def episodes(row, pairs=4):
    found = []
    for start in range(0, len(row), 4 * pairs):
        bound = dict(zip(row[start : start + 2 * pairs : 2], row[start + 1 : start + 2 * pairs : 2], strict=True))
        asked = row[start + 2 * pairs : start + 4 * pairs]
        assert sorted(asked[::2]) == sorted(bound) and len(bound) == pairs
        assert [bound[key] for key in asked[::2]] == asked[1::2]
        found += asked[1::2]
    return found


def list_ops(prompt):
    """The prompt is Python, once brackets are calls."""
    text = " ".join(prompt)
    for name in ("MIN", "MAX", "MED", "SM"):
        text = text.replace(f"[{name} ", f"{name}(")
    functions = {"MIN": min, "MAX": max, "MED": lambda *x: int(statistics.median(x)), "SM": lambda *x: sum(x) % 10}
    return [str(eval(text.replace(" ]", ")").replace(" ", ","), functions))]


def groups(image, reach):
    """Pixels that are drawn on, as sets joined over ``reach`` rows and columns."""
    left, found = set(map(tuple, np.argwhere(image != ".").tolist())), []
    while left:
        edge = [left.pop()]
        group = set(edge)
        while edge:
            row, column = edge.pop()
            near = {(r, c) for r, c in left if max(abs(r - row), abs(c - column)) <= reach}
            left -= near
            group |= near
            edge += near
        found.append(group)
    return found


def image_of(prompt):
    side = int(len(prompt) ** 0.5)
    return np.array(prompt).reshape(side, side)


def curves(prompt):
    image = image_of(prompt)
    dots = set(map(tuple, np.argwhere(image == "o").tolist()))
    assert len(dots) == 2
    joined = groups(image, 2)
    assert len(joined) == 4  # two curves and two distractors
    return ["yes" if any(dots <= curve for curve in joined) else "no"]


def dashes(prompt):
    image = image_of(prompt)
    counts = []
    for curve in groups(image, 2):
        alone = np.full(image.shape, ".")
        alone[tuple(zip(*curve, strict=True))] = "#"
        counts.append(len(groups(alone, 1)))
    counts = sorted(counts)
    assert counts[-1] == counts[-2] and set(counts[:-2]) == {max(1, counts[-1] // 3)}
    return counts[-1]


def vignettes(document):
    lists = [place for place, word in enumerate(document) if word == ":"]
    first, second = (nouns_after(document, place) for place in lists)
    assert len(lists) == 2 and len(set(first)) == len(first)
    again = second if set(second).isdisjoint(first) else first  # half of those to train on
    return [*document[: lists[1] + 1], *" , ".join(again).split(), "."]


def nouns_after(document, place):
    return document[place + 1 : document.index(".", place) : 2]


def lis(prompt, lookback=0):
    """The longest of all chains, by trying them all where a look-back forbids the method of piles."""
    items, out, best = [int(word) for word in prompt], [], 0

    @functools.cache
    def ending(i):
        return 1 + max((ending(j) for j in range(i) if items[j] < items[i] and i - j <= (lookback or i)), default=0)

    tails = []
    for i, item in enumerate(items):
        if lookback:
            length = ending(i)
        else:
            at = bisect.bisect_left(tails, item)
            tails[at : at + 1] = [item]
            length = at + 1
        best = max(best, length)
        out += [*([","] if i else []), str(item), ":", str(length), str(best)]
    return [*out, "=", str(best)]


def lis_stream(row, lookback=0):
    cells = " ".join(lis(row[::5], lookback)[:-2]).split(" , ")
    return [number for cell in cells for number in cell.split(" : ")[1].split()]


def edit_distance(prompt, lookback=0):
    one, two = " ".join(prompt).split(" / ")
    one, two = one.split(), two.split()

    @functools.cache
    def between(i, j):
        """Of the first i and j symbols, by the paths that stay where cells are written."""
        if lookback and abs(i - j) >= lookback:
            return 10**6
        if not i or not j:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (one[i - 1] != two[j - 1]))

    rows = []
    for i, symbol in enumerate(one, 1):
        cells = [between(i, j) for j in range(1, len(two) + 1) if not lookback or abs(i - j) < lookback]
        rows.append(" ".join([symbol, ":", *(f"{cell // 10} {cell % 10}" for cell in cells)]))
    distance = between(len(one), len(two))
    return [*" , ".join(rows).split(), "=", str(distance // 10), str(distance % 10)]


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
    "passkey_stream": (
        lambda p: p[p.index("pass") + 3 :][:5],
        lambda p: len(p) - 2 * len("the pass key is".split()) - 6,
    ),
    "curves": (curves, dashes),
    "delayed_recall": (lambda p: p[:8], lambda p: len(p) - 8),
    "edit_distance": (edit_distance, lambda p: p.index("/")),
    "episodes": (episodes, lambda p: len(p) // 16),
    "induction": (lambda p: [p[p.index(p[-1]) + 1]], lambda p: len(p) - 2),
    "lis": (lis, len),
    "lis_stream": (lis_stream, lambda row: len(row) // 5),
    "list_ops": (list_ops, lambda p: p.count("]")),
    "mqar": (mqar, lambda p: sum(word != "0" for word in p) // 3),
    "selective_copy": (lambda p: [word for word in p if word != "."], lambda p: p.count(".")),
    "translation": (lambda p: [word.replace("s", "t") for word in p], len),
    "vignettes": (vignettes, lambda p: len(nouns_after(p, p.index(":")))),
}


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
