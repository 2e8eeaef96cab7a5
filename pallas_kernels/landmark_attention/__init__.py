"""Landmark attention: a query reads the tokens of its own block, and earlier blocks through the gates of their
landmarks.

`reference` is the formula for landmarks anywhere. Where blocks have one length it is causal attention with a normaliser
for each block: `core` is that contract and the tile maths, shared by all back ends; `call` the differentiable call;
`xla` a schedule for any device.
"""
