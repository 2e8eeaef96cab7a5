"""Tokenizers and coders, ours beside the libraries at the same work: training, encoding, coding, and the next byte.

The text is the first files of Python's standard library. Byte pair encoding is trained by ours and by tokenizers under
the same splitting rules; what is learned here is encoded by ours (each time with an empty memory of pieces, and once
more with what it remembers), tokenizers and tiktoken, to the same ids; the pieces of a unigram model of sentencepiece
by both. The other methods have no peer: they stand beside byte pair encoding.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.race import Contestant, race  # noqa: E402
from experiments.race import table as race_table  # noqa: E402
from jaxlm.compress import equal_info, range_coder  # noqa: E402
from jaxlm.compress.context_model import PRIME, ContextModel  # noqa: E402
from jaxlm.compress.neural import NeuralModel  # noqa: E402
from jaxlm.core import registry  # noqa: E402
from jaxlm.core.errors import ConfigError  # noqa: E402
from jaxlm.data.text import read  # noqa: E402
from jaxlm.decode.byte_level import byte_view  # noqa: E402
from jaxlm.mixer.attention import Attention  # noqa: E402
from jaxlm.model import language_model  # noqa: E402
from jaxlm.model.spec import Block, Group, ModelSpec  # noqa: E402
from jaxlm.tokenize.base import Tokenizer  # noqa: E402
from jaxlm.tokenize.bpe import BpeTokenizer  # noqa: E402
from jaxlm.tokenize.bpe_files import to_hf  # noqa: E402
from jaxlm.tokenize.tiktoken_file import TiktokenTokenizer  # noqa: E402
from jaxlm.tokenize.unigram import UnigramTokenizer  # noqa: E402

SOURCE, BYTES, VOCABULARY = "stdlib:", 500_000, 4096
TRAINING_ROUNDS = 1  # of all methods: some take ten seconds
METHODS: dict[str, dict[str, Any]] = {
    "bpe": {}, "bpe, gpt2": {"split": ("gpt2",)}, "bpe, unsplit": {"split": ()}, "super_bpe": {}, "unigram": {},
    "word_piece, ratio": {"rule": "ratio"}, "word_piece, count": {"rule": "count"},
    "word_piece, likelihood": {"rule": "likelihood"}, "path_piece": {}, "dictionary": {}, "less_is_better": {},
    "character": {"vocab_size": None},
}  # fmt: skip
LANES, SYMBOLS = 1024, 256  # of the range coder
ALONE = 20_000  # symbols of the coders that take one text
NEURAL_LANES, NEURAL_SYMBOLS, ROOM = 64, 32, 256  # of the coder that a language model drives
SEEN, ROWS = 128, 4  # bytes whose next byte is asked for, and texts of them

Call = Callable[[], Any]


class Work:
    """A contestant that calls a function."""

    def __init__(self, name: str, call: Call):
        self.name, self._call = name, call

    def run(self, steps: int) -> list[Any]:
        return [self._call() for _ in range(steps)]

    def memory(self) -> None:
        return None


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """The races; raises `ConfigError` if contestants that should give the same ids do not."""
    texts = sample(SOURCE, BYTES)
    size, races = sum(map(len, texts)), {}
    missing = [name for name in ("tokenizers", "tiktoken", "sentencepiece") if not importlib.util.find_spec(name)]
    if missing:
        print(f"{', '.join(missing)} not installed (pip install 'jaxlm[tokenize]'): without")
    races["bpe training"], found = raced(bpe_training(texts, missing), rounds, steps, size)
    bpe = found["jaxlm"][0]
    races["bpe encoding"], found = raced(bpe_encoding(bpe, texts, missing), rounds, steps, size)
    same_ids(found)
    if "sentencepiece" not in missing:
        races["unigram encoding"], found = raced(unigram_encoding(texts), rounds, steps, size)
        for name, entry in races["unigram encoding"].items():
            entry["tokens"] = sum(map(len, found[name][0]))
    races["training"], found = raced(training(texts), TRAINING_ROUNDS, 1, size)
    trained = {name: made[0] for name, made in found.items()}
    races["encoding"], found = raced(encoding(trained, texts), rounds, steps, size)
    for name, entry in races["encoding"].items():
        entry["tokens"] = sum(map(len, found[name][0]))
    races["coding side by side"], _ = raced(coding_together(), rounds, steps, LANES * SYMBOLS)
    races["coding one text"], _ = raced(coding_alone(texts), rounds, steps, ALONE)
    races["coding by a model"], _ = raced(coding_by_a_model(), rounds, steps, NEURAL_LANES * NEURAL_SYMBOLS)
    races["next byte"], _ = raced(next_byte(trained["bpe"], texts), rounds, steps, ROWS * SEEN)
    return {
        "source": SOURCE,
        "sha256": hashlib.sha256(b"\n".join(texts)).hexdigest(),
        "bytes": size,
        "vocabulary": VOCABULARY,
        "rounds": rounds,
        "steps_per_round": steps,
        "rounds_of_training": TRAINING_ROUNDS,
        "threads": 1,
        "races": races,
    }


def sample(source: str, size: int) -> list[bytes]:
    """The first documents of a source, cut at ``size`` bytes."""
    texts: list[bytes] = []
    for document in read(source).documents:
        texts.append(document.text[: size - sum(map(len, texts))])
        if sum(map(len, texts)) == size:
            break
    return texts


def raced(contestants: Sequence[Contestant], rounds: int, steps: int, size: int) -> tuple[dict, dict[str, list]]:
    """A race whose entries say how many of ``size`` bytes a CPU-second takes."""
    entries, found = race(contestants, rounds, steps)
    for entry in entries.values():
        entry["bytes_per_cpu_second"] = size / entry["cpu_seconds"]
    return entries, found


def same_ids(found: dict[str, list[Any]]) -> None:
    """Raises `ConfigError` for a contestant that does not give the ids of the first."""
    (first, ids), *others = ((name, results[0]) for name, results in found.items())
    for name, theirs in others:
        for number, (one, other) in enumerate(zip(ids, theirs, strict=True)):
            if list(one) != list(other):
                raise ConfigError(f"{name} does not give the ids of {first} for text {number}")


def bpe_training(texts: list[bytes], missing: Sequence[str]) -> list[Contestant]:
    """Ours and that of tokenizers, split as GPT-2 does."""
    strings = [text.decode("utf-8", "replace") for text in texts]

    def theirs() -> Any:
        from tokenizers import Tokenizer as Library
        from tokenizers import models, pre_tokenizers, trainers

        library = Library(models.BPE())
        pre: Any = library
        pre.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
        library.train_from_iterator(strings, trainer)
        return library

    ours = Work("jaxlm", lambda: BpeTokenizer.train(strings, VOCABULARY, split=("gpt2",), specials=()))
    return [ours, *([] if "tokenizers" in missing else [Work("tokenizers", theirs)])]


def bpe_encoding(tokenizer: BpeTokenizer, texts: list[bytes], missing: Sequence[str]) -> list[Contestant]:
    """The same merges in all libraries; each text by itself."""
    strings = [text.decode("utf-8", "replace") for text in texts]
    contestants: list[Contestant] = [
        Work("jaxlm", lambda: _fresh(tokenizer, strings)),
        Work("jaxlm, again", lambda: [tokenizer.encode(text) for text in strings]),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "tokenizers" not in missing:
            from tokenizers import Tokenizer as Library

            to_hf(tokenizer, folder / "hf")
            library = Library.from_file(str(folder / "hf" / "tokenizer.json"))
            encode = lambda: [library.encode(text, add_special_tokens=False).ids for text in strings]
            contestants.append(Work("tokenizers", encode))
        if "tiktoken" not in missing:
            path = folder / "ranks.tiktoken"
            ranks = (f"{base64.b64encode(piece).decode()} {i}\n" for i, piece in enumerate(tokenizer.token_bytes))
            path.write_text("".join(ranks))
            peer = TiktokenTokenizer(str(path))
            peer.encode("")  # reads the file while it is there
            contestants.append(Work("tiktoken", lambda: [peer.encode(text) for text in strings]))
    return contestants


def unigram_encoding(texts: list[bytes]) -> list[Contestant]:
    """The pieces and scores of a model of sentencepiece; line by line, as it is made for. Ids are of either kind."""
    import sentencepiece

    lines = [line for text in texts for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=VOCABULARY, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    library: Any = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    normal = [i for i in range(library.get_piece_size()) if not (library.is_control(i) or library.is_unknown(i))]
    scores = {
        library.id_to_piece(i).replace("\u2581", " "): library.get_score(i) for i in normal if not library.is_byte(i)
    }
    ours = UnigramTokenizer.from_scores(scores, specials=())
    return [
        Work("jaxlm", lambda: [ours.encode(line) for line in lines]),
        Work("sentencepiece", lambda: [library.encode(line) for line in lines]),
    ]


def training(texts: list[bytes]) -> list[Contestant]:
    """Every method of ours."""
    made = lambda name, settings: registry.get("tokenizer", name).train(texts, **{"vocab_size": VOCABULARY, **settings})
    return [
        Work(title, lambda title=title, settings=settings: made(title.partition(",")[0], settings))
        for title, settings in METHODS.items()
    ]


def encoding(trained: dict[str, Tokenizer], texts: list[bytes]) -> list[Contestant]:
    return [Work(title, lambda tokenizer=tokenizer: _fresh(tokenizer, texts)) for title, tokenizer in trained.items()]


def _fresh(tokenizer: Tokenizer, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """The ids of texts whose pieces the tokenizer does not remember."""
    vars(tokenizer).pop("_cache", None)
    return [tokenizer.encode(text) for text in texts]


def coding_together() -> list[Contestant]:
    """The range coder on symbols of a Zipf distribution; constriction on one long text, where it is installed."""
    frequencies = range_coder.quantise(1 / np.arange(1, 257))
    p = frequencies / frequencies.sum()
    texts = np.random.default_rng(0).choice(256, (LANES, SYMBOLS), p=p).astype(np.int32)
    codes = range_coder.encode(list(texts), frequencies)
    contestants: list[Contestant] = [
        Work("encode", lambda: range_coder.encode(list(texts), frequencies)),
        Work("decode", lambda: range_coder.decode(codes, [SYMBOLS] * LANES, frequencies)),
    ]
    if importlib.util.find_spec("constriction"):
        stream = importlib.import_module("constriction").stream
        model = stream.model.Categorical(p.astype(np.float32), perfect=False)

        def theirs() -> Any:
            encoder = stream.queue.RangeEncoder()
            encoder.encode(texts.reshape(-1), model)
            return encoder.get_compressed()

        packed = theirs()
        contestants += [
            Work("constriction, encode", theirs),
            Work("constriction, decode", lambda: stream.queue.RangeDecoder(packed).decode(model, texts.size)),
        ]
    return contestants


def coding_alone(texts: list[bytes]) -> list[Contestant]:
    """A text under counts: the range coder, which is made for many, and equal-info windows."""
    model, text = ContextModel.train(texts), texts[-1][:ALONE].ljust(ALONE)
    cells = equal_info.encode_self_delimiting(model, text)
    contestants: list[Contestant] = [
        Work("range coder", lambda: range_coder.encode([text], model.batch, PRIME)),
        Work("windows", lambda: equal_info.encode_windows(model, text)),
        Work("self-delimiting", lambda: equal_info.encode_self_delimiting(model, text)),
    ]
    if cells is not None:
        contestants.append(Work("self-delimiting, decode", lambda: equal_info.decode_self_delimiting(model, cells)))
    return contestants


def coding_by_a_model() -> list[Contestant]:
    """The range coder under a small language model of bytes."""
    model = _small(257)
    coder = NeuralModel(model, language_model.init(model, jax.random.key(0)), [256], room=ROOM)
    texts = list(np.random.default_rng(0).integers(0, 256, (NEURAL_LANES, NEURAL_SYMBOLS)))
    codes, lengths = range_coder.encode(texts, coder.batch), [NEURAL_SYMBOLS] * NEURAL_LANES
    return [
        Work("encode", lambda: range_coder.encode(texts, coder.batch)),
        Work("decode", lambda: range_coder.decode(codes, lengths, coder.batch)),
    ]


def _small(vocab_size: int) -> language_model.LanguageModel:
    """Two layers of width 128."""
    return language_model.LanguageModel(ModelSpec(vocab_size, 128, (Group((Block(mixer=Attention(heads=4)),), 2),)))


def next_byte(tokenizer: Tokenizer, texts: list[bytes]) -> list[Contestant]:
    """Exact bits of every byte under a small model of tokens: in jit on a tree of texts, and by the search."""
    model = _small(tokenizer.vocab_size)
    params = language_model.init(model, jax.random.key(0))
    whole = b"".join(texts)
    rows = [whole[i * 10_000 : i * 10_000 + SEEN] for i in range(ROWS)]
    view = lambda implementation: byte_view(model, params, tokenizer, ends=(), implementation=implementation)
    score = lambda view: view.score(rows, [b"\n"] * len(rows))
    tree, search = view("tree"), view("search")
    return [Work("tree", lambda: score(tree)), Work("search", lambda: score(search))]


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [
        f"{results['bytes'] / 1e6:g} MB of {results['source']}, {results['vocabulary']} ids, one thread; medians of "
        f"{results['rounds']} rounds ({results['rounds_of_training']} of training all methods)"
    ]
    for title, entries in results["races"].items():
        lines += race_table(
            title,
            entries,
            {
                "CPU s": lambda e: f"{e['cpu_seconds']:.3g}",
                "kB/CPU s": lambda e: (
                    f"{e['bytes_per_cpu_second'] / 1e3:,.{0 if e['bytes_per_cpu_second'] > 1e5 else 1}f}"
                ),
                "tokens": lambda e: f"{e['tokens']:,}" if "tokens" in e else "",
                "this/first CPU": lambda e: f"{1 / e['ours_over_this_cpu']:.2f}",
            },
        )
    return "\n".join(lines) + "\n"
