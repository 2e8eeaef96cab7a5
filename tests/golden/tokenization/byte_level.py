"""Next-byte probabilities of token models that are Markov chains, under both conventions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.decode.byte_search import SearchBytes, naive_next_byte
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.covers import covers
from tests.golden.tokenization.data import files

EXACT = {"rtol": 1e-9, "atol": 0}


class Chain:
    """A token model that knows the last token, or that there is none. Its last column is the end of the text."""

    context = 1

    def __init__(self, size: int, ids: list[int], first, rows, ends) -> None:
        with np.errstate(divide="ignore"):
            self.first, self.rows = np.full(size + 1, -np.inf), np.full((size, size + 1), -np.inf)
            self.first[ids], self.rows[np.ix_(ids, ids)], self.rows[ids, size] = map(np.log, (first, rows, ends))

    def __call__(self, sequences):
        return np.stack([self.rows[one[-1]] if one else self.first for one in sequences])


@dataclasses.dataclass(frozen=True)
class Greedy(Tokenizer):
    """The longest match from left to right."""

    name: ClassVar[str] = "greedy"
    special_ids: ClassVar[dict[str, int]] = {}
    vocab: tuple[str, ...] = ()

    @property
    def token_bytes(self):
        return tuple(piece.encode() for piece in self.vocab)

    def _encode(self, data):
        ids = []
        while data:
            ids.append(
                max((i for i, p in enumerate(self.token_bytes) if data.startswith(p)), key=lambda i: len(self.vocab[i]))
            )
            data = data[len(self.token_bytes[ids[-1]]) :]
        return np.array(ids, np.int32)


def models(golden):
    """(record's settings, tokenizer, usable ids, chain) of every model."""
    for file in files(golden, "byte_level_exact"):
        assert file["markov_token_models"]
        for model in file["markov_token_models"]:
            ids, merges = {chr(byte): byte for byte in range(256)}, []
            for left, right in model["merges"]:
                merges.append((ids[left], ids[right]))
                ids[left + right] = 255 + len(merges)
            tokenizer = BpeTokenizer(tuple(merges), split=(), specials=())
            usable = [ids[piece] for piece in model["vocab"]]
            yield (
                model,
                tokenizer,
                usable,
                Chain(tokenizer.vocab_size, usable, *(model[k] for k in ("p0", "trans", "eos"))),
            )


def test_every_segmentation(golden):
    for model, tokenizer, usable, chain in models(golden):
        view = SearchBytes(chain, tokenizer, "all", usable_ids=usable, ends=[tokenizer.vocab_size])
        masses = np.exp(view.start([record["prefix"] for record in model["records"]]).log_masses())
        for record, found in zip(model["records"], masses, strict=True):
            total, truth = found.sum(), record["all"]
            np.testing.assert_allclose(total, truth["prefix_prob"], **EXACT)
            np.testing.assert_allclose(found[256] / total, truth["end"], **EXACT)
            for byte, share in truth["next"].items():
                np.testing.assert_allclose(found[ord(byte)] / total, share, **EXACT)


def test_encodings_alone(golden):
    for model, tokenizer, usable, chain in models(golden):
        view = SearchBytes(chain, tokenizer, usable_ids=usable, ends=[tokenizer.vocab_size])
        prefixes = [record["prefix"] for record in model["records"]]
        masses, normalised = np.exp(view.start(prefixes).log_masses()), np.exp(view.next_byte(prefixes, end=False))
        for record, found, shares in zip(model["records"], masses, normalised, strict=True):
            truth = record["canonical_only"]
            assert tokenizer.encode(record["prefix"]).tolist() == [usable[i] for i in record["canonical"]]
            np.testing.assert_allclose(found[256], truth["end_mass"], **EXACT)
            for byte, mass in truth["next_mass"].items():
                np.testing.assert_allclose(found[ord(byte)], mass, **EXACT)
                np.testing.assert_allclose(shares[ord(byte)], truth["next_normalised"][byte], **EXACT)
            own = {tuple(usable[i] for i in cover["tokens"]): cover["prob"] for cover in truth["covers"]}
            assert covers(tokenizer, record["prefix"], usable) == sorted(own)
            probs = {cover: np.exp(_log_prob(chain, cover)) for cover in own}
            np.testing.assert_allclose([*probs.values()], [*own.values()], **EXACT)
            np.testing.assert_allclose(sum(probs.values()) if record["prefix"] else 1, truth["prefix_mass"], **EXACT)


def test_tokenization_bias(golden):
    """A model of tokens that is a model of bytes exactly: covers give its bytes, the prompt's tokens do not."""
    for file in files(golden, "byte_level_exact"):
        assert file["equivalent_models"]
        for model in file["equivalent_models"]:
            rows = {key.rpartition(",")[2]: row for key, row in model["token_conditionals"].items()}
            for key, row in model["token_conditionals"].items():  # exact for texts of any length
                np.testing.assert_allclose(row, rows[key.rpartition(",")[2]], rtol=1e-9)
            tokenizer, size = Greedy(tuple(model["vocab"])), len(model["vocab"])
            chain = Chain(size, [*range(size)], rows[""], [rows[str(i)] for i in range(size)], np.zeros(size))
            view, prefixes = SearchBytes(chain, tokenizer), [record["prefix"] for record in model["records"]]
            masses, exact = np.exp(view.start(prefixes).log_masses()), np.exp(view.next_byte(prefixes))
            naive = np.exp(naive_next_byte(chain, tokenizer, prefixes))
            for i, record in enumerate(model["records"]):
                assert covers(tokenizer, record["prefix"]) == sorted(map(tuple, record["covers"]))
                probs = [np.exp(_log_prob(chain, cover)) for cover in record["covers"]]
                np.testing.assert_allclose(probs, record["cover_probs"], **EXACT)
                np.testing.assert_allclose(masses[i].sum(), record["byte_prob"], **EXACT)
                for byte in record["true_next"]:
                    np.testing.assert_allclose(exact[i, ord(byte)], record["true_next"][byte], **EXACT)
                    if record["naive_token_next"] is not None:
                        truth = record["naive_token_next"][byte]
                        np.testing.assert_allclose(naive[i, ord(byte)], truth, rtol=1e-9, atol=1e-15)


def _log_prob(chain, cover):
    return sum(chain([tuple(cover[:k])])[0][token] for k, token in enumerate(cover))
