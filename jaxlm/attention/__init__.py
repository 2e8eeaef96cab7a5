"""Attention's parts as data: masks (which key a query sees). One file holds the mask algebra."""

METHODS = {
    "causal": "mask:Causal",
    "bidirectional": "mask:Bidirectional",
    "window": "mask:Window",
    "chunked": "mask:Chunked",
    "both": "mask:Both",
}
