"""Edit spans: edits and their text give back the target, and what is no edit is dropped and counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.data.edit_spans import Edit, apply, diff, read, write

words = st.lists(st.sampled_from(["a", "b", "c", "None", "7"]), max_size=8)


@given(words, words)
def test_there_and_back(source, target):
    edits = diff(source, target)
    assert apply(source, edits) == target
    assert apply(source, edits[::-1]) == target  # their order does not matter
    if any(edit.words == ("None",) for edit in edits):
        with pytest.raises(ConfigError, match="None"):
            write(edits)
        return
    found, dropped = read(write(edits), len(source))
    assert found == edits and not dropped
    assert (write(edits) == "None") == (source == target)


@given(st.lists(st.sampled_from([*"0123", "-1", "None", ",", "x", "²", "9" * 30]), max_size=12), st.integers(0, 3))
def test_whatever_a_model_writes_can_be_applied_or_is_counted(said, length):
    text = " ".join(said)
    found, dropped = read(text, length)
    apply(["w"] * length, found)
    parts = 0 if text == "None" else len(text.split(" , "))
    assert len(found) + sum(dropped.values()) >= min(parts, 1)


@pytest.mark.parametrize(
    ("text", "edits", "dropped"),
    [
        ("None", (), {}),
        ("1 2 x , 3 3 y z", (Edit(1, 2, ("x",)), Edit(3, 3, ("y", "z"))), {}),
        ("2 1 x , 0 1 None", (Edit(0, 1),), {"backwards": 1}),
        ("3 5 x", (), {"beyond": 1}),
        ("4 4 x", (Edit(4, 4, ("x",)),), {}),  # an insertion at the end
        ("5 5 x", (), {"beyond": 1}),
        ("0 2 x , 1 3 y , 2 3 z", (Edit(0, 2, ("x",)), Edit(2, 3, ("z",))), {"overlap": 1}),
        ("1 1 x , 1 1 y , 1 2 z", (Edit(1, 1, ("x",)), Edit(1, 1, ("y",)), Edit(1, 2, ("z",))), {}),
        ("3 4 x , 0 1 y", (Edit(0, 1, ("y",)), Edit(3, 4, ("x",))), {}),
        ("x 1 y , 1 2 , 0 1 z", (Edit(0, 1, ("z",)),), {"unreadable": 2}),
        ("", (), {"unreadable": 1}),
        ("None , 0 1 x", (Edit(0, 1, ("x",)),), {"unreadable": 1}),
    ],
)
def test_what_is_read(text, edits, dropped):
    assert read(text, 4) == (edits, dropped)


def test_insertions_at_one_place_keep_their_order():
    assert apply(["a", "b"], [Edit(1, 1, ("x",)), Edit(1, 1, ("y",)), Edit(1, 2, ("z",))]) == ["a", "x", "y", "z"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apply(["a"], [Edit(0, 2)]), "edits of 1 words: beyond"),
        (lambda: apply(["a"], [Edit(1, 0)]), "backwards"),
        (lambda: apply(["a", "b"], [Edit(0, 2), Edit(1, 2)]), "overlap"),
        (lambda: write([Edit(0, 1, (",",))]), r"word \[','\] cannot be told"),
        (lambda: write([Edit(0, 1, ("a b",))]), "cannot be told"),
        (lambda: write([Edit(0, 1, ("None",))]), "cannot be told"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
