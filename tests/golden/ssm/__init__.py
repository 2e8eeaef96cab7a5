"""Golden vectors of state-space and recurrent mixers, in parts that `tests.golden.test_ssm` runs as one."""
