"""Position-wise feed-forward layers, on the contract of `jaxlm.ffn.base`."""

METHODS = {"mlp": "mlp:Mlp", "glu": "glu:Glu", "moe": "moe:Moe"}
