"""Byte pair encoding: training, encoding, dropout, superwords, and merges of a batch."""

from __future__ import annotations

import pytest

from jaxlm.tokenize import bpe_dropout
from jaxlm.tokenize.bpe import BpeTokenizer, learn
from jaxlm.tokenize.dynamic import dynamic_merges
from jaxlm.tokenize.merges import bytes_of
from jaxlm.tokenize.pairs import PairCounts
from jaxlm.tokenize.super_bpe import SuperBpeTokenizer, learn_stages
from tests.golden.tokenization.data import files


def test_bpe_training(golden):
    cases = [case for file in files(golden, "bpe_training") for case in file["cases"]]
    assert cases
    for case in cases:
        words = {tuple(word.encode()): count for word, count in case["word_counts"].items()}
        counts = PairCounts(words).counts
        assert [[*pair, counts[pair]] for pair in sorted(counts)] == sorted(case["pair_counts_first"])
        steps = list(learn(words, len(case["merges"]), top=max(map(len, case["top5_each_step"]))))
        tables = bytes_of([(step.left, step.right) for step in steps])
        assert len(steps) == len(case["merges"])
        for i, (step, merge, top) in enumerate(zip(steps, case["merges"], case["top5_each_step"], strict=True)):
            assert (step.left, step.right, step.count) == (merge["left_id"], merge["right_id"], merge["count"])
            assert (merge["step"], merge["new_id"]) == (i, 256 + i)
            assert (tables[step.left], tables[step.right]) == (merge["left"].encode(), merge["right"].encode())
            assert [list(pair) for pair in step.top] == top


def test_bpe_encoding(golden):
    for file in files(golden, "bpe_training"):
        for case in file["cases"]:
            merges = tuple((merge["left_id"], merge["right_id"]) for merge in case["merges"])
            for split, key in (((), "encode_no_pretokenizer"), (("space",), "encode_space_split")):
                tokenizer = BpeTokenizer(merges, split)
                assert case[key]
                for item in case[key]:
                    assert tokenizer.encode(item["text"]).tolist() == item["ids"], (key, item["text"])
                    assert tokenizer.decode(item["ids"]) == item["text"]


def test_bpe_dropout(golden):
    for file in files(golden, "segmentation_variants"):
        assert file["bpe_dropout"]
        for case in file["bpe_dropout"]:
            ids: dict[str, int] = {chr(byte): byte for byte in range(256)}
            merges = []
            for left, right in case["merges"]:
                merges.append((ids[left], ids[right]))
                ids[left + right] = 255 + len(merges)
            table = bytes_of(merges)
            rules = [rule for rule in bpe_dropout.RULES if rule in case]
            assert rules
            for rule in rules:
                exact = bpe_dropout.distribution(merges, case["word"].encode(), case["p"], rule)
                ours = {tuple(table[i].decode() for i in end): share for end, share in exact.items()}
                reference = {tuple(end): share for end, share in case[rule] if share}
                assert ours == pytest.approx(reference, rel=1e-9, abs=1e-9)


def test_superbpe(golden):
    for file in files(golden, "segmentation_variants"):
        assert file["superbpe"]
        for case in file["superbpe"]:
            steps = list(learn_stages(case["sentences"], case["stage1_merges"], len(case["merges"])))
            assert [[step.left, step.right] for step in steps] == [merge[:2] for merge in case["merges"]]
            assert [step.count for step in steps] == [merge[4] for merge in case["merges"]]
            merges = tuple((step.left, step.right) for step in steps)
            table = bytes_of(merges)
            assert all(
                table[a] == left.encode() and table[b] == right.encode() for a, b, left, right, _ in case["merges"]
            )
            tokenizer = SuperBpeTokenizer(merges, case["stage1_merges"])
            for sentence, ids in zip(case["sentences"], case["encoded_first"], strict=False):
                assert tokenizer.encode(sentence).tolist() == ids
            first = BpeTokenizer(merges[: case["stage1_merges"]])
            plain = BpeTokenizer.train(case["sentences"], 256 + len(merges), specials=())
            for ours, key in ((first, "stage1_only"), (tokenizer, "superbpe"), (plain, "plain_bpe_same_size")):
                assert sum(len(ours.encode(text)) for text in case["sentences"]) == case[f"tokens_{key}"], key


def test_dynamic_batch(golden):
    for file in files(golden, "segmentation_variants"):
        assert file["dynamic_batch"]
        for case in file["dynamic_batch"]:
            found = dynamic_merges(case["batch"], len(case["merges"]))
            assert [list(merge) for merge in found.merges] == case["merges"]
            assert found.batch == case["result"]
            for batch, key in ((case["batch"], "tokens_before"), (found.batch, "tokens_after")):
                assert sum(len(word) for text in batch for word in text) == case[key]
