"""spans_fim_edits: T5 spans, orders of fill-in-the-middle, edit spans."""

from __future__ import annotations

import re

from jaxlm.data import edit_spans
from jaxlm.data.edit_spans import Edit
from jaxlm.data.fill_in_middle import arrange
from jaxlm.data.span_corruption import SpanCorruption
from tests.golden.tokenization.data import files


def number(data: dict, pattern: str) -> int:
    """An id that the conventions of a file name."""
    found = re.search(pattern, data["conventions"])
    assert found, pattern
    return int(found[1])


def test_t5_spans(golden):
    for data in files(golden, "spans_fim_edits"):
        assert data["t5"]
        sentinel, end = number(data, r"sentinel (\d+)-k"), number(data, r"; (\d+) is end of sequence")
        plain, closing = (SpanCorruption(sentinel=sentinel, end=end, closing=last) for last in (False, True))
        for case in data["t5"]:
            source, target = plain.corrupt(case["tokens"], case["spans"])
            assert source.tolist() == case["t5_input"]
            assert target.tolist() == case["t5_target"]
            source, target = closing.corrupt(case["tokens"], case["spans"])
            assert source.tolist() == case["t5_input"]
            assert target.tolist() == case["t5_target_final_sentinel"]


def test_fill_in_the_middle(golden):
    for data in files(golden, "spans_fim_edits"):
        assert data["fim"]
        marks = [number(data, rf"{name} (\d+)") for name in ("FIM ids: prefix", ", suffix", ", middle")]
        for case in data["fim"]:
            (first, last), tokens = case["middle"], case["tokens"]
            pieces = (tokens[:first], tokens[first:last], tokens[last:])
            for order in ("psm", "spm", "spm_plain"):
                assert arrange(pieces, order, marks).tolist() == case[order]


def test_edits(golden):
    for data in files(golden, "spans_fim_edits"):
        assert data["edits"]
        for case in data["edits"]:
            source, target = case["source"], case["target"]
            edits = edit_spans.diff(source, target)
            assert edits == tuple(Edit(start, stop, tuple(words)) for start, stop, words in case["spans"])
            assert edit_spans.write(edits) == case["text"]
            read, dropped = edit_spans.read(case["text"], len(source))
            assert read == edits and not dropped
            assert edit_spans.apply(source, read) == target
            assert len(target) == case["target_tokens"]
            said = sum(2 + max(len(edit.words), 1) for edit in edits)
            assert said == case["edit_numbers_and_words"]
