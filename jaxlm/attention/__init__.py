"""Attention's parts as data: masks (which key a query sees) and the patterns made of them."""

METHODS = {
    "causal": "mask:Causal",
    "bidirectional": "mask:Bidirectional",
    "window": "mask:Window",
    "dilated": "mask:Dilated",
    "strided": "mask:Strided",
    "chunked": "mask:Chunked",
    "sinks": "mask:Sinks",
    "prefix": "mask:Prefix",
    "lambda": "mask:Lambda",
    "segments": "data_mask:Segments",
    "anchor": "data_mask:Anchor",
    "globals": "data_mask:Globals",
    "diagonals": "data_mask:Diagonals",
    "blocks": "data_mask:Blocks",
    "block_band": "mask:BlockBand",
    "and": "combine:And",
    "or": "combine:Or",
    "not": "combine:Not",
    "per_head": "combine:PerHead",
}
