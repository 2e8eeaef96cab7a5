"""The selective scan of Mamba: a diagonal linear recurrence of every channel, whose steps the token sets.

`reference` is the recurrence token by token; `core` the contract of a back end and the mathematics of one token, shared
by all of them; `call` the differentiable call; `tpu` and `triton` the kernels, `xla`
the same in plain JAX.
"""
