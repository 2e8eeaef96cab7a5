"""Scalar-decay linear recurrence (Mamba-2's SSD, simple GLA, RetNet, linear attention), one fused pass over chunks.

`reference` is the recurrence token by token; `core` the contract of a back end and the mathematics of one chunk, shared
by all of them; `call` the differentiable call; `tpu` and `triton` the kernels.
"""
