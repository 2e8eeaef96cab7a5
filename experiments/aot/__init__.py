"""Compilation of kernels for chips that are not there (extra `aot`). A module a platform, each with two functions:

    kernels() -> list[Case]            everything that is compiled, at benchmark shapes
    compile(case) -> dict[str, Any]    a row of the table: at least "ok" (bool), "seconds", and "error" if it is not ok

`experiments.compile_kernels` runs them and keeps the table, tests/kernels/test_aot.py holds them to it.
"""
