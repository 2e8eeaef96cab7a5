"""First embeddings of new tokens: pieces, sparsemax, nearest neighbours, the factorised matrix."""

from __future__ import annotations

import numpy as np

from jaxlm.interop.embedding_init.base import Material, cosine, nearest_softmax, sparsemax
from jaxlm.interop.embedding_init.focus import Focus
from jaxlm.interop.embedding_init.mean import Mean
from jaxlm.interop.embedding_init.mean_of_pieces import MeanOfPieces
from jaxlm.interop.embedding_init.ofa import Ofa, factorise
from jaxlm.interop.embedding_init.wechsel import Wechsel
from tests.golden.tokenization.data import files


def _cases(golden):
    found = [case for data in files(golden, "embedding_init") for case in data["cases"]]
    assert found
    for case in found:
        arrays = {name: np.array(value, np.float64) for name, value in case.items() if name not in ("pieces",)}
        source, aux_source, aux_new = (arrays[n] for n in ("source_embeddings", "aux_source", "aux_new"))
        old, new = len(source), len(aux_new)
        # The target vocabulary: all source tokens, then the new ones.
        material = Material(
            source,
            np.concatenate([np.arange(old), np.full(new, -1)]),
            [[]] * old + case["pieces"],
            np.concatenate([aux_source, aux_new]),
            aux_source,
        )
        yield arrays, material, old


def _agree(ours, golden, atol=1e-6):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=atol)


def test_embedding_weights(golden):
    for arrays, _, _ in _cases(golden):
        similar = cosine(arrays["aux_new"], arrays["aux_source"])
        _agree(similar, arrays["cosine"])
        _agree(sparsemax(similar), arrays["sparsemax_weights"])
        _agree(nearest_softmax(similar, int(arrays["topk"]), float(arrays["temperature"])), arrays["softmax_weights"])


def test_embedding_rows(golden):
    rng = np.random.default_rng(0)
    for arrays, material, old in _cases(golden):
        near = {"neighbours": int(arrays["topk"]), "temperature": float(arrays["temperature"])}
        for method, expected in (
            (MeanOfPieces(), "mean_of_pieces"),
            (Focus(), "focus_like"),
            (Wechsel(**near), "wechsel_like"),
            (Ofa(**near), "wechsel_like"),  # with all coordinates the factors multiply to the matrix
        ):
            out = method(material, rng)
            np.testing.assert_array_equal(out[:old], arrays["source_embeddings"])
            _agree(out[old:], arrays[expected])
        _agree(Mean()(material, rng)[old:], np.broadcast_to(arrays["source_mean"], out[old:].shape))
        _agree(material.deviation(), arrays["source_std_population"])


def test_embedding_factors(golden):
    for arrays, material, old in _cases(golden):
        rank = int(arrays["svd_rank"])
        coordinates, primitives = factorise(arrays["source_embeddings"], rank)
        assert coordinates.shape[1] == rank == len(primitives)
        _agree(coordinates @ primitives, arrays["svd_reconstruction"])
        _agree(np.linalg.norm(coordinates, axis=0), arrays["singular_values"][:rank])
        near = {"neighbours": int(arrays["topk"]), "temperature": float(arrays["temperature"])}
        out = Ofa(rank=rank, **near)(material, np.random.default_rng(0))
        _agree(out[old:], arrays["softmax_weights"] @ arrays["svd_reconstruction"])
