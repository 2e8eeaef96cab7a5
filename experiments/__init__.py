"""One binary per study: ``python -m experiments.<study> --config=configs/<study>.py:<preset> --workdir=runs/<name>``.

A study is a frozen run configuration, a ``main(config, workdir)``, and one line that hands ``main`` to
`experiments.flags.run`. Nothing imports this package but its own modules and the tests.
"""
