"""Compresses a file with a language model, or with counts of the bytes of other files, and takes it out again.

    python -m experiments.compress --source=book.txt --target=book.jxc --checkpoint=runs/lm
    python -m experiments.compress --source=book.jxc --target=again.txt --checkpoint=runs/lm --decompress
    python -m experiments.compress --source=book.txt --target=book.jxc --texts=library/ --order=3

Prints bits per byte. The file that comes out is the file that went in, byte for byte, or nothing is written: a
compressed file knows the hash of its content, of the model (for --texts, of its counts), and of probabilities that the
model gives on this machine, and whoever cannot give the same ones is refused at once (`jaxlm.compress.neural` says
why they could differ). A --checkpoint is a run of ours or a Hugging Face folder, of any vocabulary that can spell the
file. --target appears whole or not at all, and nothing is replaced without --overwrite.

The text is cut into pieces, which start anew, --lanes of them side by side. Longer pieces take fewer bits, up to the
length of the rows that the model was trained on; more lanes take less time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from experiments import checkpoints, command
from experiments.swap_tokenizer import texts_of
from jaxlm.compress import neural, range_coder
from jaxlm.compress.context_model import ContextModel
from jaxlm.compress.neural import NeuralModel
from jaxlm.core.config import Spec, from_dict, require, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder
from jaxlm.tokenize.base import BOS, EOS, Tokenizer
from jaxlm.tokenize.byte import ByteTokenizer

FLAGS = flags.FlagValues()
SOURCE = flags.DEFINE_string("source", "", "file to read", flag_values=FLAGS)
TARGET = flags.DEFINE_string("target", "", "file to write", flag_values=FLAGS)
DECOMPRESS = flags.DEFINE_bool("decompress", False, "take out what --source holds", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "folder of a language model", flag_values=FLAGS)
STEP = flags.DEFINE_integer("step", None, "of a run: the newest good one by default", flag_values=FLAGS)
TEXTS = flags.DEFINE_list("texts", [], "files or folders to count, in place of a model", flag_values=FLAGS)
ORDER = flags.DEFINE_integer("order", 2, "bytes that the counts look back", lower_bound=0, flag_values=FLAGS)
PIECE = flags.DEFINE_integer("piece", 512, "tokens of a piece", lower_bound=1, flag_values=FLAGS)
LANES = flags.DEFINE_integer("lanes", 64, "pieces side by side", lower_bound=1, flag_values=FLAGS)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace --target", flag_values=FLAGS)

FORMAT = "jaxlm.compressed/1"


@dataclasses.dataclass(frozen=True)
class Header(Spec):
    """The first line of a compressed file, as JSON; then come the sizes of the codes, 4 bytes each, and the codes.

    Attributes:
      format: `FORMAT`.
      size, sha256: of the content, in bytes.
      tokens: how many it is.
      piece, lanes: how it is cut.
      model: hash of the model.
      probe: hash of some of its frequencies.
    """

    format: str
    size: int
    sha256: str
    tokens: int
    piece: int
    lanes: int
    model: str
    probe: str


@dataclasses.dataclass(frozen=True)
class Coder:
    """A model as this program sees it.

    Attributes:
      tokenizer: from bytes to symbols.
      total: of the frequencies.
      identity: hash of the model.
      longest: tokens that a piece can have; None for any number.
      of: a `range_coder.BatchModel` for pieces of so many tokens.
      probe: a hash of frequencies of such pieces, in so many lanes.
    """

    tokenizer: Tokenizer
    total: int
    identity: str
    longest: int | None
    of: Callable[[int], range_coder.BatchModel]
    probe: Callable[[int, int], str]


def main() -> int:
    """Compresses or decompresses."""
    require(SOURCE.value and TARGET.value, "--source and --target: name both files")
    source, target = Path(SOURCE.value), Path(TARGET.value)
    require(bool(CHECKPOINT.value) != bool(TEXTS.value), "give either --checkpoint or --texts, the model to code with")
    require(target.resolve() != source.resolve(), f"--target {target} is the source; name another file")
    require(not target.is_dir(), f"--target {target} is a folder; name a file")
    require(OVERWRITE.value or not target.exists(), f"--target {target} exists; replace it with --overwrite")
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ConfigError(f"--source={source} cannot be read: {error.strerror}") from None
    start = time.perf_counter()
    if DECOMPRESS.value:
        header, codes = parsed(data, source)  # before a model is read, which takes longer
        found = decompress(header, codes, coder_of_flags(), source)
    else:
        found = compress(data, coder_of_flags(), PIECE.value, LANES.value)
    write(target, found)
    small, large = sorted((len(data), len(found))) if DECOMPRESS.value else (len(found), len(data))
    rate = f"{8 * small / large:.4f} bits per byte" if large else "nothing in it"
    print(f"{target}: {len(found):,} bytes of {len(data):,}, {rate}, {time.perf_counter() - start:.1f} s")
    return 0


def coder_of_flags() -> Coder:
    """The model that the flags name."""
    return of_checkpoint(Path(CHECKPOINT.value), STEP.value) if CHECKPOINT.value else of_texts(TEXTS.value, ORDER.value)


def of_texts(names: list[str], order: int) -> Coder:
    """Counts of files."""
    model = ContextModel.train(texts_of(names), order)
    identity = hashlib.sha256(model.frequencies.astype("<i8").tobytes()).hexdigest()
    return Coder(ByteTokenizer(specials=()), model.total, identity, None, lambda piece: model.batch, lambda *_: "")


def of_checkpoint(folder: Path, step: int | None = None) -> Coder:
    """A language model with its tokenizer.

    Raises `ConfigError` if it has no token to begin a text with.
    """
    model, params = checkpoints.load(folder, step=step)
    tokenizer = checkpoints.tokenizer_of(folder, model, step)
    head = next((tokenizer.special(name) for name in (BOS, EOS) if name in tokenizer.special_ids), None)
    if head is None:
        raise ConfigError(f"{folder}: its tokenizer has neither {BOS} nor {EOS} to begin a text with")
    size = 1 + max(i for i, piece in enumerate(tokenizer.token_bytes) if piece)
    total = range_coder.LARGEST_TOTAL
    made: dict[int, NeuralModel] = {}

    def of(piece: int) -> NeuralModel:
        if piece not in made:
            made[piece] = NeuralModel(model, params, [head], size, total=total, room=piece)
        return made[piece]

    return Coder(
        tokenizer,
        total,
        neural.identity(model, params),
        decoder.max_positions(model.spec),
        lambda piece: of(piece).batch,
        lambda piece, lanes: of(piece).probe(lanes),
    )


def compress(data: bytes, coder: Coder, piece: int, lanes: int) -> bytes:
    """The content of a compressed file. Raises `ConfigError` where the tokenizer cannot spell ``data``."""
    ids = coder.tokenizer.encode(data)
    require(
        coder.tokenizer.decode_bytes(ids) == data,
        f"the tokenizer {coder.tokenizer.name!r} does not give this file back from its tokens; take another model",
    )
    piece = max(1, min(piece, len(ids), coder.longest or piece))
    pieces = [ids[i : i + piece] for i in range(0, len(ids), piece)]
    lanes = max(1, min(lanes, len(pieces)))
    header = Header(
        format=FORMAT,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tokens=len(ids),
        piece=piece,
        lanes=lanes,
        model=coder.identity,
        probe=coder.probe(piece, lanes) if pieces else "",
    )
    codes: list[bytes] = []
    for some in _groups(pieces, lanes):
        codes += range_coder.encode([*some, *[[]] * (lanes - len(some))], coder.of(piece), coder.total)[: len(some)]
    sizes = np.array([len(code) for code in codes], "<u4")
    return b"".join([json.dumps(to_dict(header)).encode(), b"\n", sizes.tobytes(), *codes])


def parsed(data: bytes, name: Path) -> tuple[Header, list[bytes]]:
    """A compressed file's header and codes. Raises `ConfigError` for another file, or one that is cut short."""
    line, _, rest = data.partition(b"\n")
    try:
        header = from_dict(Header, json.loads(line))
        require(header.format == FORMAT and min(header.piece, header.lanes, header.tokens + 1, header.size + 1) > 0, "")
    except (ConfigError, ValueError, TypeError):
        raise ConfigError(f"{name} was not compressed by this program: its first line is no {FORMAT} header") from None
    count = -(-header.tokens // header.piece)
    short = ConfigError(f"{name} is damaged: it is not as long as it says")
    if len(rest) < 4 * count:
        raise short
    sizes = np.frombuffer(rest[: 4 * count], "<u4").astype(np.int64)
    stops = 4 * count + np.cumsum(sizes)
    if len(rest) != (stops[-1] if count else 0):
        raise short
    return header, [rest[stop - size : stop] for stop, size in zip(stops.tolist(), sizes.tolist(), strict=True)]


def decompress(header: Header, codes: list[bytes], coder: Coder, name: Path) -> bytes:
    """What was compressed. Raises `ConfigError` if the model is another one, or does not give what it gave then."""
    require(
        header.model == coder.identity,
        f"{name} was compressed with another model (hash {header.model[:12]}, this one {coder.identity[:12]})",
    )
    require(
        not codes or header.probe == coder.probe(header.piece, header.lanes),
        f"{name}: the model gives other probabilities here than where the file was compressed (another device, number "
        "of threads, or version of jax); decompress it there",
    )
    lengths = [min(header.piece, header.tokens - i) for i in range(0, header.tokens, header.piece)]
    found: list[NDArray[np.int32]] = []
    for some, sizes in zip(_groups(codes, header.lanes), _groups(lengths, header.lanes), strict=True):
        missing = header.lanes - len(some)
        texts = range_coder.decode(
            [*some, *[b""] * missing], [*sizes, *[0] * missing], coder.of(header.piece), coder.total
        )
        found += texts[: len(some)]
    data = coder.tokenizer.decode_bytes(np.concatenate(found)) if found else b""
    same = len(data) == header.size and hashlib.sha256(data).hexdigest() == header.sha256
    require(same, f"{name} is damaged, or this machine computes other probabilities: what comes out has another hash")
    return data


def _groups(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def write(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all. Raises `ConfigError` where it cannot be written."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"--target={path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
