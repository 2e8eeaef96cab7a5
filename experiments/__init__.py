"""One binary per study: ``python -m experiments.<study> --config=configs/<study>.py:<preset> --workdir=runs/<name>``.

A study is a frozen run configuration, a ``main(config, workdir)``, and one line that hands ``main`` to
`experiments.flags.run`. Nothing imports this package but its own modules and the tests. The command ``jaxlm``
(`experiments.front_door`) starts the same binaries by shorter names.
"""

import sys

try:
    from jaxlm.core import versions

    versions.check_jax()
except ImportError as unsupported:  # what a binary imports next would be a traceback
    print(f"error: {unsupported}", file=sys.stderr)
    raise SystemExit(2) from None
