"""Run configurations from files and flags: ``--config=configs/study.py:preset --config.model.width=128``.

A configuration file is Python. ``get_config(preset)`` returns a frozen run configuration (a `jaxlm.core.config.Spec`),
the dict ``PRESETS`` says in one line what each preset is, and the docstring declares what the study promises: the exact
command, the expected figures with tolerances, the hardware and the wall time (``--help`` prints it).

A study is its run configuration, a ``main`` and one line:

    def main(config: RunConfig, workdir: pathlib.Path) -> None: ...

    if __name__ == "__main__":
        flags.run(main, default="configs/study.py")

A bad name, value or file is one line on stderr that says what is allowed, and exit code 2, before anything is compiled.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import re
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags, logging

from experiments import startup
from experiments.host_memory import keep_freed_memory
from experiments.overrides import diff, leaves, override, slots_of
from experiments.study import folder
from jaxlm.core.config import Spec, to_dict
from jaxlm.core.errors import ConfigError, choose

Config = TypeVar("Config", bound=Spec)

HELP = {"--help", "-help", "-h"}
_ROOT = Path(__file__).resolve().parent.parent
_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]*)(=(?P<value>.*))?", re.DOTALL)


def run(main: Callable[..., None], default: str) -> None:
    """Calls ``main(config, workdir)`` with what the command line says; exits with 2 and one line on a bad setting.

    Args:
      main: its first parameter is annotated with the study's run configuration.
      default: the configuration file (and preset) used without ``--config``.
    """
    keep_freed_memory()
    run_config = next(iter(typing.get_type_hints(main).values()))
    define_config(default)
    study = sys.modules["__main__"]
    if study.__spec__ is not None:  # `python -m`: a configuration that imports the study must get this module
        sys.modules[study.__spec__.name] = study
    parsed: list[Any] = []

    def parse(argv: Sequence[str]) -> list[str]:
        with _one_line():
            if HELP & set(argv):
                print(help_text(argv))
                sys.exit(0)
            parsed.append(parse_config(run_config, argv))
        return list(argv[:1])

    def call(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # absl's default shows the house-keeping of every library
        with _one_line():
            workdir = folder(flags.FLAGS["workdir"])
            startup.begin()
            main(parsed[0], workdir)

    app.run(call, flags_parser=parse)


def define_config(default: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines ``--config`` and ``--workdir`` (``runs/<name of the file>`` unless given)."""
    name = Path(default.partition(":")[0]).stem
    flags.DEFINE_string("config", default, "configuration file, and preset after a colon", flag_values)
    flags.DEFINE_string("workdir", f"runs/{name}", "folder the run writes to", flag_values)


def parse_config(
    run_config: type[Config], argv: Sequence[str] | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> Config:
    """The run configuration that a command line asks for, checked and frozen; prints how it differs from the defaults.

    Args:
      run_config: the class that the file's ``get_config`` must return.
      argv: the program's name and its arguments; those of the process by default.
      flag_values: where `define_config` put the flags, and any others of the study.

    Raises:
      ConfigError: in one line, for an unknown flag, field, preset or method, a value that does not fit, or a bad file.
    """
    overrides, rest = split(sys.argv if argv is None else argv)
    source = _parse_others(rest, flag_values)
    _, config = load(source)
    if not isinstance(config, run_config):
        raise ConfigError(f"{source}: get_config must return a {run_config.__name__}, got {type(config).__name__}")
    config = override(config, overrides)
    print(f"config {source}; what differs from the defaults of {type(config).__name__}:")
    print("\n".join(f"  {line}" for line in diff(config)) or "  nothing")
    return config


def load(source: str) -> tuple[types.ModuleType, Any]:
    """A configuration file's module and what its ``get_config`` returns, from ``"path.py"`` or ``"path.py:preset"``.

    A relative path is looked up in the current folder, then beside the package `experiments`: in a checkout, or among
    what the wheel installed.

    Raises:
      ConfigError: if the file is missing or fails, or the preset is not one of its ``PRESETS``.
    """
    file, _, preset = source.partition(":")
    path = next((p.resolve() for p in (Path(file), _ROOT / file) if p.is_file()), None)
    if path is None:
        shipped = sorted(p.stem for p in (_ROOT / "configs").glob("*.py") if p.stem != "__init__")
        near = difflib.get_close_matches(Path(file).stem, shipped, n=1)
        hint = f" did you mean configs/{near[0]}.py?" if near else ""
        raise ConfigError(
            f"--config={source}: there is no file {file!r};{hint} write --config=configs/<name>.py:<preset> "
            f"or a file of yours; names: {', '.join(shipped)}"
        )
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={source}: a configuration file is a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses declared in the file look their annotations up here
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError("there is no function get_config(preset)")
        if preset and hasattr(module, "PRESETS"):
            choose("preset", preset, module.PRESETS)
        return module, module.get_config(preset) if preset else module.get_config()
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except Exception as error:  # the file may do anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise ConfigError(f"{file}, line {line}: {type(error).__name__}: {error}") from error


def help_text(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """What ``--help`` prints: the study, its configuration file, presets, every field with its value, other flags."""
    overrides, rest = split([argument for argument in argv if argument not in HELP])
    source = _parse_others(rest, flag_values)
    module, config = load(source)
    config = override(config, overrides)
    study = sys.modules["__main__"]
    spec = getattr(study, "__spec__", None)
    file = source.partition(":")[0]
    fields = [
        f"--config.{path}={value}" + (f"  (one of: {', '.join(names)})" if names else "")
        for path, value, names in leaves(to_dict(config), slots_of(config))
    ]
    others = [*flag_values.get_key_flags_for_module(argv[0]), flag_values["workdir"]]
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {argv[0]}"
    sections = {
        f"{program} --config={file}[:preset] [--config.field=value ...] [--workdir=folder]": study.__doc__ or "",
        f"{file}:": module.__doc__ or "",
        "presets:": "\n".join(f"{name:<12} {text}" for name, text in getattr(module, "PRESETS", {}).items()),
        f"fields, as {source} sets them:": "\n".join(fields),
        "other flags:": "\n".join(f"--{flag.name}={flag.value}  {flag.help}" for flag in others),
    }
    return "\n\n".join(f"{head}\n{textwrap.indent(inspect.cleandoc(text), '  ')}" for head, text in sections.items())


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns a bad setting into one line on stderr and exit code 2."""
    try:
        yield
    except (ConfigError, RuntimeError) as error:
        line = startup.complaint(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(startup.FAILED)


def split(argv: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The ``--config.path=value`` arguments as pairs, and all others."""
    overrides: list[tuple[str, str | None]] = []
    rest, queue = list(argv[:1]), list(argv[1:])
    while queue:
        argument = queue.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = "false" if match["no"] else match["value"]
        if value is None and queue and not queue[0].startswith("-"):
            value = queue.pop(0)
        overrides.append((match["path"], value))
    return overrides, rest


def _parse_others(argv: Sequence[str], flag_values: flags.FlagValues) -> str:
    """Parses all flags but the overrides; the value of ``--config``."""
    try:
        positional = flag_values(list(argv))[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from None
    if positional:
        raise ConfigError(f"unexpected argument {positional[0]!r}; everything is a flag, written --name=value")
    return str(flag_values["config"].value)
