"""Position-wise feed-forward layers."""

METHODS = {"mlp": "mlp:Mlp", "glu": "glu:Glu"}
