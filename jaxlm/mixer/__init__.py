"""Sequence mixers, one file each, on the contract of `jaxlm.core.types.Mixer`."""

METHODS = {
    "attention": "attention:Attention",
    "big_bird": "big_bird:BigBird",
    "landmark": "landmark:LandmarkAttention",
    "linear_attention": "linear_attention:LinearAttention",
    "longformer": "longformer:Longformer",
    "mla": "mla:Mla",
    "path": "path:Path",
    "lssa": "softplus_attention:Lssa",
    "lssar": "softplus_attention:Lssar",
}
