"""The studies of tokenization: presets, the frame they share, what they draw, and each of them as a toy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from configs.tokenization import PRESETS, STUDIES, get_config
from experiments import panels
from experiments.claims import Line
from experiments.tokenization import deletion, frame
from experiments.tokenization.counting import ASK, END, LETTERS, Cut, Strings
from experiments.tokenization.cuts import Trigrams
from experiments.tokenization.digits import CUTS, EQUALS, IDS, PAD, PLUS, Additions
from experiments.tokenization.digits import END as STOP
from experiments.tokenization.frame import Arm, Found, Results, Row, Study
from experiments.tokenization.markov import Markov
from experiments.tokenization.texts import with_typos
from jaxlm.core.config import from_dict, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.decode.token_healing import healed_next_byte
from jaxlm.tokenize.bpe import BpeTokenizer


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_configurations(preset):
    study = get_config(preset)
    assert from_dict(type(study), json.loads(json.dumps(to_dict(study)))) == study
    arms = [(arm.part, arm.label) for arm in study.arms()]
    assert len(set(arms)) == len(arms) > 0


def test_an_unknown_preset():
    with pytest.raises(ConfigError, match="did you mean 'digits_study'"):
        get_config("digit_study")


@dataclasses.dataclass(frozen=True)
class Toy(Study):
    name: ClassVar[str] = "toy"
    claim: ClassVar[str] = "two is more than one"
    axes: ClassVar[tuple[str, str]] = ("x", "y")
    ran: ClassVar[list[tuple[str, int]]] = []
    broken: ClassVar[str] = ""

    def arms(self):
        return [Arm("part", "one"), Arm("part", "two")]

    def runner(self, arm, progress):
        def run(seed: int) -> Iterator[Found]:
            if arm.label == self.broken:
                raise KeyboardInterrupt
            self.ran.append((arm.label, seed))
            for x in (1, 2):
                yield Found("y", x * (arm.label == "two") + seed / 10, x)

        return run

    def lines(self, found: Results) -> Iterator[Line]:
        one, two = (found.of("part", label, "y", 2) for label in ("one", "two"))
        if one and two:
            yield Line("two over one", 1.0, True, {seed: two[seed] - one[seed] for seed in two})

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        return {"y": lambda label: found.last(part, label, "y")}

    def panels(self, found: Results) -> panels.Panels:
        out: panels.Panels = {}
        for arm in self.arms():
            panels.add(out, arm.part, arm.label, found.curve(arm.part, arm.label, "y"))
        return out


def test_a_study_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    study = Toy(seeds=(0, 1), workers=1)
    monkeypatch.setattr(Toy, "ran", [])
    monkeypatch.setattr(Toy, "broken", "two")
    with pytest.raises(KeyboardInterrupt):
        frame.main(study, tmp_path, replot=False)
    assert study.ran == [("one", 0), ("one", 1)]
    monkeypatch.setattr(Toy, "broken", "")
    frame.main(study, tmp_path, replot=False)
    assert study.ran == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    text = (tmp_path / "table.txt").read_text()
    assert "two over one" in text and text.count("pass") == 1 and "2.050 (2.000, 2.100)" in text
    before = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "results.csv", "table.txt", "provenance.json"} <= before
    frame.main(study, tmp_path, replot=True)
    assert (tmp_path / "table.txt").read_text() == text and len(study.ran) == 4
    with pytest.raises(ConfigError, match="seeds"):
        frame.main(dataclasses.replace(study, seeds=(5,)), tmp_path, replot=False)


def test_results_by_place():
    rows = [Row("p", "a", seed, "y", at, "", seed + at) for seed in (0, 1) for at in (4, 2)]
    found = Results(rows)
    assert found.curve("p", "a", "y") == [(2.0, {0: 2, 1: 3}), (4.0, {0: 4, 1: 5})]
    assert found.last("p", "a", "y") == {0: 4, 1: 5} and found.last("p", "b", "y") == {}


@pytest.mark.parametrize("cut", CUTS)
def test_additions_are_right(cut):
    texts = {i: text for text, i in IDS.items()} | {PLUS: "+", EQUALS: "=", STOP: ".", PAD: ""}
    found = Additions(4, 8, cut).draw(np.random.default_rng(0), 300)
    for tokens, answer, longer, digits in zip(*found, strict=True):
        text = "".join(texts[i] for i in tokens.tolist())
        asked, _, said = text.partition("=")
        a, b = asked.split("+")
        assert int(a) + int(b) == int(said.removesuffix(".")) and text.endswith(".")
        assert "".join(texts[i] for i in tokens[answer].tolist()) == said
        assert digits == len(said) - 1 and longer == (digits > max(len(a), len(b)))
    assert found.longer.any() and not found.longer.all()


@pytest.mark.parametrize("kind", ["letters", "pairs", "bpe"])
@pytest.mark.parametrize("tally", [True, False])
def test_strings_are_counted(kind, tally):
    cut = Cut(kind, 9, 5)
    batch, sizes = Strings(9, 8, cut, tally).draw(np.random.default_rng(0), 100)
    for tokens, weights, size in zip(batch["tokens"], batch["weights"], sizes, strict=True):
        at = tokens.tolist().index(ASK)
        pieces = [cut.texts[i - END - 11] for i in tokens[:at]]
        counts = np.cumsum([piece.count(LETTERS[0]) for piece in pieces]).tolist()
        assert len("".join(pieces)) == size
        said = (tokens[at + 1 :][: len(counts) if tally else 1] - END - 1).tolist()
        assert said == (counts if tally else counts[-1:])
        assert weights.sum() == len(said) + 1  # the end, too


def test_trigrams_back_off():
    documents = [np.array(ids, np.int32) for ids in ([0, 1, 2, 1, 2, 3], [0, 1, 1, 3])]
    model = Trigrams(documents, 5)
    rows = np.exp(model([(1, 2), (7, 2), (0,), (4, 4)]))
    np.testing.assert_allclose(rows.sum(1), 1)
    one = (np.bincount([1, 2, 1, 2, 3, 1, 1, 3], minlength=5) + 3 / 5) / (8 + 3)
    two = (np.array([0, 1, 0, 1, 0]) + 2 * one) / (2 + 2)  # after 2
    np.testing.assert_allclose(rows[1], two)
    np.testing.assert_allclose(rows[0], (np.array([0, 1, 0, 1, 0]) + 2 * two) / (2 + 2))
    np.testing.assert_allclose(rows[3], one)


def test_healing_against_a_sum_over_tokens():
    """What one token back may become: longer tokens that begin like it, or itself and any token."""
    tokenizer = BpeTokenizer.train(["the cat sat on the mat that then fat"], 270)
    documents = [tokenizer.encode("the cat sat on the mat", bos=True, eos=True)]
    model, prompts = Trigrams(documents, tokenizer.vocab_size), [b"the c", b"the m", b"t"]
    found = np.exp(healed_next_byte(model, tokenizer, prompts))
    np.testing.assert_allclose(found.sum(1), 1)
    table, bos = tokenizer.token_bytes, tokenizer.special("<bos>")
    for row, prompt in zip(found, prompts, strict=True):
        ids = [bos, *tokenizer.encode(prompt).tolist()]
        row_of = lambda sequence: np.exp(model([tuple(sequence)]))[0]
        masses, back = np.zeros(257), table[ids[-1]]
        for t, p in enumerate(row_of(ids[:-1])):
            if table[t] == back:
                for u, q in enumerate(row_of(ids)):
                    if table[u] or u in tokenizer.stop_ids:
                        masses[table[u][0] if table[u] else 256] += p * q
            elif table[t].startswith(back) and back:
                masses[table[t][len(back)]] += p
        np.testing.assert_allclose(row, masses / masses.sum(), rtol=1e-9)


def test_typos_exchange_letters_alone():
    text = (b"Some Words, 123 and more: " * 200, "é".encode() * 50)
    changed = with_typos(list(text), 0.1, 0)
    for before, after in zip(text, changed, strict=True):
        assert len(before) == len(after)
        other = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert all(chr(a).isalpha() and chr(b).isalpha() and chr(a).islower() == chr(b).islower() for a, b in other)
    letters = sum(chr(c).isalpha() for c in text[0])
    assert abs(sum(a != b for a, b in zip(text[0], changed[0], strict=True)) / letters - 0.1) < 0.02


def test_unigrams_over_tokens_of_a_markov_source():
    """The pilot's figures (bits a symbol, one text): LZW .552 and BPE .502 with 64 tokens at k = 1, symbols 1.000."""
    study = Markov(orders=(1,), dictionaries=(2, 64), train_symbols=100_000, test_symbols=50_000)
    of = {arm.label: study.runner(arm, None)(0) for arm in study.arms() if arm.part == "k 1"}
    bits = {label: {found.at: found.value for found in one} for label, one in of.items()}
    assert bits["lzw"][2] == pytest.approx(1.0, abs=1e-3) and bits["bpe"][2] == pytest.approx(1.0, abs=1e-3)
    assert bits["lzw"][64] == pytest.approx(0.552, abs=0.02) and bits["bpe"][64] == pytest.approx(0.502, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_toy(name, tmp_path: Path):
    study = get_config(f"{name}_smoke")
    frame.main(study, tmp_path, replot=False)
    table = (tmp_path / "table.txt").read_text()
    assert table.startswith(f"{name}: ")
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) > len(study.arms())


def test_typos_are_to_be_corrected():
    """The pairs of deletion's text: letters of the source differ, and the target is a piece of the text."""
    text = b"The quick brown fox jumps over the lazy dog. " * 9
    batch = deletion.Typos(text, 0.2, 40, 16, seed=3)(5)
    source, target = batch["source"], batch["targets"]
    assert all(bytes(row[:-1].astype(np.uint8)) in text for row in target) and (target[:, -1] == deletion.END).all()
    assert deletion.written(batch) == 16 * 40
    changed = source != target[:, :-1]
    assert 0.1 < changed.mean() < 0.2  # .2 of the letters, which are .8 of the bytes
    np.testing.assert_array_equal(deletion.Typos(text, 0.2, 40, 16, seed=3)(5)["source"], source)
