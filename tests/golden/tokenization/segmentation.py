"""Fewest tokens, all of them and the one that is chosen, and the longest match."""

from __future__ import annotations

import numpy as np

from jaxlm.tokenize.dictionary import DictionaryTokenizer
from jaxlm.tokenize.path_piece import PathPieceTokenizer, fewest
from jaxlm.tokenize.trie import Trie
from tests.golden.tokenization.data import files


def test_pathpiece(golden):
    for file in files(golden, "segmentation_variants"):
        assert file["pathpiece"]
        for case in file["pathpiece"]:
            vocabulary, text = case["vocab"], case["text"].encode()
            trie = Trie((piece.encode(), i) for i, piece in enumerate(vocabulary))
            found = [vocabulary[i] for i in fewest(trie, text)]
            assert found == case["longest_last_token_tiebreak"] and len(found) == case["min_tokens"]
            rng = np.random.default_rng(0)
            drawn = {tuple(vocabulary[i] for i in fewest(trie, text, rng)) for _ in range(200)}
            assert drawn == {tuple(way) for way in case["all_minimal"]}

            ways = [1] + [0] * len(text)  # how many segmentations there are of each prefix
            for start in range(len(text)):
                for _, end in trie.matches(text, start):
                    ways[end] += ways[start]
            assert ways[-1] == case["number_of_segmentations"]


def test_pathpiece_tokenizer_and_greedy(golden):
    for file in files(golden, "segmentation_variants"):
        for case in file["pathpiece"]:
            if not {byte for byte in case["text"].encode()} <= {
                ord(piece) for piece in case["vocab"] if len(piece) == 1
            }:
                continue  # here every byte is a token
            pieces = tuple(piece for piece in case["vocab"] if len(piece.encode()) > 1)
            path, greedy = PathPieceTokenizer(pieces, split=()), DictionaryTokenizer(pieces)
            spelt = lambda tokenizer: [tokenizer.token_bytes[i].decode() for i in tokenizer.encode(case["text"])]  # noqa: B023
            assert spelt(path) == case["longest_last_token_tiebreak"]
            assert spelt(greedy) == case["greedy"]
