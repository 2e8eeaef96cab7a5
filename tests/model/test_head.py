"""What encoders add around the blocks: token types, a transform before the vocabulary, a pooled first token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder
from jaxlm.model.describe import forward_flops, parameter_count
from jaxlm.model.spec import ModelSpec
from jaxlm.ops.activation import activation
from tests.tiny import close, params_of, tiny, tokens_of

TRANSFORM = {"activation": "relu", "norm": {"name": "rms", "args": {"eps": 0.1}}}
SPEC = tiny(repeats=1, token_types=3, head_transform=TRANSFORM, pooler=True, head_bias=True)


def test_the_specification_is_json():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.head_transform is not None and SPEC.head_transform.norm.eps == 0.1


def test_the_formulae():
    params, tokens = params_of(SPEC), tokens_of(2, 5)
    types = tokens % 3
    out = decoder.forward(SPEC, params, jnp.asarray(tokens), token_types=jnp.asarray(types))
    embeds = np.asarray(params["embed"]["table"])[tokens] + np.asarray(params["embed"]["types"])[types]
    plain = params | {"embed": {**params["embed"], "types": jnp.zeros((3, 16))}}
    again = decoder.forward(SPEC, plain, inputs_embeds=jnp.asarray(embeds))
    close(again.logits, out.logits)
    p, hidden = params["head"]["transform"], out.hidden
    inner = activation("relu")(hidden @ p["kernel"] + p["bias"])
    inner = inner * jax.lax.rsqrt((inner**2).mean(-1, keepdims=True) + 0.1) * p["norm"]["scale"]
    close(out.logits, inner @ params["head"]["kernel"] + params["head"]["bias"])
    close(jaxlm.unembed(jaxlm.LanguageModel(SPEC), params, hidden[:, 2:4]), out.logits[:, 2:4])
    close(out.pooled, jnp.tanh(hidden[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"]))


def test_type_zero_is_the_default_and_others_read_nan():
    params, tokens = params_of(SPEC), jnp.asarray(tokens_of(2, 5))
    call = lambda types: decoder.forward(SPEC, params, tokens, token_types=types)
    np.testing.assert_array_equal(call(None).logits, call(jnp.zeros_like(tokens)).logits)
    assert np.isnan(call(jnp.full_like(tokens, 3)).logits).all()


def test_counts():
    """Types are looked up, and a pooler looks at one token of a row: neither costs a token's FLOPs."""
    plain = tiny(repeats=1, head_bias=True)
    more = parameter_count(jaxlm.LanguageModel(SPEC)) - parameter_count(jaxlm.LanguageModel(plain))
    assert more == 3 * 16 + (16 * 16 + 16 + 16) + (16 * 16 + 16)
    assert forward_flops(SPEC, 10) - forward_flops(plain, 10) == 2 * 16 * 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_types": -1}, "ModelSpec.token_types: expected a number >= 0, got -1"),
        ({"head_transform": {"activation": "gelo"}}, "ModelSpec.head_transform: .*'gelo'.*did you mean 'gelu'"),
        ({"pooler": 1}, "ModelSpec.pooler"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny(**fields)
    assert "\n" not in str(caught.value)


def test_types_that_a_model_lacks():
    spec = tiny(repeats=1)
    with pytest.raises(ConfigError, match="token_types: the model has none"):
        decoder.forward(spec, params_of(spec), jnp.ones((1, 3), jnp.int32), token_types=jnp.ones((1, 3), jnp.int32))
