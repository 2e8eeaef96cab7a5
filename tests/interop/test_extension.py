"""Every training-free way to a longer context, on an imported checkpoint: full pass, pieces and steps agree."""

from __future__ import annotations

import numpy as np
import pytest

import jaxlm
from jaxlm.decode.edit import edit_cache
from jaxlm.decode.segments import condense
from jaxlm.model import decoder, extend
from jaxlm.position.lm_infinite import LmInfinite
from jaxlm.position.rotary import Rotary
from jaxlm.position.self_extend import SelfExtend
from jaxlm.position.streaming import Streaming
from tests.interop.test_families import loaded, recorded
from tests.tiny import caller, close, slow, stream

ORIGINAL = 8  # as if it had been trained on no more


@pytest.mark.parametrize("method", extend.METHODS)
def test_every_method_on_llama(method):
    """It changes the model beyond its length of training, and reads alike however the tokens come."""
    model, params = loaded("llama")
    tokens = recorded("llama")["input_ids"]
    longer = extend.extend(model, method, factor=4, original=ORIGINAL)
    length = tokens.shape[1]
    call, params = caller(longer.spec, length), decoder.unstack(params)
    full = np.asarray(call(params, tokens)[0])
    assert np.isfinite(full).all()
    for cache in {"full", extend.cache(method, ORIGINAL)}:
        close(stream(longer.spec, call, params, tokens, (1,) * length, cache=cache), full, 2e-5)
    assert (np.abs(full - recorded("llama")["logits"]).max() > 1e-3) == (method != "none")


@pytest.mark.parametrize(
    "position", [SelfExtend, *slow((LmInfinite,), (Streaming,))], ids=["self_extend", "lm_infinite", "streaming"]
)
def test_by_replace(position):
    """The rotary encoding of the checkpoint, wrapped, and the mask that goes with it, set at once."""
    model, params = loaded("llama")
    tokens, own = recorded("llama")["input_ids"], model.spec.layers[0].pattern[0].mixer.position
    assert isinstance(own, Rotary)
    sizes = {SelfExtend: {"window": 5, "group": 3}, LmInfinite: {"local": 5, "sinks": 2, "limit": 6}}
    around = position(own, **sizes.get(position, {"window": 5, "sinks": 2}))
    masks = {} if position is SelfExtend else {"mixer.mask": around.mask()}
    longer = jaxlm.replace(model, {"mixer.position": around, **masks})
    call = caller(longer.spec)
    full = call(params, tokens)[0]
    assert np.isfinite(full).all()
    close(stream(longer.spec, call, params, tokens, (7, 1, 1, 1, tokens.shape[1] - 10)), full, 2e-5)
    assert jaxlm.generate(longer, params, tokens, 3).shape == (len(tokens), 3)


def test_edits_and_segments():
    """A cached text is edited (its first layer has then read the new one), and a context cut into segments."""
    model, params = loaded("llama")
    tokens, new = recorded("llama")["input_ids"], np.array([3, 5])
    call = caller(model.spec)
    _, state = call(params, tokens, None, None, jaxlm.init_state(model, len(tokens), 40))
    state, logits = edit_cache(model, params, state, 4, 1, new)
    text = np.concatenate((tokens[:, :4], np.broadcast_to(new, (len(tokens), 2)), tokens[:, 5:]), 1)
    whole, exact = call(params, text, None, None, jaxlm.init_state(model, len(tokens), 40))
    close(logits, whole[:, 4:6], 2e-5)  # what lies before the edit is exact in all layers
    ours, theirs = (np.asarray(each["layers"][0].k)[:, :, : text.shape[1]] for each in (state, exact))
    close(ours, theirs, 2e-5)
    prompt = condense(model, params, tokens[0, :-3], tokens[0, -3:], window=11, size=4, overlap=1)
    assert 7 <= prompt.size <= 11
