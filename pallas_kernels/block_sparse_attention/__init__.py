"""Block-sparse attention: every query block meets its own list of key blocks.

`core` is the contract and the tile maths, shared by all; `call` the differentiable call; `xla`, `tpu`, `triton` and
`mosaic_gpu` are schedules of it, one back end a file. `lists` packs block maps.
"""
