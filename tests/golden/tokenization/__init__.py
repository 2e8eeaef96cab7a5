"""Golden vectors of tokenization, in parts that `tests.golden.test_tokenization` runs as one."""
