"""Files of byte-level BPE tokenizers: tokenizer.json of Hugging Face, vocab.json with merges.txt, merges.txt alone.

A file numbers tokens as it likes and prints bytes in GPT-2's alphabet, so reading gives a `BpeTokenizer` with our ids
and the map from them to the file's. What is read encodes as the library tokenizers does, or is refused:

    pre-tokenizers          ByteLevel, Digits, and Split that isolates are splitting rules
    two merges, one token   (ab + c and a + bc) What is merged inside a token does not depend on what stands around it,
                            so only one of the two ever fires; the other is left out and noted
    merges of tokens        that nothing makes: never fire; left out and noted
    ignore_merges           (whole pieces are looked up first) changes nothing if merging makes every token

Refused are normalizers, dropout, two tokens of one id, marks of word parts, bytes without a token, tokens of text that
were added, and pre-tokenizers of other kinds. As everywhere here, text never makes a special token.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import BOS, EOS, PAD, Tokenizer, read_json
from jaxlm.tokenize.bpe import BpeTokenizer, unreachable
from jaxlm.tokenize.byte_alphabet import alphabet, printed
from jaxlm.tokenize.hf import HfTokenizer, check_ids
from jaxlm.tokenize.pretokens import GPT2

FILE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_ROLES = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
_NAMED = 5  # how many tokens a note names


class Imported(NamedTuple):
    """What `from_hf` gives.

    Attributes:
      tokenizer: with our ids.
      ids: the file's id of each of ours, int64 [vocab_size]; ``ids[tokenizer.encode(text)]`` is for the checkpoint.
      notes: what of the file is not in the tokenizer, because no text ever uses it; one line each.
    """

    tokenizer: BpeTokenizer
    ids: NDArray[np.int64]
    notes: tuple[str, ...]


def from_hf(path: str | os.PathLike[str]) -> Imported:
    """The byte-level BPE tokenizer of a checkpoint folder, a tokenizer.json, or a merges.txt.

    A merges.txt alone is numbered as GPT-2 numbers: bytes in the order of its alphabet, then the merges. Special tokens
    keep their names and the order of their ids. Raises `ConfigError` for a file that is damaged or not representable.
    """
    path = Path(path)
    if path.is_dir():
        known = [name for name in (FILE, MERGES) if (path / name).is_file()]
        require(known, f"{path}: has neither {FILE} nor {MERGES}")
        path = path / known[0]
    if path.suffix == ".json":
        return _of_library(read_json(path), str(path))
    merges = merges_of_text(path)
    vocabulary = path.parent / VOCABULARY
    if vocabulary.is_file():
        ids = read_json(vocabulary)
        require(_is_vocabulary(ids), f"{vocabulary}: is not a map from tokens to ids")
        return _built(ids, merges, ("gpt2",), {}, str(path))
    tokens = dict.fromkeys([*alphabet(), *("".join(pair) for pair in merges)])
    return _built({token: i for i, token in enumerate(tokens)}, merges, ("gpt2",), {}, str(path))


def notes_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What of a byte pair encoding no text ever uses, one line each; they do no harm but to the vocabulary.

    Of a `BpeTokenizer`, or an `HfTokenizer` whose file `from_hf` reads; nothing of others, which are not looked into.
    """
    found: Imported | None = None
    if isinstance(tokenizer, HfTokenizer):
        try:
            found = from_hf(tokenizer.path)
        except ConfigError:
            return ()
    own = found.tokenizer if found else tokenizer
    lost = unreachable(own) if isinstance(own, BpeTokenizer) else []
    notes = found.notes if found else ()
    if lost:
        where = f"{tokenizer.path}: " if isinstance(tokenizer, HfTokenizer) else ""
        shown_ones = ", ".join(repr(one.piece) for one in lost[:_NAMED])
        more = ", ..." if len(lost) > _NAMED else ""
        notes = (*notes, f"{where}{len(lost)} tokens that encoding never makes: {shown_ones}{more}")
    return notes


def to_hf(tokenizer: BpeTokenizer, folder: str | os.PathLike[str], *, adds_bos: bool = False) -> None:
    """Writes tokenizer.json and tokenizer_config.json with our ids, for the libraries tokenizers and transformers.

    They encode as we do, but that they find special tokens in text, and begin it with that of beginnings if
    ``adds_bos``. Raises `ConfigError` if two tokens spell the same bytes or a special token spells another one: a
    vocabulary file has one id for each spelling.
    """
    spelled: dict[str, int] = {}
    for i in tokenizer.symbol_ids.tolist():
        piece = tokenizer.token_bytes[i]
        text = printed(piece)
        first = spelled.setdefault(text, i)
        require(first == i, f"tokens {first} and {i} both spell {piece!r}; {FILE} has one id for a spelling")
    for name in tokenizer.special_ids:
        require(
            name not in spelled, f"special token {name!r} and token {spelled.get(name)} are spelled alike in {FILE}"
        )
    spelling = list(spelled)
    if tokenizer.specials_after >= 0:  # the library numbers added tokens behind the vocabulary they are not in
        spelled = dict(sorted((spelled | tokenizer.special_ids).items(), key=lambda item: item[1]))
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **flags, "special": True} for name, i in tokenizer.special_ids.items()
        ],
        "normalizer": None,
        "pre_tokenizer": _written(tokenizer.split),
        "post_processor": _begins_with(tokenizer) if adds_bos else None,
        "decoder": _byte_level(False),
        "model": model | {"vocab": spelled, "merges": [[spelling[a], spelling[b]] for a, b in tokenizer.merges]},
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {key: name for key, name in _ROLES.items() if name in tokenizer.special_ids}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in ((FILE, content), ("tokenizer_config.json", config)):
        (folder / file).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# Reading.


def _of_library(content: Mapping[str, Any], where: str) -> Imported:
    model: Any = content.get("model")
    require(isinstance(model, dict), f"{where}: has no model")
    kind = model.get("type", "BPE" if "merges" in model else "Unigram")
    require(kind == "BPE", f"{where}: its model is {shown(kind)}, not BPE")
    require(
        content.get("normalizer") is None, f"{where}: its normalizer ({_kind(content.get('normalizer'))}) changes text"
    )
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        value = model.get(setting)
        require(not value, f"{where}: its model has {setting} {shown(value)}, which is not representable here")
    specials: dict[str, int] = {}
    vocabulary = model.get("vocab")
    require(_is_vocabulary(vocabulary), f"{where}: its model's vocab is not a map from tokens to ids")
    added = content.get("added_tokens")
    require(added is None or isinstance(added, list), f"{where}: added_tokens is not a list")
    for token in added or []:
        named = isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
        require(named, f"{where}: an added token is {shown(token)}, without content and id")
        text = token["content"]
        require(token.get("special"), f"{where}: {shown(text)} was added as text, which comes before merging")
        specials[text] = token["id"]
    merges = merges_of_json(model.get("merges"), where)
    made = _built(vocabulary, merges, _rules(content.get("pre_tokenizer"), where), specials, where)
    if model.get("ignore_merges"):
        spellings = {*_spellings(made.tokenizer), *specials}
        unmade = [token for token in vocabulary if token not in spellings]
        unmade += [printed(lost.piece) for lost in unreachable(made.tokenizer) if lost.reason != "split"]
        require(not unmade, f"{where}: by ignore_merges {shown(unmade[:1])} is a token, but merging does not make it")
    return made


def _built(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    rules: tuple[str, ...],
    specials: Mapping[str, int],
    where: str,
) -> Imported:
    """A tokenizer of spelled merges."""
    check_ids({**vocabulary, **specials}, where)
    ranks: dict[tuple[str, str], int] = {}
    makers: dict[str, list[int]] = {}
    for i, pair in enumerate(merges):
        whole = "".join(pair)
        for token in (*pair, whole):
            require(
                token in vocabulary, f"{where}: merge {i} ({' '.join(pair)}) is of {token!r}, not in the vocabulary"
            )
            if not all(character in alphabet() for character in token):
                raise ConfigError(f"{where}: merge {i} ({' '.join(pair)}) is not byte-level: {token!r}")
        first = ranks.setdefault(pair, i)
        require(first == i, f"{where}: merge {i} ({' '.join(pair)}) is merge {first} again")
        makers.setdefault(whole, []).append(i)
    missing = [byte for character, byte in alphabet().items() if character not in vocabulary]
    require(not missing, f"{where}: no token for byte 0x{missing[0] if missing else 0:02X}; byte-level BPE has all 256")

    ids = dict(alphabet())
    kept: list[tuple[int, int]] = []
    second, never = [], []
    for i, (left, right) in enumerate(merges):
        whole = left + right
        if len(makers[whole]) > 1 and _last_merge(whole, ranks) != i:
            second.append(f"{left} {right}")
        elif left in ids and right in ids:
            ids[whole] = 256 + len(kept)
            kept.append((ids[left], ids[right]))
        else:
            part = left if left not in ids else right
            later = _last_merge(part, ranks)
            require(
                later is None, f"{where}: merge {i} ({left} {right}) is of {part!r}, which merge {later} makes later"
            )
            never.append(f"{left} {right}")
    names = sorted(specials, key=lambda name: specials[name])
    tokenizer = BpeTokenizer(tuple(kept), rules, tuple(names))
    unmade = [token for token in vocabulary if token not in ids and token not in specials]
    notes = [
        f"{where}: {len(found)} {what}: {', '.join(found[:_NAMED])}{', ...' if len(found) > _NAMED else ''}"
        for found, what in (
            (second, "merges that spell another merge's token and never fire"),
            (never, "merges of tokens that nothing makes"),
            (unmade, "tokens that nothing makes"),
        )
        if found
    ]
    numbers = [vocabulary[token] for token in _spellings(tokenizer)] + [specials[name] for name in names]
    return Imported(tokenizer, np.array(numbers, np.int64), tuple(notes))


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> int | None:
    """The merge by which the bytes of a token become that token, if they do."""
    parts, last = list(token), None
    while len(parts) > 1:
        found = [(ranks[pair], place) for place, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]  # noqa: B905
        if not found:
            return None
        last, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return last


def _spellings(tokenizer: BpeTokenizer) -> list[str]:
    return [printed(tokenizer.token_bytes[i]) for i in tokenizer.symbol_ids.tolist()]


def _is_vocabulary(value: Any) -> bool:
    return isinstance(value, dict) and all(type(i) is int and i >= 0 for i in value.values())


def merges_of_json(merges: Any, where: str) -> list[tuple[str, str]]:
    """The merges of a model in tokenizer.json, written as pairs or with a space. Raises `ConfigError` for others."""
    require(isinstance(merges, list), f"{where}: its model's merges are not a list")
    pairs = []
    for i, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        fits = isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) and part for part in parts)
        require(fits, f"{where}: merge {i} is {shown(merge)}, not two tokens")
        pairs.append((parts[0], parts[1]))
    return pairs


def merges_of_text(path: Path) -> list[tuple[str, str]]:
    """The merges of a merges.txt, two tokens a line. Raises `ConfigError`, with the line, for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}") from None
    start = 1 if lines[0].startswith("#version") else 0
    pairs = []
    for number, line in enumerate(lines[start:], start + 1):
        parts = line.removesuffix("\r").split(" ")
        if parts != [""]:
            require(len(parts) == 2 and all(parts), f"{path}: line {number} is {shown(line)}, not two tokens")
            pairs.append((parts[0], parts[1]))
    return pairs


# Splitting rules.


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _step(rule: str) -> dict[str, Any]:
    """A splitting rule as a pre-tokenizer."""
    groups = re.fullmatch("digits_(l2r|r2l)_([0-9]+)", "digits_l2r_1" if rule == "digits" else rule)
    if rule == "space":
        return _split({"String": " "}, "MergedWithNext")
    if rule == "lines":
        return _split({"String": "\n"}, "MergedWithPrevious")
    if rule == "whitespace":
        return _split({"Regex": "[ \\t\\n\\r\\x0b\\x0c]+"}, "Isolated")
    if rule == "gpt2":
        return _split({"Regex": GPT2}, "Isolated")
    if groups and groups[1] == "l2r":
        return _split({"Regex": rf"[0-9]{{1,{groups[2]}}}|\p{{Nd}}"}, "Isolated")
    if groups:
        size = groups[2]
        return _split({"Regex": rf"[0-9]{{1,{size}}}(?=([0-9]{{{size}}})*(?![0-9]))|\p{{Nd}}"}, "Isolated")
    return _split({"Regex": rule.removeprefix("regex:")}, "Isolated")


def _begins_with(tokenizer: BpeTokenizer) -> dict[str, Any]:
    """The post-processor that puts the token of beginnings before a text."""
    bos = {"id": BOS, "type_id": 0}
    one = [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}]
    two = [*one, {"SpecialToken": {**bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    known = {BOS: {"id": BOS, "ids": [tokenizer.special(BOS)], "tokens": [BOS]}}
    return {"type": "TemplateProcessing", "single": one, "pair": two, "special_tokens": known}


def _written(rules: Sequence[str]) -> dict[str, Any]:
    if tuple(rules) == ("gpt2",):
        return _byte_level(True)
    return {"type": "Sequence", "pretokenizers": [*map(_step, rules), _byte_level(False)]}


def _rules(settings: Any, where: str) -> tuple[str, ...]:
    """The splitting rules of a pre-tokenizer. Raises `ConfigError` naming the step that is none."""
    steps = settings.get("pretokenizers") if _kind(settings) == "Sequence" else [settings]
    require(isinstance(steps, list), f"{where}: its pre-tokenizer's steps are not a list")
    kinds = [_kind(step) for step in steps]
    require(
        kinds.count("ByteLevel") == 1 and kinds[-1] == "ByteLevel",
        f"{where}: its pre-tokenizer is {', '.join(kinds) or 'empty'}; byte-level BPE has ByteLevel, as the last step",
    )
    rules = [_rule(step, where) for step in steps[:-1]]
    prefix = steps[-1].get("add_prefix_space", True)
    require(not prefix, f"{where}: its pre-tokenizer has add_prefix_space, which is not representable here")
    return tuple(rules) if steps[-1].get("use_regex", True) is False else (*rules, "gpt2")


def _rule(step: Any, where: str) -> str:
    kind = _kind(step)
    if kind == "Digits":
        return r"regex:\p{N}" if step.get("individual_digits") else r"regex:\p{N}+"
    require(kind == "Split", f"{where}: its pre-tokenizer has {kind}; Split, Digits and ByteLevel are representable")
    pattern, behavior = step.get("pattern"), step.get("behavior")
    named = isinstance(pattern, dict) and len(pattern) == 1 and isinstance(next(iter(pattern.values())), str)
    require(named, f"{where}: its pre-tokenizer splits by {shown(pattern)}, not by a String or Regex")
    ours = {"type": kind, "pattern": pattern, "behavior": behavior, "invert": bool(step.get("invert"))}
    sizes = re.findall(r"\[0-9\]\{1,([0-9]+)\}", pattern.get("Regex", ""))
    groups = [f"digits_{direction}_{size}" for size in sizes for direction in ("l2r", "r2l")]
    for rule in ("space", "lines", "whitespace", "gpt2", "digits", *groups):
        if _step(rule) == ours:
            return rule
    require(
        behavior == "Isolated",
        f"{where}: its pre-tokenizer splits by {shown(pattern)} with {shown(behavior)}; Isolated is representable",
    )
    return "regex:" + (pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"]))


def _kind(settings: Any) -> str:
    return str(settings.get("type")) if isinstance(settings, dict) else "none" if settings is None else "damaged"
