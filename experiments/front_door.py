"""The command ``jaxlm``: every binary of `experiments` by a short name, the methods of the library, and its models.

    jaxlm train --config=configs/train_lm.py:smoke --workdir=runs/lm
    jaxlm generate --checkpoint=runs/lm --prompt='def '
    jaxlm study                                        the studies; jaxlm study NAME --config=... runs one
    jaxlm list position                                the methods of a slot with their papers; alone, the slots
    jaxlm describe runs/lm                             parameters, shapes, FLOPs: of a run or a Hugging Face folder,
    jaxlm describe --config=configs/train_lm.py:small  or of the models in a configuration file

``jaxlm train ...`` is ``python -m experiments.train_lm ...``: the same flags, the same ``--help``, the same output. The
configuration files are among what is installed: --config=configs/<name>.py finds them from any folder.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command, startup
from experiments.flags import load, split
from experiments.overrides import override
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose

BINARIES = {
    "train": "train_lm",
    "generate": "generate",
    "convert": "convert_checkpoint",
    "evaluate": "evaluate",
    "export": "export_model",
    "compress": "compress",
    "benchmark": "benchmark",
}
STUDIES = (
    "cache_edit",
    "context_extension",
    "growing_context",
    "length_generalization",
    "long_context_retrieval",
    "rotary_precision",
    "state_space",
    "tokenization",
)
OTHERS = {
    "study": "Run a study, or list them.",
    "list": "The slots of the library, or the methods of one with their papers.",
    "describe": "Parameters, shapes and FLOPs of a checkpoint, or of the models of a configuration file.",
}

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", "", "configuration file, and preset after a colon", flag_values=FLAGS)
LENGTH = flags.DEFINE_integer("length", 1024, "tokens of a row, for FLOPs", lower_bound=1, flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line names; the exit code of a program that ends by returning."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0] in command.HELP:
            print(help_text())
            return 0 if arguments else startup.FAILED
        name, *rest = arguments
        choose("command", name, [*BINARIES, *OTHERS])
        if name in BINARIES:
            return binary(BINARIES[name], rest)
        if name == "study":
            return study(rest)
        asked = bool(command.HELP & set(rest))
        if name == "list":
            require(asked or len(rest) <= 1, f"jaxlm list takes one slot, got {' '.join(rest)}")
            print(f"{OTHERS[name]}\n\njaxlm list [slot]" if asked else listed(*rest))
            return 0
        return describe(rest)
    except ConfigError as error:
        print(f"error: {startup.complaint(error)}", file=sys.stderr)
        return startup.FAILED
    except BrokenPipeError:  # `jaxlm list mixer | head`
        sys.stderr.close()
        return 0


def help_text() -> str:
    """What ``jaxlm --help`` prints."""
    lines = [f"  {name:<10} {headline(module)}" for name, module in BINARIES.items()]
    lines += [f"  {name:<10} {text}" for name, text in OTHERS.items()]
    head = inspect.cleandoc(__doc__ or "")
    return "\n".join([head, "", "commands (`jaxlm COMMAND --help` lists the flags of each):", *lines])


def headline(module: str) -> str:
    """The first sentence of a binary, read and not imported."""
    there = Path(__file__).parent / module
    path = there / "__main__.py" if there.is_dir() else there.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(":")


def binary(module: str, arguments: Sequence[str]) -> int:
    """What ``python -m experiments.<module>`` does with the arguments."""
    before = sys.argv
    try:
        sys.argv = [before[0], *arguments]  # runpy puts the module's file first
        runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
    return 0


def study(arguments: Sequence[str]) -> int:
    """Runs the study that the first argument names; without one lists them."""
    if not arguments or arguments[0] in command.HELP:
        print(
            "jaxlm study NAME --config=configs/NAME.py:PRESET --workdir=runs/NAME; `jaxlm study NAME --help` for more\n"
        )
        print("\n".join(f"  {name:<24} {headline(name)}" for name in STUDIES))
        return 0
    require(
        not arguments[0].startswith("-"), f"which study? jaxlm study NAME {arguments[0]}; names: {', '.join(STUDIES)}"
    )
    return binary(choose("study", arguments[0], STUDIES), arguments[1:])


def listed(slot: str = "") -> str:
    """The methods of a slot with their papers; the slots with their methods without one."""
    if not slot:
        rows = {name: ", ".join(registry.methods(name)) for name in registry.ROOMS}
    else:
        rows = registry.describe(choose("slot", slot, registry.ROOMS))
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def describe(arguments: Sequence[str]) -> int:
    """Prints `jaxlm.describe` of a checkpoint or of every model in a configuration."""
    overrides, rest = split(["jaxlm describe", *arguments])
    folders = [one for one in rest[1:] if not one.startswith("-")]
    rest = [one for one in rest if one not in folders]

    def run() -> int:
        import jaxlm

        require(
            len(folders) + bool(CONFIG.value) == 1,
            "jaxlm describe takes the folder of a checkpoint, or --config=FILE.py:PRESET",
        )
        require(not folders or not overrides, "--config.field=value goes with --config=FILE.py:PRESET")
        models = of_folder(Path(folders[0])) if folders else of_config(str(CONFIG.value), overrides)
        found = [f"{name}:\n{jaxlm.describe(model, LENGTH.value or 1024)}" for name, model in models]
        require(found, f"--config={CONFIG.value} has no model in it")
        print("\n\n".join(found))
        return 0

    return command.run(run, FLAGS, f"{OTHERS['describe']}\n\njaxlm describe FOLDER | --config=FILE.py:PRESET", rest)


def of_folder(folder: Path) -> Iterator[tuple[str, Any]]:
    """The model of a checkpoint; of its weights, only the heads of the files are read."""
    from experiments import checkpoints
    from jaxlm.interop.load import model_of_folder
    from jaxlm.model.encoder_decoder import model_of
    from jaxlm.model.encoder_decoder_spec import spec_of
    from jaxlm.train.load import open_checkpoints

    if checkpoints.kind_of(folder) == "hf":
        yield str(folder), model_of_folder(folder)
        return
    opened, meta = open_checkpoints(folder)
    with opened:
        yield f"{folder}, step {opened.steps()[-1]}", model_of(spec_of(meta["model"]))


def of_config(source: str, overrides: Sequence[tuple[str, str | None]]) -> Iterator[tuple[str, Any]]:
    """Every model in a configuration, by its path in it."""
    from jaxlm.model.encoder_decoder import model_of
    from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec
    from jaxlm.model.spec import ModelSpec

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (ModelSpec, EncoderDecoderSpec)):
            yield path, model_of(value)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                yield from walk(item, f"{path}[{i}]")
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from walk(getattr(value, field.name), f"{path}.{field.name}")

    return walk(override(load(source)[1], overrides), source)


if __name__ == "__main__":
    sys.exit(main())
