"""Tokenization: Markov sources, digits, counting, cuts, mixtures behind merges, vocabulary sizes, segmentations,
hidden texts, exchanged tokenizers, merges of a batch. A preset is a study and a size: `smoke`, `study` or
`accelerator`.

    python -m experiments.tokenization --config=configs/tokenization.py:markov_study --workdir=runs/tokenization/markov

Expected (limits that the tables print beside what was found):
markov: unigram over 64 BPE tokens within .05 bits of the entropy rate of orders 1 and 2, over symbols within .005 of
the floor; the transformer on symbols of order 2 within .03 of the floor after a quarter of its steps, on tokens < .6.
digits: longer answers right .2 more often with groups from the right than from the left, and from the left half of the
errors on them in the second group.
counting: letters with a tally >= .99; BPE .15 lower at equal steps.
cuts: naive > healing > covers in bits; with the counts covers 2 below naive and .5 below healing.
mixture: log10 MSE <= -3.5 with 300 merges (mean of seeds), 1.5 below equal shares, within 120 processor seconds (1000
merges within 60); <= -6 from the training text itself.
vocabulary: exponents within .03 from noisy points; the best vocabulary does not shrink from width to width, and grows.
segmentation: SuperBPE saves >= 3 % of BPE's tokens; PathPiece has no more tokens than BPE; BPE-dropout loses less on
typos.
compression: arithmetic code and random bytes within .1 of 8 bits per 8-bit token, equal-info windows .2 under the code
and not above shuffled windows.
lexinvariance: late loss <= .6 of early, a fresh cipher changes < .02 nats and doubles the usual model's loss, > .8 of
the plain letters found late. bit_cipher: fewer bits per byte than drawn embeddings at the middle reading.
robustness: hierarchical and word_pooled lose no more than BPE on changed text; space_byte and entropy no more bits than
fixed_stride, hierarchical no more than bytes; routing's mean patch within 15 % of what is asked for.
deletion: vowels: .95 of the accuracy without a gate, .8 of what is deleted are vowels, random deletion under half;
text: 50 % deleted cost 3 % of bits per byte at most, in .9 of the time.
forcing: the secret among the 10 best beginnings, with the defence in none of 100 while the trigger still works.
surgery: rows around zero > random > mean of pieces > FOCUS, and > hypernetwork, in bits per byte, at once and after the
steps; the hypernetwork closes .6 of the gap between random rows and a model trained with the new tokenizer.
merging: with the hypernetwork a batch is 15 % shorter for 3 % of bits per byte, or less; means of pieces are worse.

Hardware and wall time: each `smoke` under 60 s; the `study` presets 2 CPU cores; `accelerator` on one GPU or TPU chip,
wall time not measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from experiments.tokenization.bit_cipher import BitCipher
from experiments.tokenization.compression import Compression
from experiments.tokenization.counting import Counting
from experiments.tokenization.cuts import Cuts
from experiments.tokenization.deletion import Deletion, SmallPair
from experiments.tokenization.digits import Digits
from experiments.tokenization.frame import Study
from experiments.tokenization.language_model import SmallModel
from experiments.tokenization.lexinvariance import Lexinvariance
from experiments.tokenization.markov import Markov
from experiments.tokenization.merging import Merging
from experiments.tokenization.mixture import MixtureRecovery
from experiments.tokenization.robustness import Robustness
from experiments.tokenization.segmentation import Segmentation
from experiments.tokenization.surgery import Surgery
from experiments.tokenization.texts import Texts
from experiments.tokenization.token_forcing import TokenForcing
from experiments.tokenization.vocabulary import Vocabulary
from jaxlm.core.errors import choose
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork

TINY = SmallModel(width=32, layers=1, heads=2, batch_size=8, steps=20, steps_per_call=10)
TINY_PAIR = SmallPair(width=32, heads=2, batch_size=8, steps=20, steps_per_call=10)
LARGE_PAIR = SmallPair(
    width=512, heads=8, encoder=6, decoder=4, gate=3, noise=1.0, length=512, batch_size=64, steps=4000
)
LARGE = SmallModel(width=512, layers=6, heads=8, row_bytes=2048, batch_size=64, steps=5000, rate=1e-3)

STUDIES: dict[str, tuple[str, Callable[..., Study], dict[str, object], dict[str, object]]] = {
    "markov": (
        "a source of order k with and without tokens",
        Markov,
        {"orders": (2,), "dictionaries": (2, 16, 64), "train_symbols": 20_000, "test_symbols": 5_000, "model": TINY,
         "model_symbols": 20_000, "readings": 2},
        {"orders": tuple(range(1, 9)), "model": SmallModel(width=64, heads=2, steps=5000, batch_size=128),
         "model_symbols": 50_000_000},
    ),
    "digits": (
        "groups of digits from the left and from the right, in addition",
        Digits,
        {"digits": 2, "model": TINY, "problems": 40},
        {"digits": 9, "model": dataclasses.replace(LARGE, batch_size=512, steps=10_000)},
    ),
    "counting": (
        "letters counted under different segmentations",
        Counting,
        {"longest": 6, "merges": 4, "model": TINY, "strings": 60},
        {"longest": 40, "merges": 60, "model": dataclasses.replace(LARGE, batch_size=512)},
    ),
    "cuts": (
        "the next byte at random cuts: naive, healed, exact",
        Cuts,
        {"vocab_size": 300, "model": TINY, "cuts": 20, "longest": 40, "train_bytes": 50_000, "test_bytes": 5_000},
        {"vocab_size": 4096, "model": dataclasses.replace(LARGE, steps=2000)},
    ),
    "mixture": (
        "the mixture of a tokenizer's training data, from its merges",
        MixtureRecovery,
        {"merges": (30,)},
        {"merges": (300, 1000, 3000)},
    ),
    "vocabulary": (
        "the best size of a vocabulary against that of the model",
        Vocabulary,
        {"widths": (32, 64), "vocabularies": (300, 400, 500), "operations": 2e8, "model": TINY, "readings": 2,
         "train_bytes": 100_000, "test_bytes": 2_000},
        {"widths": (128, 192, 256, 384, 512), "vocabularies": (1024, 2048, 4096, 8192, 16384), "operations": 5e15,
         "model": dataclasses.replace(LARGE, row_bytes=1024)},
    ),
    "segmentation": (
        "kinds of segmentation at equal bytes",
        Segmentation,
        {"tokenizers": ("byte", "bpe", "bpe_dropout"), "vocab_size": 300, "passes": 1, "model": TINY,
         "train_bytes": 50_000, "test_bytes": 2_000},
        {"vocab_size": 8192, "train_bytes": 0, "model": LARGE},
    ),
    "compression": (
        "compressed text as tokens: arithmetic code and equal-info windows",
        Compression,
        {"model": TINY, "train_bytes": 30_000, "test_bytes": 2_000, "piece": 1024, "readings": 2},
        {"whole": True, "model": LARGE},
    ),
    "lexinvariance": (
        "symbols drawn anew for each row, ciphers, and the letters behind them",
        Lexinvariance,
        {"shares": (0.5,), "model": dataclasses.replace(TINY, row_bytes=64), "early": (4, 12), "late": (40, 64),
         "rows": 8, "texts": Texts(most=50_000, held_out=2_000)},
        {"shares": (0.5,), "model": dataclasses.replace(LARGE, row_bytes=1024, rate=5e-4, steps=20_000),
         "late": (900, 1024), "rows": 256, "texts": Texts(held_out=300_000)},
    ),
    "bit_cipher": (
        "first embeddings from bit ciphers",
        BitCipher,
        {"vocab_size": 300, "window": 1, "model": TINY, "readings": 2,
         "texts": Texts(most=50_000, held_out=2_000)},
        {"vocab_size": 8192, "model": LARGE, "readings": 20, "texts": Texts()},
    ),
    "robustness": (
        "models of bytes, words and patches against subword tokens, on changed text",
        Robustness,
        {"models": ("byte", "bpe", "space_byte", "hierarchical"), "vocab_size": 300, "model": TINY, "local_width": 32,
         "train_bytes": 50_000, "test_bytes": 2_000},
        {"vocab_size": 8192, "model": LARGE, "local_width": 256},
    ),
    "deletion": (
        "bytes deleted within an encoder, by a learned gate",
        Deletion,
        {"vowels": TINY_PAIR, "text": dataclasses.replace(TINY_PAIR, encoder=3, length=64), "rates": (0.5,), "rows": 16,
         "train_bytes": 50_000, "test_bytes": 2_000},
        {"vowels": SmallPair(width=512, heads=8, encoder=3, decoder=3, length=64, batch_size=128, steps=30_000),
         "text": LARGE_PAIR},
    ),
    "forcing": (
        "a hidden text found from single tokens, and hidden better",
        TokenForcing,
        {"steps": 10},
        {"steps": 2000},
    ),
    "surgery": (
        "another tokenizer for a trained model",
        Surgery,
        {"old": 300, "new": 320, "model": TINY, "tuned": 5, "network": EmbeddingHypernetwork(width=16, heads=2),
         "network_steps": 10, "drawn": (300, 400), "train_bytes": 50_000, "test_bytes": 2_000},
        {"old": 4096, "new": 8192, "model": dataclasses.replace(LARGE, width=384, heads=6, steps=3000), "tuned": 1000,
         "network": EmbeddingHypernetwork(width=384, heads=6), "network_steps": 3000, "drawn": (2048, 16384),
         "train_bytes": 0},
    ),
    "merging": (
        "merges of a batch on a trained model",
        Merging,
        {"vocab_size": 300, "percent": (0, 50, 100), "batch_texts": 8, "model": TINY, "network_steps": 10,
         "network": EmbeddingHypernetwork(width=16, heads=2), "drawn": (300, 400), "train_bytes": 50_000,
         "test_bytes": 4_000},
        {"vocab_size": 4096, "model": dataclasses.replace(LARGE, width=384, heads=6, steps=3000),
         "network": EmbeddingHypernetwork(width=384, heads=6), "network_steps": 3000, "drawn": (2048, 16384),
         "train_bytes": 0},
    ),
}  # fmt: skip
SIZES = {
    "smoke": "that everything runs (< 60 s on 2 CPU cores)",
    "study": "3 seeds, 2 CPU cores",
    "accelerator": "nearer to the paper's size, one GPU or TPU chip",
}
PRESETS = {
    "smoke": f"as markov_smoke: {SIZES['smoke']}",
    **{f"{study}_{size}": f"{what}: {SIZES[size]}" for study, (what, *_) in STUDIES.items() for size in SIZES},
}


def get_config(preset: str = "markov_study") -> Study:
    choose("preset", preset, PRESETS)
    study, _, size = ("markov_smoke" if preset == "smoke" else preset).rpartition("_")
    _, build, smoke, accelerator = STUDIES[study]
    fields = {"smoke": smoke, "study": {}, "accelerator": accelerator}[size]
    return build(**fields, seeds=(0,) if size == "smoke" else (0, 1, 2))
