"""Sequence mixers, one file each, on the contract of `jaxlm.core.types.Mixer`."""

METHODS = {"attention": "attention:Attention", "mla": "mla:Mla"}
