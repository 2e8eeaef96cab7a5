"""The hypernetwork of embeddings: where it starts, what it may not see, and the model it is put into."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.params import flatten, zeros
from jaxlm.edit.landmark import LandmarkTokens
from jaxlm.model import decoder
from jaxlm.model.embedding_hypernetwork import NO_TOKEN, EmbeddingHypernetwork, TransferModel, tables_of
from jaxlm.position.abacus import Abacus
from tests.tiny import close, draw_params, params_of, tiny, tokens_of

NETWORK = EmbeddingHypernetwork(width=16, layers=2, heads=2, max_pieces=5)
SPECS = {
    "untied": tiny(repeats=1),
    "tied": tiny(repeats=1, tied_head=True),
    "biased": tiny(repeats=1, tied_head=True, head_bias=True),
    "narrow": tiny(repeats=1, embed_width=8),
}
KINDS = pytest.mark.parametrize("kind", SPECS)
PIECES = np.array([[3, 0, 0, 0, 0], [1, 2, 4, 0, 0], [5, 5, 5, 5, 12], [0, 0, 0, 0, 0]], np.int32)
MASK = np.arange(5) < np.array([1, 3, 5, 0])[:, None]


def predict(kind, network_params, pieces=PIECES, mask=MASK):
    spec = SPECS[kind]
    call = jax.jit(lambda p, t: NETWORK.predict(p, spec, t, jnp.asarray(pieces), jnp.asarray(mask)))
    return {name: np.asarray(value) for name, value in call(network_params, tables_of(spec, params_of(spec))).items()}


def untrained(spec):
    """Everything drawn but the projectors' last layers, which begin at zero."""
    p = draw_params(NETWORK.params(spec), seed=5)
    last = ("out", "out_bias")
    return {
        k: {n: 0 * v if n in last else v for n, v in own.items()} if "project" in k else own for k, own in p.items()
    }


def rows(tables):
    return {name: value.T if name == "kernel" else value for name, value in tables.items() if name != "bias"}


@KINDS
def test_an_untrained_network_is_the_mean_of_pieces(kind):
    spec = SPECS[kind]
    params, found = params_of(spec), predict(kind, untrained(spec))
    assert set(found) == {"table", "bias"} | (set() if spec.tied_head else {"kernel"})
    for name, theirs in rows({k: np.asarray(v) for k, v in tables_of(spec, params).items()}).items():
        for i, (ids, there) in enumerate(zip(PIECES, MASK, strict=True)):
            wanted = theirs[ids[there]].mean(0) if there.any() else np.zeros(theirs.shape[1])
            np.testing.assert_allclose(rows(found)[name][i], wanted, atol=1e-6)
    bias = np.asarray(params["head"]["bias"]) if spec.head_bias else np.zeros(13)
    np.testing.assert_allclose(
        found["bias"][:3], [bias[i[m]].mean() for i, m in zip(PIECES[:3], MASK[:3], strict=True)], atol=1e-6
    )
    assert found["bias"][3] == np.float32(NO_TOKEN)


@KINDS
def test_what_a_trained_network_sees(kind):
    """Its own pieces in their order, not the padding, nor the other tokens; all of it is finite."""
    own = draw_params(NETWORK.params(SPECS[kind]), seed=1)
    found = predict(kind, own)
    assert all(np.isfinite(value).all() for value in found.values())
    assert np.abs(found["table"] - predict(kind, untrained(SPECS[kind]))["table"]).max() > 0.1
    other = np.where(MASK, PIECES, 7).astype(np.int32)
    close(rows(predict(kind, own, other)), rows(found))
    close(rows(predict(kind, own, PIECES[:2], MASK[:2])), {n: v[:2] for n, v in rows(found).items()})
    turned = PIECES.copy()
    turned[1, :3] = turned[1, [2, 0, 1]]
    assert np.abs(predict(kind, own, turned)["table"][1] - found["table"][1]).max() > 1e-3


@KINDS
def test_the_original_vocabulary_gives_the_model_back(kind):
    """Every token spelt by itself: the model's own logits; rows that are no token have no probability."""
    spec = SPECS[kind]
    params = {"base": params_of(spec), "hypernetwork": untrained(spec)}
    model, count = TransferModel(spec, NETWORK), spec.vocab_size
    pieces, mask = np.zeros((count + 2, 5), np.int32), np.zeros((count + 2, 5), bool)
    pieces[:count, 0], mask[:count, 0] = np.arange(count), True
    batch = {"pieces": pieces, "piece_mask": mask, "copied": np.zeros(count + 2, bool)}
    tokens = tokens_of(2, 9)

    def call(params):
        own = model.with_tables(params, model.predict(params, batch))
        return model(own, jnp.asarray(tokens)).logits, decoder.forward(spec, params["base"], jnp.asarray(tokens)).logits

    ours, theirs = jax.jit(call)(params)
    close(ours[..., :count], theirs)
    assert np.asarray(jax.nn.softmax(ours))[..., count:].max() == 0


def test_copied_tokens_keep_their_row():
    spec = SPECS["untied"]
    base = params_of(spec)
    params = {"base": base, "hypernetwork": draw_params(NETWORK.params(spec), seed=2)}
    copied = np.array([True, False, False, False])
    batch = {"pieces": jnp.asarray(PIECES), "piece_mask": jnp.asarray(MASK), "copied": jnp.asarray(copied)}
    found = jax.jit(TransferModel(spec, NETWORK).predict)(params, batch)
    np.testing.assert_array_equal(found["table"][0], base["embed"]["table"][3])
    np.testing.assert_array_equal(found["kernel"][:, 0], base["head"]["kernel"][:, 3])
    assert (np.asarray(found["table"])[1] != np.asarray(base["embed"]["table"][PIECES[1]]).mean(0)).any()


def test_parameters():
    """Only the network's, with no embedding of its own; logical axes for every dimension."""
    for spec in SPECS.values():
        specs = dict(flatten(NETWORK.params(spec)))
        assert not any(path.startswith(("embed", "head")) for path in specs)
        assert ("project_kernel/out" in specs) == (not spec.tied_head)
        assert all(specs[f"project_table/{name}"].init == zeros for name in ("out", "out_bias"))
        assert set(TransferModel(spec, NETWORK).param_specs()) == {"base", "hypernetwork"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EmbeddingHypernetwork(width=10, heads=4), "4 does not divide the width 10"),
        (lambda: EmbeddingHypernetwork(layers=0), "EmbeddingHypernetwork.layers: expected 1 or more"),
        (lambda: TransferModel(tiny(edit=LandmarkTokens(period=4)), NETWORK), "sequence edit has tokens of its own"),
        (lambda: TransferModel(tiny(mixer={"position": Abacus()}), NETWORK), "position 'abacus' knows token ids"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
