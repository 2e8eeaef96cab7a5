"""Mixtures from merges: pair counts against a recount, the lazy program against the whole one, and bad input."""

import functools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.config import from_dict, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.merges import learn
from jaxlm.tokenize.mixture_inference import Mixture, infer, pair_counts_by_step, symbols_of
from jaxlm.tokenize.mixture_program import SCALE, MixtureProgram, StepCounts, _range_minimum

WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 30), min_size=1, max_size=6)


def counted(words):
    return {tuple(word.encode()): count for word, count in words.items()}


def merged(word, pair, new):
    """Left to right without overlap."""
    out, at = [], 0
    while at < len(word):
        if word[at : at + 2] == pair:
            out, at = [*out, new], at + 2
        else:
            out, at = [*out, word[at]], at + 1
    return tuple(out)


def recount(merges, words, first=256):
    """Slow: every pair of every word, anew at every step."""
    steps = []
    for t, pair in enumerate(merges):
        counts = {}
        for word, count in words.items():
            for two in zip(word, word[1:], strict=False):
                counts[two] = counts.get(two, 0) + count
        steps.append(counts)
        nexts = {}
        for word, count in words.items():
            key = merged(word, pair, first + t)
            nexts[key] = nexts.get(key, 0) + count
        words = nexts
    return steps


def mix(samples, weights):
    mixed = {}
    for words, weight in zip(samples, weights, strict=True):
        for word, count in words.items():
            mixed[word] = mixed.get(word, 0) + weight * count
    return mixed


def learned(samples, weights, steps):
    return [(step.left, step.right) for step in learn(counted(mix(samples, weights)), steps)]


@settings(max_examples=60)
@given(WORDS, WORDS, st.integers(1, 6), st.integers(300, 400))
def test_pair_counts_by_step(words, others, steps, first):
    merges = [
        (a if a < 256 else a - 256 + first, b if b < 256 else b - 256 + first) for a, b in learned([others], [1], steps)
    ]
    changes = pair_counts_by_step(merges, counted(words), first=first)
    assert (np.diff(changes.step) >= 0).all()
    counts, entries = {}, list(zip(changes.step, changes.left, changes.right, changes.count, strict=True))
    for t, expected in enumerate(recount(merges, counted(words), first)):
        now = {(left, right): count for step, left, right, count in entries if step == t}
        assert t == 0 or all(counts.get(pair, 0) != count for pair, count in now.items())  # only what changed
        counts |= now
        assert {pair: count for pair, count in counts.items() if count} == expected
    if merges:
        assert changes.pairs() == sum((len(word) - 1) * count for word, count in words.items())


def sample(rng, letters, size=12):
    """Words with counts, of a language whose letters have random weights."""
    weights = rng.dirichlet(np.ones(len(letters)))
    return {
        "".join(rng.choice(list(letters), rng.integers(2, 7), p=weights)): int(rng.integers(1, 50)) for _ in range(size)
    }


@functools.cache
def instances():
    return [instance(seed) for seed in range(8)]


def instance(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 5))
    training = [sample(rng, "abcdef") for _ in range(n)]
    merges = learned(training, rng.integers(1, 9, n).tolist(), int(rng.integers(3, 25)))
    return merges, training if seed % 2 else [sample(rng, "abcdef") for _ in range(n)]


def program_of(merges, samples):
    return StepCounts(merges, [pair_counts_by_step(merges, counted(words)) for words in samples])


@functools.cache
def whole(seed, slack):
    """All constraints at once, by scipy: the optimum, and the range of each share at most ``slack`` above it."""
    optimize = pytest.importorskip("scipy.optimize")
    merges, samples = instances()[seed]
    steps = [recount(merges, counted(words)) for words in samples]
    totals = [sum(counts[0].values()) for counts in steps]
    used = [t for t, pair in enumerate(merges) if any(counts[t].get(pair) for counts in steps)]
    pairs = sorted({pair for counts in steps for step in counts for pair in step} | set(merges))
    n, width = len(samples), len(samples) + len(used) + len(pairs)
    rows = []
    for column, t in enumerate(used):
        for p, pair in enumerate(pairs):
            if pair != merges[t]:
                row = np.zeros(width)
                for i, counts in enumerate(steps):
                    row[i] = (counts[t].get(merges[t], 0) - counts[t].get(pair, 0)) / totals[i]
                row[n + column] = row[n + len(used) + p] = 1
                rows.append(-row)
    cost = np.concatenate([np.zeros(n), np.ones(width - n)])
    simplex = {"A_eq": np.where(np.arange(width) < n, 1.0, 0.0)[None], "b_eq": [1.0]}
    best = optimize.linprog(cost, A_ub=rows, b_ub=np.zeros(len(rows)), **simplex).fun
    ends = []
    for i in range(n):
        for sign in (1, -1):
            goal = np.zeros(width)
            goal[i] = sign
            found = optimize.linprog(goal, A_ub=[*rows, cost], b_ub=[*np.zeros(len(rows)), best + slack], **simplex)
            ends.append(sign * found.fun)
    return best, ends[::2], ends[1::2], used


@pytest.mark.parametrize("options", [{}, {"competitors": 1, "per_round": 2}], ids=["default", "few at a time"])
def test_the_lazy_program_is_the_whole_one(options):
    pytest.importorskip("highspy")
    contradicted = 0
    for seed, (merges, samples) in enumerate(instances()):
        names = [f"c{i}" for i in range(len(samples))]
        found = infer(merges, dict(zip(names, samples, strict=True)), slack=1e-4, **options)
        best, least, greatest, used = whole(seed, 1e-4)
        assert abs(found.objective - best) < 1e-6 and abs(sum(found.pairs) - 1) < 1e-9
        np.testing.assert_allclose([found.least, found.greatest], [least, greatest], rtol=0, atol=1e-5)
        assert (np.array(found.pairs) >= np.array(least) - 1e-5).all()
        assert found.steps == len(used) and {*found.absent, *used} == set(range(len(merges)))
        corner = infer(merges, dict(zip(names, samples, strict=True)), ranges=False, **options)
        assert abs(corner.objective - best) < 1e-6 and corner.least == corner.greatest == corner.unidentified == ()
        contradicted += best > 1e-4
    assert contradicted >= 3  # some have no mixture that fits, some do


def test_the_solution_violates_nothing():
    """Checked pair by pair against the recount, whatever the program says of itself."""
    pytest.importorskip("highspy")
    for merges, samples in instances():
        counts = program_of(merges, samples)
        program = MixtureProgram(counts, counts.merge.any(1))
        alpha, *_ = program.solve()
        steps = [recount(merges, counted(words)) for words in samples]
        totals = [sum(step[0].values()) for step in steps]
        v_p = {
            divmod(int(name), base_of(counts, merges)): v for name, v in zip(counts.names, program._v_p, strict=True)
        }
        for t in np.flatnonzero(counts.merge.any(1)):
            own = mixed(merges[t], t, alpha, steps, totals)
            for pair in {pair for step in steps for pair in step[t]}:
                least = own - mixed(pair, t, alpha, steps, totals)
                assert least + (program._v_t[t] + v_p[pair]) / SCALE > -1e-8


def mixed(pair, t, alpha, steps, totals):
    return sum(a * step[t].get(pair, 0) / d for a, step, d in zip(alpha, steps, totals, strict=True))


def base_of(counts, merges):
    """What the names of pairs are written in."""
    left, right = merges[0]
    return int((counts.names[counts.own[0]] - right) // left)


def test_counts_are_looked_up_and_mixed():
    for merges, samples in instances():
        counts = program_of(merges, samples)
        base = base_of(counts, merges)
        steps = [recount(merges, counted(words)) for words in samples]
        totals = np.array([sum(step[0].values()) for step in steps])
        t, p = (x.ravel() for x in np.indices((counts.steps, counts.pairs)))
        pairs = [divmod(int(name), base) for name in counts.names]
        expected = np.array([[s[i].get(pairs[j], 0) for s in steps] for i, j in zip(t, p, strict=True)]) / totals
        np.testing.assert_allclose(counts.at(t, p), expected, rtol=1e-14)
        alpha = np.random.default_rng(0).dirichlet(np.ones(len(samples)))
        table = np.zeros((counts.steps, counts.pairs))
        for value, pair, start, end in zip(
            counts.mixed(alpha), counts.event_pair, counts.event_step, counts.event_end, strict=True
        ):
            table[start:end, pair] = value
        np.testing.assert_allclose(table, (expected @ alpha).reshape(table.shape), rtol=0, atol=1e-14)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.data())
@settings(max_examples=50)
def test_range_minimum(values, data):
    x = np.array(values)
    starts = data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=10))
    ends = [data.draw(st.integers(start + 1, len(x))) for start in starts]
    found = _range_minimum(x, np.array(starts), np.array(ends))
    assert found.tolist() == [x[a:b].min() for a, b in zip(starts, ends, strict=True)]


A, B = {"abab": 9, "abc": 5, "caba": 3}, {"bcbc": 7, "cbd": 6, "dcb": 4}


def test_texts_are_words_and_bytes_are_bytes():
    pytest.importorskip("highspy")
    merges = learned([A, B], [3, 1], 4)
    of_words = infer(merges, {"a": A, "b": B})
    assert infer(merges, {"a": {w.encode(): c for w, c in A.items()}, "b": B}) == of_words
    texts = {"a": "|".join(w for w, c in A.items() for _ in range(c)), "b": [(w + "|") * c for w, c in B.items()]}
    cut = infer(merges, texts, split=(r"regex:[^|]+",))  # the bars are words of one symbol, which have no pairs
    assert cut.pairs == of_words.pairs and cut.bytes != of_words.bytes
    per_pair = [sum(len(w) * c for w, c in s.items()) / sum((len(w) - 1) * c for w, c in s.items()) for s in (A, B)]
    expected = np.array(of_words.pairs) * per_pair
    np.testing.assert_allclose(of_words.bytes, expected / expected.sum())
    assert from_dict(Mixture, to_dict(of_words)) == of_words


def test_equal_samples_are_not_told_apart():
    pytest.importorskip("highspy")
    found = infer(learned([A, B], [3, 1], 4), {"a": A, "same": A, "b": B})
    assert found.unidentified[:2] == ("a", "same") and found.least[:2] == (0, 0)
    assert found.greatest[0] == pytest.approx(found.greatest[1]) and found.greatest[0] > 0.5


def test_merges_that_say_nothing():
    pytest.importorskip("highspy")
    merges = learned([A, B], [3, 1], 4)
    strange = [
        *merges[:2],
        (ord("x"), ord("y")),
        *((a if a < 258 else a + 1, b if b < 258 else b + 1) for a, b in merges[2:]),
    ]
    plain, with_strange = infer(merges, {"a": A, "b": B}), infer(strange, {"a": A, "b": B})
    assert with_strange.absent == (2,) and with_strange.pairs == pytest.approx(plain.pairs) and plain.absent == ()
    ignored = infer(merges, {"a": A, "b": B}, ignore=range(1, 4))
    assert ignored.steps == 1 and ignored.greatest[0] - ignored.least[0] >= plain.greatest[0] - plain.least[0]


def test_characters_are_symbols():
    pytest.importorskip("highspy")
    assert symbols_of("aé".encode() + b"\xff", {"é".encode(): 256}) == (97, 256, 255)
    found = infer([(256, 97)], {"a": {"éa": 3, "ab": 1}, "b": {"ab": 2, "éa": 1}}, characters=("é".encode(),))
    assert found.least[0] == pytest.approx(0.4) and found.greatest[0] == pytest.approx(
        1
    )  # 3/4 x + 1/3 y >= 1/4 x + 2/3 y


def test_report():
    pytest.importorskip("highspy")
    said = []
    infer(learned([A, B], [3, 1], 4), {"a": A, "b": B}, report=lambda *line: said.append(line))
    assert [line for line in said if line[0] == "counting"] == [("counting", i + 1, 8) for i in range(8)]
    assert ("solving", 1, 0) in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: infer([(97, 98)], {"a": A}), r"at least two categories, got \['a'\]"),
        (lambda: infer([], {"a": A, "b": B}), "there are no merges"),
        (lambda: infer([(97, 98)], {"a": A, "b": {}}), "category 'b' is empty"),
        (lambda: infer([(97, 98)], {"a": A, "b": ["x y"]}, split=("whitespace",)), "category 'b' is empty"),
        (lambda: infer([(97, 98), (97, 257)], {"a": A, "b": B}), "merge 1 is of the ids 97 and 257; .* ids 0..256"),
        (lambda: infer([(120, 121)], {"a": A, "b": B}), "none of the 1 merges occurs in the samples"),
        (lambda: infer([(97, 98)], {"a": A, "b": B}, ignore=[0]), "every merge that occurs in the samples is ignored"),
        (lambda: infer([(97, 98)], {"a": A, "b": B}, competitors=0), "expected at least 1"),
        (lambda: infer([(97, 98)], {"a": "ab", "b": "bc"}, split=("words",)), "unknown splitting rule 'words'"),
        (lambda: infer([(97, 98)], {"a": {"ab": -1}, "b": B}), "-1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_without_the_solver(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxlm\[tokenize\]'"):
        infer([(97, 98)], {"a": A, "b": B})
