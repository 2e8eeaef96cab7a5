"""Programs without a configuration file: their flags, their help, and one-line errors.

A program keeps its flags in a set of its own, so that several can be imported into one process:

    FLAGS = flags.FlagValues()
    SOURCE = flags.DEFINE_string("source", None, "folder to read", FLAGS)

    def main() -> int: ...

    if __name__ == "__main__":
        sys.exit(command.run(main, FLAGS, __doc__))
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags, logging

from experiments import startup
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError

HELP = {"--help", "-help", "-h"}


def run(
    main: Callable[[], int],
    values: flags.FlagValues,
    doc: str | None,
    argv: Sequence[str] | None = None,
    compile_cache: bool = True,
) -> int:
    """Calls ``main`` with the flags parsed; the program's exit code, 2 after one line on stderr for a bad setting.

    Args:
      main: the program; it returns its exit code.
      values: its flags.
      doc: what ``--help`` prints above them.
      argv: the program's name and its arguments; those of the process by default.
      compile_cache: whether compiled programs may come from earlier runs.
    """
    arguments = list(sys.argv if argv is None else argv)
    if HELP & set(arguments):
        lines = [f"  --{name}={values[name].value}  {values[name].help}" for name in values]
        print("\n".join([inspect.cleandoc(doc or ""), "", "flags:", *lines]))
        return 0
    logging.set_verbosity(logging.WARNING)  # absl's default shows the house-keeping of every library
    try:
        rest = _parse(values, arguments)
        require(not rest, f"unexpected argument {rest[:1]}; everything is a flag, written --name=value")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            startup.begin(compile_cache=compile_cache)
            return main()
    except (ConfigError, RuntimeError) as error:
        line = startup.complaint(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return startup.FAILED


def _parse(values: flags.FlagValues, arguments: list[str]) -> list[str]:
    """The arguments that are no flags; the flags that are not given have their defaults again."""
    for name in values:
        values[name].unparse()
    try:
        return values(arguments)[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from None
