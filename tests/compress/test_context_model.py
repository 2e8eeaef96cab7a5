"""The model of counts: its formula, its two faces, and what the coders make of it."""

import numpy as np
import pytest

from jaxlm.compress import equal_info, range_coder, rational
from jaxlm.compress.context_model import PRIME, ContextModel
from jaxlm.core.errors import ConfigError

TEXT = b"the cat sat on the mat and the hen sat on the hat; that cat ate the rat, then the hen ate that hat. " * 20


def witten_bell(texts, context, size):
    """The formula, by counting again for every context."""
    lower = witten_bell(texts, context[1:], size) if context else np.full(size, 1 / size)
    n = np.zeros(size)
    for text in texts:
        for t in range(len(context), len(text)):
            if list(text[t - len(context) : t]) == list(context):
                n[text[t]] += 1
    different = np.count_nonzero(n)
    return (n + different * lower) / (n.sum() + different) if different else lower


def test_frequencies_are_witten_bell():
    rng = np.random.default_rng(0)
    texts = [rng.choice(4, size, p=[0.6, 0.3, 0.1, 0.0]).tolist() for size in (30, 1, 0, 12)]
    model = ContextModel.train(texts, order=2, size=4, total=1009)
    for prefix in ([], [0], [3], [2, 2], [0, 1], [1, 0, 0], [3, 0], [0, 3], [3, 3]):
        expected = range_coder.quantise(witten_bell(texts, prefix[-2:], 4), 1009)
        assert np.abs(np.array(model(prefix).values) - expected).max() <= 1  # sums in another order
        assert model(prefix).total == 1009


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_both_faces_agree(order):
    model = ContextModel.train([TEXT[:500]], order)
    prefixes = np.random.default_rng(1).choice(np.frombuffer(b"the catz", np.uint8), (40, 5)).astype(np.int32)
    for t in range(6):
        rows = model.batch(prefixes[:, :t])
        assert rows.shape == (40, 256) and (rows.sum(-1) == PRIME).all() and rows.min() >= 1
        assert rows.tolist() == [list(model(row).values) for row in prefixes[:, :t].tolist()]


def test_it_drives_every_coder():
    model, text = ContextModel.train([TEXT]), TEXT[:300] + b"\0\xff unseen"
    code = rational.encode(model, text)
    assert bytes(rational.decode(model, code, len(text))) == text
    windows = equal_info.encode_windows(model, text)  # every byte fits in 16 bits
    assert bytes(equal_info.decode_windows(model, windows)) == text
    cells = equal_info.encode_self_delimiting(model, text)
    assert cells is not None and bytes(equal_info.decode_self_delimiting(model, cells)) == text
    (fast,) = range_coder.encode([text], model.batch, PRIME)
    assert range_coder.decode([fast], [len(text)], model.batch, PRIME)[0].astype(np.uint8).tobytes() == text
    assert 8 * len(fast) <= 1.001 * rational.ideal_bits(model, text) + 8
    assert code.bits < 0.4 * 8 * len(text)


def test_nothing_to_learn_from():
    for texts in ([], [b""], [[]]):
        assert ContextModel.train(texts, order=2, size=4, total=8)([1, 2]).values == (2, 2, 2, 2)
    assert ContextModel.train([[0, 0]], order=1, size=1, total=5)([0]).values == (5,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ContextModel.train([[0, 4]], size=4), "text 0: symbol \\[4\\] is outside 0..3"),
        (lambda: ContextModel.train([], order=-1), "expected order >= 0"),
        (lambda: ContextModel.train([], order=8), "256\\^9 contexts do not fit in 63 bits"),
        (lambda: ContextModel.train([], total=255), "256 symbols need a total"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
