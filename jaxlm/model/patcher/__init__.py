"""Patchers: models of bytes whose layers see patches of bytes, on the contract of `base`."""

METHODS = {
    "fixed_stride": "fixed_stride:FixedStride",
    "space_byte": "space_byte:SpaceByte",
    "entropy": "entropy:EntropyPatcher",
    "routing": "routing:RoutingPatcher",
    "word_pooled": "word_pooled:WordPooled",
    "hierarchical": "hierarchical:Hierarchical",
}
