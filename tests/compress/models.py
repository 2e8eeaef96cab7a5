"""Coder models for the tests, and the definitions of the codes written out in fractions."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st

from jaxlm.compress.rational import StaticModel


def laplace(size):
    """An adaptive model: one more than how often a symbol has come."""
    return lambda prefix: [1 + list(prefix).count(s) for s in range(size)]


def echo(prefix):
    """An adaptive model of three symbols that expects the last one again, of another total at every step."""
    return [50 if prefix and s == prefix[-1] else 3 + len(prefix) for s in range(3)]


@st.composite
def models(draw, least=1):
    """(model, number of symbols): static ones of any frequencies, or adaptive."""
    if draw(st.booleans()):
        size = draw(st.integers(least, 4))
        return laplace(size), size
    if draw(st.booleans()):
        return echo, 3
    frequencies = draw(st.lists(st.integers(1, 40), min_size=least, max_size=6))
    return StaticModel(tuple(frequencies)), len(frequencies)


@st.composite
def texts(draw, least=1, longest=40):
    """(model, symbols) with symbols of the model's alphabet."""
    model, size = draw(models(least))
    return model, draw(st.lists(st.integers(0, size - 1), max_size=longest))


def frequencies_after(model, prefix):
    found = model(prefix)
    return list(getattr(found, "values", found))


def interval_of(model, symbols):
    """[low, high) of a text."""
    low, width = Fraction(0), Fraction(1)
    for i, symbol in enumerate(symbols):
        f = frequencies_after(model, symbols[:i])
        low, width = low + width * Fraction(sum(f[:symbol]), sum(f)), width * Fraction(f[symbol], sum(f))
    return low, low + width


def inside(cell, bits, interval):
    return interval[0] <= Fraction(cell, 2**bits) and Fraction(cell + 1, 2**bits) <= interval[1]


def text_of_cell(model, cell, bits):
    """The longest text whose interval contains a cell, by trying every symbol."""
    text: list[int] = []
    while True:
        options = range(len(frequencies_after(model, text)))
        longer = [text + [s] for s in options if inside(cell, bits, interval_of(model, text + [s]))]
        if not longer:
            return text
        (text,) = longer
