"""Kernels: one folder per operation, one file per back end. Needs jax and numpy only, so that it can be vendored."""
